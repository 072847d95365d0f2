"""Texts -> probabilities by a loaded variant: what classify_texts.py runs in its workers and on a Ray cluster."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.batches import pad
from bench.inputs import describe_model, token_names
from bench.models import load_config
from bench.parity import probabilities
from bench.parts import Layout, is_whole, label_table, part_name, read_parts, write_part
from bench.passes import load_variant
from bench.stream import prefetch, share_of, token_batches
from bench.texts import check_vocabulary, load_tokenizer, tokenize
from bench.workers import WorkerFailed, Workers, beat
from runtimes.runner import Place
from utils import RunError, say

TRIES = 2  # of a part: then it stops
TIMEOUT = 600  # seconds without a sign of life of a worker
TEMPORARY = ".tmp"


def describe(model: Path) -> dict:
    """Returns what describe_model says. Raises UserError if the model or its tokenizer can't be used."""
    return describe_model(load_config(model), load_tokenizer(model))


@dataclass(frozen=True)
class Way:
    """How texts are labelled: a variant, what it loads, where, how many workers there are, and how batches are made.

    about: what describe_model says; `size` and `order`: see make_batches.
    """

    model: Path
    about: dict
    variant: str
    source: Path
    place: Place
    workers: int
    size: int
    order: str


class Classifier:
    """A loaded variant with its tokenizer; the `number` says which share of the texts is this worker's."""

    def __init__(self, number: int, way: Way):
        self.number, self.way = number, way
        self.runner, self.shape_lengths = load_variant(way.variant, way.source, way.place, way.about["limit"])
        self.config, self.tokenizer = load_config(way.model), load_tokenizer(way.model)

    def classify(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Returns (what the model says: float32 [texts, labels], nan where a text has no token; how many tokens)."""
        limit, fills, side = (self.way.about[name] for name in ("limit", "fills", "side"))
        names = token_names(fills)

        def tokens(some: list[str]) -> dict[str, list]:
            rows = tokenize(self.tokenizer, some, limit, names)
            check_vocabulary([ids for ids in rows["input_ids"] if ids] or [[0]], self.config)
            return rows

        batches = token_batches(texts, tokens, (self.way.size, self.way.order), self.shape_lengths)
        ready = (
            (batch, sum(map(len, rows["input_ids"])), self.runner.prepare(pad(rows, fills, side, width)))
            for batch, rows, width in batches
        )
        outputs, total, done = [], 0, 0
        for batch, count, inputs in prefetch(ready):
            outputs.append((batch, inputs, self.runner.forward(inputs)))  # a GPU may still read the inputs
            total, done = total + count, done + len(batch)
            beat(done)
        self.runner.synchronize()
        found = np.full((len(texts), len(self.way.about["labels"])), np.nan, dtype=np.float32)
        for batch, _, logits in outputs:
            found[batch] = probabilities(self.runner.fetch(logits), self.way.about["problem"])
        return found, total

    def classify_share(self, file: Path) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns (indices, probabilities, tokens) of this worker's share of the texts in a JSON file."""
        texts = json.loads(file.read_text(encoding="utf-8"))
        mine = share_of(texts, self.number, self.way.workers)
        return mine, *self.classify([texts[i] for i in mine])


class Labeller:
    """Workers that are started when they are needed, and again when they failed. A context manager."""

    def __init__(self, ways: list[Way], folder: Path):
        self.ways, self.folder, self.workers = ways, folder, None
        self.stack, self.loading = contextlib.ExitStack(), 0.0  # seconds

    def label_parts(
        self, files: list[Path], layout: Layout, first: int, show: Callable
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Makes the parts that are missing from number `first` on; yields of each (rows, counts of label_table)."""
        for number, table in enumerate(prefetch(read_parts(files, layout, first * layout.rows), 1), first):
            if is_whole(self.folder / part_name(number), len(table)):
                continue
            rows = f"rows {number * layout.rows:,} to {number * layout.rows + len(table) - 1:,}"
            labelled, counts = label_table(table, partial(self.label, rows=rows, show=show), layout)
            write_part(self.folder, number, labelled)
            yield len(table), counts

    def label(self, texts: list[str], rows: str, show: Callable) -> tuple[np.ndarray, int]:
        """Returns (probabilities [texts, labels], tokens). Raises RunError, which names the rows, if it fails twice."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".", suffix=TEMPORARY, encoding="utf-8") as file:
            json.dump(texts, file)
            file.flush()
            for left in reversed(range(TRIES)):
                try:
                    self.load()
                    answers = self.workers.ask(Classifier.classify_share, Path(file.name), on_beat=show)
                    break
                except WorkerFailed as error:
                    self.stack.close()
                    self.workers = None
                    if not left:
                        raise RunError(f"{rows} failed {TRIES} times: {error}; the parts before stay") from error
                    say(f"{rows}: {error}; once more")
        probs = np.empty((len(texts), answers[0][1].shape[1]), dtype=np.float32)
        for indices, values, _ in answers:
            probs[indices] = values
        return probs, sum(count for _, _, count in answers)

    def load(self) -> None:
        if not self.workers:
            start = time.monotonic()
            self.workers = self.stack.enter_context(Workers(Classifier, list(enumerate(self.ways)), TIMEOUT))
            self.loading += time.monotonic() - start

    def __enter__(self) -> "Labeller":
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()
