"""Parts of the input -> labelled parts, by workers that are started again when they fail."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.classifier import Classifier, ClassifierSpec, Predictions
from bench.inputs.batches import Batching
from bench.inputs.readers import Table
from bench.inputs.stream import prefetch
from bench.label.output import TEMPORARY, is_whole, part_name, write_part
from bench.label.rows import DEAD, Answers, Counts, OutputSpec, label_table, read_parts
from bench.label.sample import Sample, pick_sample
from bench.parity import probabilities
from bench.processes import ProcessPool, WorkerFailed
from utils import RunError, say

N_TRIES = 2  # of a part, then its halves; and of what a Ray actor does
MOST_DEAD = 3  # texts of a part on which workers die: with more it is not the texts
STALL_TIMEOUT = 600  # seconds without a heartbeat of a worker: a batch takes seconds at most


@dataclass(frozen=True)
class Part:
    """A part that was made: what was counted, and which of its rows may be compared."""

    counts: Counts
    sample: Sample


class LabelPool:
    """Workers that label together. A context manager. `loading`: seconds that were spent on starting them."""

    def __init__(self, specs: list[ClassifierSpec], batching: Batching, folder: Path):
        self.specs, self.batching, self.folder = specs, batching, folder
        self.workers, self.stack, self.loading = None, contextlib.ExitStack(), 0.0

    def label_parts(self, tables: list[Table], output: OutputSpec, first: int, on_progress: Callable) -> Iterator[Part]:
        """Makes the parts that are missing from number `first` on; yields each.

        `on_progress` gets how many texts of the part each worker has done.
        """
        parts = prefetch(read_parts(tables, output, skip=first * output.rows), queued=1)
        for number, table in enumerate(parts, first):
            if is_whole(self.folder / part_name(number), len(table)):
                continue
            rows = f"rows {number * output.rows:,} to {number * output.rows + len(table) - 1:,}"
            classify = partial(self.classify, rows=rows, on_progress=on_progress)
            labelled, counts = label_table(table, classify, output)
            write_part(self.folder, number, labelled, counts)
            yield Part(counts, pick_sample(number, table, output.text_column, self.specs[0].model))

    def classify(self, texts: list[str], rows: str, on_progress: Callable) -> Answers:
        """Returns what label_table wants of texts. Where workers die on them again and again, halves find the text.

        Raises RunError, which names the rows, if there are more than MOST_DEAD such texts, or no worker starts.
        """
        model, dead, found = self.specs[0].model, {}, []
        probs = np.full((len(texts), len(model.labels)), np.nan, dtype=np.float32)
        waiting = [(np.arange(len(texts)), N_TRIES)]
        while waiting:
            some, left = waiting.pop()
            try:
                shares = self.predict([texts[i] for i in some], on_progress)
            except WorkerFailed as error:
                self.stack.close()
                self.workers = None
                half = len(some) // 2
                if left > 1:
                    say(f"{rows}: {error}; once more")
                    waiting.append((some, left - 1))
                elif half:
                    say(f"{rows}: {error}; halved to find the text")
                    waiting += [(some[half:], 1), (some[:half], 1)]
                else:
                    dead[int(some[0])] = f"{DEAD}: {error}"
                if len(dead) > MOST_DEAD:
                    words = f"{rows}: workers fail on more than {MOST_DEAD} texts"
                    raise RunError(f"{words}: {error}; the parts before stay") from error
                continue
            for indices, predictions in shares:
                probs[some[indices]] = probabilities(predictions.logits, model.problem_type)
                found.append(predictions)
        return Answers(probs, token_counts(*found), dead)

    def predict(self, texts: list[str], on_progress: Callable) -> list:
        """Has the workers answer texts; returns each one's (indices, predictions). Raises WorkerFailed."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".", suffix=TEMPORARY, encoding="utf-8") as file:
            json.dump(texts, file)
            file.flush()
            self.start()
            return self.workers.call(Classifier.predict_share, Path(file.name), self.batching, on_heartbeat=on_progress)

    def start(self) -> None:
        """Starts the workers, unless they run. Raises RunError if they can't be started twice."""
        for left in reversed(range(0 if self.workers else N_TRIES)):
            start = time.monotonic()
            workers = [(spec, number, len(self.specs)) for number, spec in enumerate(self.specs)]
            try:
                self.workers = self.stack.enter_context(ProcessPool(Classifier, workers, STALL_TIMEOUT))
                self.loading += time.monotonic() - start
                return
            except WorkerFailed as error:
                self.stack.close()
                if not left:
                    raise RunError(f"no worker starts: {error}; the parts before stay") from error

    def __enter__(self) -> "LabelPool":
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()


def token_counts(*predictions: Predictions) -> dict[str, int]:
    """Returns the Counts of tokens of all predictions together."""
    return {name: sum(getattr(one, name) for one in predictions) for name in ("tokens", "truncated", "lost")}
