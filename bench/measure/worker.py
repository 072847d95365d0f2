"""What a worker process does for a cell, and which part of it is timed."""

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.measure.cells import Cell
from bench.measure.tokens import TokenizedTexts
from bench.model.batches import balance_shards, make_batches, padded_tokens
from bench.model.stream import share_of
from bench.processes import heartbeat
from bench.tables.datasets import evenly_spaced
from runtimes.classifier import Classifier, ClassifierSpec

N_LATENCIES = 200  # batches timed one by one on a GPU, where a pass need not wait for each batch


@dataclass(frozen=True)
class Report:
    """What a worker returns for a cell, from its last pass."""

    items: np.ndarray  # of each value; stage forward: its owner, see Task.answers. Those of this worker in the sample
    values: np.ndarray  # stage forward: outputs [rows, n]; otherwise answers [items, labels]
    latencies: list[float]  # seconds of single batches
    memory_mib: float
    padded_tokens: int  # tokens including padding


class Worker(Classifier):
    """A classifier in its own process; takes its share of one cell after another."""

    def __init__(self, number: int, spec: ClassifierSpec, tokens: TokenizedTexts, workers: int = 1):
        super().__init__(spec, number, workers)
        self.gpu, self.tokens = spec.device.gpu, tokens
        self.widths = self.padded_lengths(tokens.lengths)
        self.warm: set[tuple[int, int]] = set()  # shapes that have run
        self.release()

    def release(self) -> None:
        """Free the memory of the last cell. On a GPU every shape is warmed up again afterwards."""
        self.cell, self.shard, self.prepared, self.outputs, self.latencies = None, [], [], [], []
        self.texts, self.indices, self.padded_tokens = [], np.empty(0, int), 0
        if self.gpu is None:
            with contextlib.suppress(OSError):  # not Linux, or not permitted: memory is then the peak of the process
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
        else:
            import torch

            torch.cuda.empty_cache()
            self.warm.clear()

    def prepare(self, cell: Cell) -> None:
        """Take this worker's share of a cell, and warm up each shape that has not run yet."""
        self.cell = cell
        if cell.stage == "end-to-end":
            self.prepare_texts()
            return
        batches = make_batches(self.widths, cell.batching, self.tokens.groups)
        self.shard = balance_shards(self.widths, batches, cell.workers)[self.number]
        by_shape = {}
        for batch in self.shard:
            inputs = self.model.pad(self.tokens.rows(batch), to_length=int(self.widths[batch].max()))
            self.padded_tokens += inputs["input_ids"].size
            self.prepared.append(self.runner.prepare(inputs))
            by_shape[inputs["input_ids"].shape] = self.prepared[-1]
            heartbeat()
        self.warm_up(by_shape)

    def prepare_texts(self) -> None:
        """Take about as many characters as every other worker, and warm up; on a GPU with a whole pass."""
        batching = self.cell.batching
        self.indices = share_of(self.tokens.texts, self.number, self.cell.workers)
        self.texts = [self.tokens.texts[i] for i in self.indices]
        if self.takes_texts:
            self.predict(self.texts[: batching.batch_size], batching)
            return
        by_shape = {}
        for batch in self.batches(self.texts, batching):
            by_shape[batch.inputs["input_ids"].shape] = self.runner.prepare(batch.inputs)
            heartbeat()
        self.warm_up(by_shape)
        if self.gpu is not None:
            self.run()  # allocates all inputs

    def warm_up(self, by_shape: dict[tuple[int, int], object]) -> None:
        """Warm up the new shapes, the largest first, so that memory grows only once."""
        new = sorted(by_shape.keys() - self.warm, key=lambda shape: (shape[0] * shape[1], shape[1]), reverse=True)
        for shape in new:
            self.runner.warm_up(by_shape[shape])
            heartbeat()
        self.warm.update(new)
        self.runner.synchronize()

    def run(self) -> tuple[float, float]:
        """Make one pass. Return its start and end in seconds of the machine's monotonic clock."""
        if self.cell.stage == "end-to-end":
            self.outputs = predictions = self.predict(self.texts, self.cell.batching)
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
        """Return the results of the last pass, and release the cell."""
        memory = used_memory_mib(self.gpu)
        padded = self.padded_tokens
        if self.cell.stage == "end-to-end":
            items = owners = self.indices
            values = self.outputs.answers
            padded = self.outputs.padded_tokens
            if self.takes_texts:  # estimated: all libraries pad each batch to its longest text
                lengths = self.tokens.lengths[np.isin(self.tokens.items, self.indices)]
                lengths = np.sort(lengths) if self.runner.sorts else lengths
                padded = int(padded_tokens(lengths, make_batches(lengths, self.cell.batching)).sum())
        else:
            rows = np.concatenate([np.empty(0, int), *self.shard])
            items, owners = self.tokens.items[rows], self.tokens.owners[rows]
            outputs = [self.to_host(batch_outputs) for batch_outputs in self.outputs]
            values = np.concatenate([np.empty((0, self.model.task.n_outputs)), *outputs])
        sampled = np.isin(items, self.tokens.sample)
        if self.gpu is not None:
            self.latencies = [self.time_batch(i) for i in evenly_spaced(len(self.prepared), N_LATENCIES)]
        report = Report(owners[sampled], values[sampled], self.latencies, memory, padded)
        self.release()
        return report

    def time_batch(self, i: int) -> float:
        start = time.monotonic()
        self.runner.forward(self.prepared[i])
        self.runner.synchronize()
        return time.monotonic() - start


def used_memory_mib(gpu: int | None) -> float:
    """Return MiB: on a CPU this process's peak resident set since `release`, on a GPU all memory in use on it now.

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
    return kib / 2**20 if sys.platform == "darwin" else kib / 2**10  # macOS reports bytes
