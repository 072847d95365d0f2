"""Parts of the input -> labelled parts, by workers that are restarted if they fail."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.label.folder import write_part
from bench.label.receipt import Sample, pick_sample
from bench.label.rows import WORKER_FAILED, Answers, OutputSpec, label_table
from bench.label.splits import Footer, InputPart
from bench.model.batches import Batching
from bench.model.stream import prefetch
from bench.processes import ProcessPool, WorkerFailed
from bench.tables.items import Item, items_of
from bench.tables.storage import Location
from runtimes.classifier import Classifier, ClassifierSpec
from utils import RunError, say

N_TRIES = 2  # for a part, for starting workers, and for a Ray actor's calls
MAX_FAILED_TEXTS = 3  # per part: if workers fail on more, the texts are not the cause
STALL_TIMEOUT = 600  # seconds without a heartbeat; a batch takes seconds at most
KEPT = "completed parts are kept; rerun the same command to resume"


class LabelPool(contextlib.AbstractContextManager):
    """Workers that label together."""

    def __init__(self, specs: list[ClassifierSpec], batching: Batching, folder: Location):
        self.specs, self.batching, self.folder = specs, batching, folder
        self.workers = None
        self.loading = 0.0  # seconds spent on starting workers
        self.busy = 0.0  # seconds in which a worker had a batch to run, mean over the workers
        self.answered = 0  # rows of the parts that are labelled, though perhaps not written yet
        self.written = 0  # rows of the parts that are written

    def label_parts(
        self, parts: Iterator[InputPart], output: OutputSpec, on_progress: Callable | None = None
    ) -> Iterator[tuple[Footer, Sample]]:
        """Label and write parts; yield the footer of each, and rows to compare.

        Reading ahead and writing overlap with the model. `on_progress` gets how many texts each worker has done.
        """
        with_items = ((part, items_of(part.table, output.text_columns)) for part in parts)
        with ThreadPoolExecutor(1) as writer:
            writing = deque()
            for number, (part, items) in enumerate(prefetch(with_items, queued=1)):
                texts = [item for item in items if item is not None]
                answers = self.classify(texts, str(part), on_progress)
                self.answered += len(part.table)
                writing.append(writer.submit(self.write, part, items, answers, output))
                max_pending = min(number, 1)  # the first part is checked before the second is labelled
                while len(writing) > max_pending:
                    yield writing.popleft().result()
            for written in writing:
                yield written.result()

    def write(
        self, part: InputPart, items: list[Item | None], answers: Answers, output: OutputSpec
    ) -> tuple[Footer, Sample]:
        labelled, counts = label_table(part.table, items, answers, output)
        footer = write_part(self.folder, part, labelled, counts)
        self.written += footer.rows
        return footer, pick_sample(part, items, self.specs[0].model)

    def classify(self, texts: list[Item], rows: str, on_progress: Callable | None) -> Answers:
        """Return the answers for texts. If workers fail on them repeatedly, halve them until the text is found.

        Raises RunError, which names the `rows`, if there are more than MAX_FAILED_TEXTS such texts.
        """
        values = np.full((len(texts), len(self.specs[0].model.labels)), np.nan, dtype=np.float32)
        lengths = np.zeros(len(texts), int)
        counts, failed = Counter(), {}
        waiting = [(np.arange(len(texts)), N_TRIES)] if texts else []
        while waiting:
            group, tries = waiting.pop()
            if self.workers is None:
                self.start()
            chosen = [texts[i] for i in group]
            try:
                shares = self.workers.call(Classifier.predict_share, chosen, self.batching, on_heartbeat=on_progress)
            except WorkerFailed as error:
                self.stop()
                half = len(group) // 2
                if tries > 1:
                    say(f"{rows}: {error}; retrying")
                    waiting.append((group, tries - 1))
                elif half:
                    say(f"{rows}: {error}; halving to find the text that causes it")
                    waiting += [(group[half:], 1), (group[:half], 1)]
                else:
                    failed[int(group[0])] = f"{WORKER_FAILED}: {error}"
                if len(failed) > MAX_FAILED_TEXTS:
                    message = f"{rows}: workers fail on more than {MAX_FAILED_TEXTS} texts: {error}"
                    raise RunError(f"{message}. {KEPT.capitalize()}") from error
                continue
            for indices, predictions in shares:
                values[group[indices]] = predictions.answers
                lengths[group[indices]] = predictions.lengths
                counts["tokens"] += predictions.tokens
                counts["texts_truncated"] += predictions.truncated
                counts["tokens_lost"] += predictions.lost
                self.busy += (predictions.end - predictions.start - predictions.waited) / len(self.specs)
        return Answers(values, lengths, dict(counts), failed)

    def start(self) -> None:
        """Start the workers. Raises RunError if that fails twice."""
        for tries in reversed(range(N_TRIES)):
            start = time.monotonic()
            arguments = [(spec, number, len(self.specs)) for number, spec in enumerate(self.specs)]
            try:
                self.workers = ProcessPool(Classifier, arguments, STALL_TIMEOUT, forked=True)
                self.loading += time.monotonic() - start
                return
            except WorkerFailed as error:
                if not tries:
                    raise RunError(f"workers cannot be started: {error}. {KEPT.capitalize()}") from error

    def stop(self) -> None:
        if self.workers:
            self.workers.kill()
            self.workers = None

    def __exit__(self, *_) -> None:
        self.stop()
