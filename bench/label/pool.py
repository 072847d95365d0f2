"""Parts of the input -> labelled parts, by workers that are started again when they fail."""

import contextlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.label.output import write_part
from bench.label.rows import DEAD, Answers, Counts, OutputSpec, label_table, texts_of
from bench.label.sample import Sample, pick_sample
from bench.label.splits import InputPart
from bench.model.batches import Batching
from bench.model.stream import prefetch
from bench.processes import ProcessPool, WorkerFailed
from bench.tables.items import Item
from bench.tables.storage import Location
from runtimes.classifier import Classifier, ClassifierSpec, Predictions
from utils import RunError, say

N_TRIES = 2  # of a part, then its halves; and of what a Ray actor does
MAX_FAILED_TEXTS = 3  # texts of a part on which workers die: with more it is not the texts
STALL_TIMEOUT = 600  # seconds without a heartbeat of a worker: a batch takes seconds at most


@dataclass(frozen=True)
class WrittenPart:
    """A part that was made: the number of its file and of its first row, whether it is the last of its split.

    counts: what was counted; sample: which of its rows may be compared.
    """

    file: int
    first: int
    last: bool
    counts: Counts
    sample: Sample


class LabelPool:
    """Workers that label together. A context manager.

    loading: seconds that were spent on starting them; busy: seconds in which they had a batch to run, on average;
    answered: rows of the parts that are labelled, though perhaps not written yet.
    """

    def __init__(self, specs: list[ClassifierSpec], batching: Batching, folder: Location):
        self.specs, self.batching, self.folder = specs, batching, folder
        self.workers, self.stack = None, contextlib.ExitStack()
        self.loading, self.busy, self.answered = 0.0, 0.0, 0

    def label_parts(
        self, parts: Iterator[InputPart], output: OutputSpec, on_progress: Callable | None = None
    ) -> Iterator[WrittenPart]:
        """Labels and writes parts; yields each. The next is read, and the one before written, while the model runs.

        `on_progress` gets how many texts of the part each worker has done. The first is yielded before the second runs:
        so it can be checked.
        """
        texts = ((part, texts_of(part.table, output)) for part in parts)
        with ThreadPoolExecutor(1) as writer:
            waiting = deque()
            for number, (part, own) in enumerate(prefetch(texts, queued=1)):
                answers = self.classify(own, part.words, on_progress)
                self.answered += len(part.table)
                waiting.append(writer.submit(self.write, part, answers, output))
                while len(waiting) > (number > 0):
                    yield waiting.popleft().result()
            for written in waiting:
                yield written.result()

    def write(self, part: InputPart, answers: Answers, output: OutputSpec) -> WrittenPart:
        """Writes a labelled part."""
        labelled, counts = label_table(part.table, answers, output)
        write_part(self.folder, part, labelled, counts, output.job)
        sample = pick_sample(part.name, part.table, output.text_column, self.specs[0].model)
        return WrittenPart(part.file, part.first, part.last, counts, sample)

    def classify(self, texts: list[Item], rows: str, on_progress: Callable | None) -> Answers:
        """Returns what the model says of texts. Where workers die on them again and again, halves find the text.

        Raises RunError, which names the rows, if there are more than MAX_FAILED_TEXTS such texts, or no worker starts.
        """
        model, dead, found = self.specs[0].model, {}, []
        probs = np.full((len(texts), len(model.labels)), np.nan, dtype=np.float32)
        lengths = np.zeros(len(texts), int)
        waiting = [(np.arange(len(texts)), N_TRIES)] if texts else []
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
                if len(dead) > MAX_FAILED_TEXTS:
                    words = f"{rows}: workers fail on more than {MAX_FAILED_TEXTS} texts"
                    raise RunError(f"{words}: {error}; the parts before stay") from error
                continue
            for indices, predictions in shares:
                probs[some[indices]] = predictions.answers
                if predictions.lengths is not None:
                    lengths[some[indices]] = predictions.lengths
                found.append(predictions)
                self.busy += (predictions.end - predictions.start - predictions.waited) / len(self.specs)
        return Answers(probs, lengths, token_counts(*found), dead)

    def predict(self, texts: list[str], on_progress: Callable | None) -> list:
        """Has the workers answer texts; returns each one's (indices, predictions). Raises WorkerFailed."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            file.write(json.dumps(texts))  # dump() is ten times as slow
            file.flush()
            self.start()
            return self.workers.call(Classifier.predict_share, Path(file.name), self.batching, on_heartbeat=on_progress)

    def start(self) -> None:
        """Starts the workers, unless they run. Raises RunError if they can't be started twice."""
        for left in reversed(range(0 if self.workers else N_TRIES)):
            start = time.monotonic()
            workers = [(spec, number, len(self.specs)) for number, spec in enumerate(self.specs)]
            try:
                self.workers = self.stack.enter_context(ProcessPool(Classifier, workers, STALL_TIMEOUT, forked=True))
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
