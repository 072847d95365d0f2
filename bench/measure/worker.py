"""What a worker process does for a cell, and what of it is timed."""

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.measure.cells import Cell
from bench.measure.token_cache import load_tokens
from bench.model.batches import Batching, balance_shards, make_batches, padded_tokens
from bench.model.stream import share_of
from bench.processes import heartbeat
from bench.tables.datasets import evenly_spaced
from runtimes.classifier import Classifier, ClassifierSpec

N_LATENCIES = 200  # on a GPU, where a pass need not wait for each batch, so many are timed one by one


@dataclass(frozen=True)
class Report:
    """What the last pass of a cell leaves."""

    items: np.ndarray  # the item of each value: of those items of the sample that this worker had
    values: np.ndarray  # of the stage forward outputs [rows, n], else answers [items, labels]
    latencies: list[float]  # seconds of single batches
    memory_mib: float
    padded_tokens: int  # tokens with padding


class Worker:
    """A loaded variant in a process of its own, with its share of one cell after another."""

    def __init__(self, number: int, spec: ClassifierSpec, tokens_folder: Path, workers: int = 1):
        self.number, self.gpu = number, spec.device.gpu
        self.tokens = load_tokens(tokens_folder)
        self.classifier = Classifier(spec, number, workers)
        self.runner = self.classifier.runner
        self.widths = self.classifier.padded_lengths(self.tokens.lengths)
        self.warm: set[tuple[int, int]] = set()  # the shapes that were run
        self.release()

    def release(self) -> None:
        """Gives the memory of the last cell back; on a GPU every shape is warmed up again then."""
        self.cell, self.batches, self.prepared, self.outputs, self.latencies = None, [], [], [], []
        self.texts, self.indices, self.padded_tokens = [], np.empty(0, int), 0
        if self.gpu is None:
            with contextlib.suppress(OSError):  # not Linux, or not allowed: memory is the peak of the whole life then
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
        else:
            import torch

            torch.cuda.empty_cache()
            self.warm.clear()

    # ------------------------------------------------------------------------------------------ the steps of a cell

    def prepare(self, cell: Cell) -> None:
        """Takes this worker's share of a cell, and warms up each shape that it has not run yet."""
        self.cell = cell
        if cell.stage == "end-to-end":
            self.prepare_texts()
            return
        batches = make_batches(self.widths, cell.batching, self.tokens.groups)
        self.batches = balance_shards(self.widths, batches, cell.workers)[self.number]
        by_shape = {}
        for batch in self.batches:
            inputs = self.classifier.model.pad(self.tokens.rows(batch), to_length=int(self.widths[batch].max()))
            self.padded_tokens += inputs["input_ids"].size
            self.prepared.append(self.runner.prepare(inputs))
            by_shape[inputs["input_ids"].shape] = self.prepared[-1]
            heartbeat()
        self.warm_up(by_shape)

    def prepare_texts(self) -> None:
        """Takes about as many characters as every other worker, and warms up.

        On a GPU a whole pass follows, which allocates all inputs.
        """
        texts, batching = self.tokens.texts(), self.cell.batching
        self.indices = share_of(texts, self.number, self.cell.workers)
        self.texts = [texts[i] for i in self.indices]
        if self.classifier.takes_texts:
            self.classifier.predict(self.texts[: batching.batch_size], batching)
            return
        by_shape = {}
        for batch in self.classifier.batches(self.texts, batching):
            by_shape[batch.inputs["input_ids"].shape] = self.runner.prepare(batch.inputs)
            heartbeat()
        self.warm_up(by_shape)
        if self.gpu is not None:
            self.run()

    def warm_up(self, by_shape: dict[tuple[int, int], object]) -> None:
        """Warms up the new shapes, the largest first, so that memory grows once."""
        new = sorted(by_shape.keys() - self.warm, key=lambda shape: (shape[0] * shape[1], shape[1]), reverse=True)
        for shape in new:
            self.runner.warm_up(by_shape[shape])
            heartbeat()
        self.warm.update(new)
        self.runner.synchronize()

    def run(self) -> tuple[float, float]:
        """Makes one pass; returns its start and end in seconds of the machine's monotonic clock."""
        if self.cell.stage == "end-to-end":
            self.outputs = predictions = self.classifier.predict(self.texts, self.cell.batching)
            return predictions.start, predictions.end
        runner, outputs, latencies = self.runner, self.outputs, self.latencies
        outputs.clear()
        runner.synchronize()
        start = before = time.monotonic()
        for batch in self.prepared:
            outputs.append(runner.forward(batch))
            after = time.monotonic()
            latencies.append(after - before)
            before = after
            heartbeat(len(outputs))
        runner.synchronize()
        return start, time.monotonic()

    def report(self) -> Report:
        """Returns what the last pass left, and releases the cell."""
        memory, padded = used_memory_mib(self.gpu), self.padded_tokens
        if self.cell.stage == "end-to-end":
            items, values = self.indices, self.outputs.answers
            padded = self.outputs.padded_tokens or self.padded_by_the_runtime()
        else:
            items = self.tokens.items[np.concatenate([np.empty(0, int), *self.batches])]
            outputs = [self.classifier.to_host(one) for one in self.outputs]
            values = np.concatenate([np.empty((0, len(self.classifier.model.labels))), *outputs])
        sampled = np.isin(items, self.tokens.sample)
        if self.gpu is not None:
            self.latencies = [self.time_batch(i) for i in evenly_spaced(len(self.prepared), N_LATENCIES)]
        report = Report(items[sampled], values[sampled], self.latencies, memory, padded)
        self.release()
        return report

    def predict_share(self, file: Path, batching: Batching):
        """Runs the model over this worker's share of other texts, see Classifier.predict_share."""
        return self.classifier.predict_share(file, batching)

    def padded_by_the_runtime(self) -> int:
        """Counts the tokens that a runtime which takes texts has made of them, if it pads as transformers does."""
        lengths = self.tokens.lengths[np.isin(self.tokens.items, self.indices)]
        return int(padded_tokens(lengths, make_batches(lengths, self.cell.batching)).sum())

    def time_batch(self, i: int) -> float:
        start = time.monotonic()
        self.runner.forward(self.prepared[i])
        self.runner.synchronize()
        return time.monotonic() - start


def used_memory_mib(gpu: int | None) -> float:
    """Returns MiB: on a CPU this process's peak resident set since `release`, on a GPU all that is in use on it now.

    onnxruntime keeps its GPU memory between cells, so later cells show at least what earlier ones needed.
    """
    if gpu is not None:
        import torch

        free, total = torch.cuda.mem_get_info(gpu)
        return (total - free) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if sys.platform == "darwin" else kib / 2**10  # macOS counts in bytes
