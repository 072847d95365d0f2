"""Differences from the reference and changed decisions, for every script that compares answers.

Changed decisions are called flips, as by Dutta et al., "Accuracy is Not All You Need", 2024.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.judge import TOLERANCE, VERDICTS, is_rounded, judge
from bench.model.task import Task
from bench.tables.items import Item, hash_item, parts_of

PERCENTILES = {"p25": 25, "median": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
N_WORST_TEXTS = 3  # texts shown in a report
EXCERPT_CHARACTERS = 200  # per text


@dataclass
class ParityCounter:
    """Accumulates differences and changed decisions over calls of add(), and returns a verdict."""

    task: Task
    precision: str = ""  # of the variant's matrix products, empty if unknown
    tolerance: float = TOLERANCE  # share of changed decisions
    stored_rounding: float = 0.0  # how far answers may be off because they are stored in fewer bits
    basis: np.ndarray | None = None  # see Task.basis; by default that of the references of all calls so far
    items: int = 0
    changed: int = 0
    decisions: int = 0
    non_finite: int = 0  # items with an answer that is not finite although the reference is
    max_diff: float = 0.0  # largest finite difference
    scale: float = 1.0  # the largest number of the reference, which exceeds 1 only in a regression
    differences: list[np.ndarray] = field(default_factory=list)  # the finite ones of each call [items, n]
    references: list[np.ndarray] = field(default_factory=list)  # of all calls, for the default basis
    changes: dict[int, int] = field(default_factory=dict)  # hash of a text -> its changed decisions, see add()

    def add(self, answers: np.ndarray, reference: np.ndarray, texts: Sequence[Item] = ()) -> None:
        """Compare answers [items, labels]; items that the reference can't answer (nan) are left out.

        `texts`: the items themselves, whose changes are recorded in `changes`.
        """
        known = np.isfinite(reference).all(axis=1)
        answers, reference = answers[known], reference[known]
        if not len(reference):
            return
        basis = self.basis
        if basis is None:
            self.references.append(reference)
            basis = self.task.basis(np.concatenate(self.references))
        flips = self.task.flips(answers, reference, basis)
        if len(texts):
            hashes = [hash_item(texts[i]) for i in np.flatnonzero(known)]
            self.changes |= dict(zip(hashes, flips.sum(axis=1).tolist(), strict=True))
        self.changed += int(flips.sum())
        self.decisions += flips.size
        self.items += len(reference)
        differences = self.task.differences(answers, reference)
        finite = np.isfinite(differences).all(axis=1)
        self.non_finite += int((~finite).sum())
        self.max_diff = max(self.max_diff, float(differences[np.isfinite(differences)].max(initial=0.0)))
        self.scale = max(self.scale, self.task.scale(reference))
        self.differences.append(differences[finite])

    def add_changes(self, texts: Sequence[Item], decisions: int) -> None:
        """Add decisions about items that add() has compared: one of each of these `texts` has changed."""
        self.changed += len(texts)
        self.decisions += decisions
        for text in texts:
            self.changes[hash_item(text)] += 1

    @property
    def is_rounding(self) -> bool:
        """True if the differences are those of FP32 sums in another order."""
        return is_rounded(self.precision, self.max_diff - self.stored_rounding)

    def verdict(self) -> str:
        return judge(self.changed, self.decisions, self.tolerance, self.is_rounding, self.non_finite)

    def columns(self) -> dict:
        return parity_columns(self, self.verdict())

    def statistics(self) -> dict:
        """Return the statistics for a report; the differences are nan if no item has finite ones."""
        differences = np.concatenate(self.differences)
        if not len(differences):
            differences = np.array([[np.nan]])
        largest = differences.max(axis=1)  # of each item
        summary = {"mean": largest.mean(), "std": largest.std(), "min": largest.min(), "max": largest.max()}
        summary |= {name: np.percentile(largest, p) for name, p in PERCENTILES.items()}
        return {
            "largest_difference": {name: float(value) for name, value in summary.items()},
            "mean_over_labels": float(differences.mean()),
            "flips": self.changed / self.decisions,
            "changed": self.changed,
            "decisions": self.decisions,
            "non_finite_texts": self.non_finite,
        }


def parity_columns(counts, verdict: str) -> dict:
    """Return the columns `max_diff` (nan if an answer is not finite), `flips`, `decisions` and `within`.

    `counts`: a ParityCounter, or what has its counts.
    """
    return {
        "max_diff": np.nan if counts.non_finite else counts.max_diff,
        "flips": counts.changed / counts.decisions,
        "decisions": counts.decisions,
        "within": next(word for word, meaning in VERDICTS.items() if meaning == verdict),
    }


def worst_texts(answers: np.ndarray, reference: np.ndarray, texts: list[Item], labels: list[str]) -> list[dict]:
    """Return the texts whose labels differ most, each with its labels, the most different first."""
    differences = np.nan_to_num(np.abs(answers - reference), nan=np.inf)
    worst = []
    for i in np.argsort(-differences.max(axis=1), kind="stable")[:N_WORST_TEXTS]:
        table = [
            {
                "label": labels[j],
                "original": float(reference[i, j]),
                "export": float(answers[i, j]),
                "difference": float(answers[i, j] - reference[i, j]),
            }
            for j in np.argsort(-differences[i], kind="stable")
        ]
        excerpt = " ".join(" | ".join(parts_of(texts[i])).split())
        worst.append({"excerpt": textwrap.shorten(excerpt, EXCERPT_CHARACTERS, placeholder="…"), "labels": table})
    return worst
