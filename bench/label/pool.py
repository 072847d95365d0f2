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
from bench.label.output import TEMPORARY, Counts, OutputSpec, is_whole, label_table, part_name, read_parts, write_part
from bench.label.sample import Sample, pick_sample
from bench.parity import probabilities
from bench.processes import ProcessPool, WorkerFailed
from utils import RunError, say

N_TRIES = 2  # of a part: then it stops
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

    def classify(self, texts: list[str], rows: str, on_progress: Callable) -> tuple[np.ndarray, dict]:
        """Returns what label_table wants of texts. Raises RunError, which names the rows, if it fails twice."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".", suffix=TEMPORARY, encoding="utf-8") as file:
            json.dump(texts, file)
            file.flush()
            for left in reversed(range(N_TRIES)):
                try:
                    self.start()
                    request = Classifier.predict_share, Path(file.name), self.batching
                    shares = self.workers.call(*request, on_heartbeat=on_progress)
                    break
                except WorkerFailed as error:
                    self.stack.close()
                    self.workers = None
                    if not left:
                        raise RunError(f"{rows} failed {N_TRIES} times: {error}; the parts before stay") from error
                    say(f"{rows}: {error}; once more")
        model = self.specs[0].model
        probs = np.empty((len(texts), len(model.labels)), dtype=np.float32)
        for indices, predictions in shares:
            probs[indices] = probabilities(predictions.logits, model.problem_type)
        return probs, token_counts(*(predictions for _, predictions in shares))

    def start(self) -> None:
        if not self.workers:
            start = time.monotonic()
            workers = [(spec, number, len(self.specs)) for number, spec in enumerate(self.specs)]
            self.workers = self.stack.enter_context(ProcessPool(Classifier, workers, STALL_TIMEOUT))
            self.loading += time.monotonic() - start

    def __enter__(self) -> "LabelPool":
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()


def token_counts(*predictions: Predictions) -> dict[str, int]:
    """Returns the Counts of tokens of all predictions together."""
    return {name: sum(getattr(one, name) for one in predictions) for name in ("tokens", "truncated", "lost")}
