"""The evidence: what all checks so far have compared, kept in a file of results/ that is only ever appended to.

A line is one comparison of a variant with the original model. Those with the same key add up, whichever script made
them, and each text counts once, with the most changes that any of them found. Texts are known by 32 bits of a hash.
"""

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.files import append_line, parse_object
from bench.judge import TOLERANCE, is_rounded, judge
from bench.model.model import Model
from bench.model.parity import ParityCounter
from bench.provenance import answering_code, package_versions
from runtimes import VARIANTS
from utils import say

FILE = "evidence.jsonl"
# comparisons add up if they agree in these: the original, what is asked of it, the texts, and what computes the answers
KEYS = ("weights_id", "task", "threshold", "long", "max_length", "dataset", "variant", "export", "versions", "device")
ROW_KEYS = ("weights_id", "threshold", "dataset", "variant", "versions", "device")  # columns of a row, too
TYPES = dict.fromkeys(KEYS, str) | {"date": str, "texts": str, "changes": str, "max_diff": int | float}
TYPES |= dict.fromkeys(("items", "changed", "decisions", "non_finite"), int)


def evidence_key(model: Model, variant: str, export: str, **place: str) -> dict[str, str]:
    """Return the key of a comparison. `place`: the other KEYS that are no property of the model and the variant.

    `export`: the digest of the variant's export, see digest_export; empty if it has none. The code that computes the
    answers counts, too.
    """
    export = f"{export} code {answering_code()}".strip()
    asked = {"weights_id": model.weights_id, "task": model.task.name, "threshold": model.task.rule_id}
    asked |= {"long": "cut", "max_length": str(model.max_length), "variant": variant, "export": export}
    return asked | {"versions": package_versions(VARIANTS[variant])} | place


@dataclass
class Evidence:
    """What all comparisons with one key found."""

    changes: dict[int, int] = field(default_factory=dict)  # hash of a text -> its changed decisions
    decisions: int = 0
    max_diff: float = 0.0
    non_finite: int = 0

    @property
    def changed(self) -> int:
        return sum(self.changes.values())

    @property
    def per_text(self) -> float:
        return self.decisions / len(self.changes)

    def verdict(self, variant: str, gpu: bool, tolerance: float = TOLERANCE) -> str:
        rounded = is_rounded(VARIANTS[variant].computes_in(0 if gpu else None), self.max_diff)
        return judge(self.changed, self.decisions, tolerance, rounded, self.non_finite)

    def add(self, changes: dict[int, int], per_text: float, max_diff: float, non_finite: int) -> dict[int, int]:
        """Add a comparison of some texts; return those that were new, or have changed more than before.

        `per_text`: decisions for each text.
        """
        news = {text: n for text, n in changes.items() if n > self.changes.get(text, -1)}
        self.decisions += round(per_text * len(news.keys() - self.changes.keys()))
        self.changes |= news
        self.decisions = max(self.decisions, self.changed)  # neighbours in an order are not the same for each text
        self.max_diff, self.non_finite = max(self.max_diff, max_diff), max(self.non_finite, non_finite)
        return news


class EvidenceFile:
    """The evidence in results folders, of which the first is added to. Damaged and foreign lines are skipped.

    With `save` False nothing is written.
    """

    def __init__(self, *results_dirs: Path, save: bool = True):
        self.path = results_dirs[0] / FILE if results_dirs and save else None  # of the file that is added to
        self.found: dict[tuple[str, ...], Evidence] = {}  # by key, the last one that was used at the end
        for path in [folder / FILE for folder in results_dirs if (folder / FILE).exists()]:
            skipped = 0
            try:
                for line in path.read_bytes().splitlines() if path.is_file() else [b""]:
                    try:
                        self.add_line(parse_object(line, TYPES))
                    except (ValueError, RecursionError):
                        skipped += 1
            except OSError as error:
                say(f"{path} can't be read: {error.strerror}; earlier checks do not count")
            if skipped:
                say(f"{path}: skipped {skipped} unreadable lines")

    def add_line(self, line: dict) -> None:
        """Add a line that was read. Raises ValueError if it is not as add() has written it."""
        if line["variant"] not in VARIANTS:
            raise ValueError("no such variant")
        texts = decode(line["texts"])
        changes = dict.fromkeys(texts, 0) | dict(zip(*[iter(decode(line["changes"]))] * 2, strict=True))
        counts = line["changed"], line["decisions"], line["non_finite"], line["max_diff"]
        possible = min(counts) >= 0 and max(counts) < 2**53 and sum(changes.values()) <= line["decisions"]
        if len(changes) != len(texts) or not texts or not possible:
            raise ValueError("its numbers contradict each other")
        self.of_key(line).add(changes, line["decisions"] / len(texts), line["max_diff"], line["non_finite"])

    def of_key(self, key: dict) -> Evidence:
        """Return the evidence of a key, which may be empty, and move it to the end: it is the current export's."""
        name = tuple(key[part] for part in KEYS)
        self.found[name] = self.found.pop(name, Evidence())
        return self.found[name]

    def add(self, key: dict[str, str], parity: ParityCounter) -> None:
        """Add what a counter compared, and append what is new in it to the file."""
        if not parity.changes:
            return
        evidence = self.of_key(key)
        before = evidence.max_diff, evidence.non_finite
        per_text = parity.decisions / parity.items
        news = evidence.add(parity.changes, per_text, parity.max_diff, parity.non_finite)
        if not self.path or (not news and before == (evidence.max_diff, evidence.non_finite)):
            return
        texts = sorted(news or parity.changes)
        changed = {text: parity.changes[text] for text in texts if parity.changes[text]}
        line = {part: key[part] for part in KEYS} | {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        line |= {"items": len(texts), "changed": sum(changed.values())}
        line["decisions"] = max(round(per_text * len(texts)), line["changed"])
        line |= {"max_diff": parity.max_diff, "non_finite": parity.non_finite, "texts": encode(texts)}
        line["changes"] = encode([number for pair in changed.items() for number in pair])
        try:
            append_line(self.path, json.dumps(line))
        except OSError as error:
            say(f"{self.path}: not saved: {error.strerror}")

    def of_row(self, row: dict) -> Evidence | None:
        """Return the evidence for a row of results, of the export that was used last; None if there is none."""
        wanted = {name: row[name] for name in ROW_KEYS} | {"long": "cut"}
        places = {KEYS.index(name): value for name, value in wanted.items()}
        matching = [found for key, found in self.found.items() if all(key[i] == places[i] for i in places)]
        return next((found for found in reversed(matching) if found.decisions), None)


def encode(numbers: list[int]) -> str:
    return base64.b64encode(np.array(numbers, "<u4").tobytes()).decode()


def decode(text: str) -> list[int]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<u4").tolist()
