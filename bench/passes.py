"""What a worker does for a cell, and what of it is timed."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.batches import deal_shards, make_batches, pad, padded_tokens, round_up
from bench.inputs import load_inputs
from bench.stream import prefetch, share_of, token_batches
from bench.texts import evenly_spaced, load_tokenizer, tokenize
from bench.workers import beat
from runtimes import VARIANTS
from runtimes.runner import Place, Runner

LATENCY_BATCHES = 200  # on a GPU, where a pass need not wait for each batch, these are timed one by one


@dataclass(frozen=True)
class Cell:
    """One combination that is measured, which gives one row.

    `size`: texts in a batch (in order `tokens`: tokens). `timed`: `forward`, the forward passes alone, or `texts`, from
    the texts to the logits on the host.
    """

    variant: str
    workers: int
    size: int
    order: str
    timed: str = "forward"


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a sweep: the model's folder, what the variant loads, where, and the inputs."""

    model: Path
    variant: str
    source: Path
    place: Place
    inputs: Path


def load_variant(name: str, source: Path, place: Place, limit: int) -> tuple[Runner, Callable]:
    """Loads a variant into this process.

    Returns its runner, and what makes lengths, at most `limit`, fewer where each new shape costs set-up.
    """
    variant = VARIANTS[name]
    if place.gpu is None:
        os.environ["RAYON_NUM_THREADS"] = str(place.threads)  # the tokenizer's
    if variant.export:
        os.environ["USE_TORCH"] = "0"  # else transformers, here for its tokenizer, imports it: seconds
    runner, rounds = variant.load(source, place), variant.plans_shapes(place.gpu)
    return runner, lambda lengths: round_up(lengths, limit) if rounds else lengths


class Worker:
    """A loaded variant in a process of its own, with its share of one cell after another."""

    def __init__(self, number: int, job: Job):
        self.number, self.job, self.gpu = number, job, job.place.gpu
        self.inputs = load_inputs(job.inputs)
        self.runner, self.shape_lengths = load_variant(job.variant, job.source, job.place, self.inputs.about["limit"])
        self.widths = self.shape_lengths(self.inputs.lengths)
        self.warm: set[tuple[int, int]] = set()  # the shapes that were run
        self.tokenizer = None
        self.forget()

    def forget(self) -> None:
        """Gives the memory of the last cell back; on a GPU every shape is warmed up again then."""
        self.cell, self.texts, self.batches, self.prepared, self.outputs, self.latencies = None, [], [], [], [], []
        self.padded = 0
        if self.gpu is None:
            with contextlib.suppress(OSError):  # not Linux, or not allowed: memory is the peak of the whole life then
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
        else:
            import torch

            torch.cuda.empty_cache()
            self.warm.clear()

    def pad(self, rows: dict[str, list], width: int) -> dict[str, np.ndarray]:
        """Pads a batch, and counts its tokens."""
        inputs = pad(rows, self.inputs.about["fills"], self.inputs.about["side"], width)
        self.padded += inputs["input_ids"].size
        return inputs

    # ------------------------------------------------------------------------------------------ the steps of a cell

    def prepare(self, cell: Cell) -> None:
        """Takes this worker's share of a cell, and warms up each shape that it has not run yet."""
        self.cell = cell
        if cell.timed == "texts":
            self.prepare_texts()
            return
        batches = make_batches(self.widths, cell.size, cell.order)
        self.batches = deal_shards(self.widths, batches, cell.workers)[self.number]
        by_shape = {}
        for batch in self.batches:
            inputs = self.pad(self.inputs.rows(batch), int(self.widths[batch].max()))
            self.prepared.append(self.runner.prepare(inputs))
            by_shape[inputs["input_ids"].shape] = self.prepared[-1]
            beat()
        self.warm_up(by_shape)

    def warm_up(self, by_shape: dict[tuple[int, int], object]) -> None:
        """Warms up the new shapes, the largest first, so that memory grows once."""
        new = sorted(by_shape.keys() - self.warm, key=lambda shape: (shape[0] * shape[1], shape[1]), reverse=True)
        for shape in new:
            self.runner.warm_up(by_shape[shape])
            beat()
        self.warm.update(new)
        self.runner.synchronize()

    def run(self) -> tuple[float, float]:
        """Makes one pass; returns its start and end in seconds of the machine's monotonic clock."""
        if self.cell.timed == "texts":
            return self.run_texts()
        runner, outputs, latencies = self.runner, self.outputs, self.latencies
        outputs.clear()
        runner.synchronize()
        start = before = time.monotonic()
        for batch in self.prepared:
            outputs.append(runner.forward(batch))
            after = time.monotonic()
            latencies.append(after - before)
            before = after
            beat(len(outputs))
        runner.synchronize()
        return start, time.monotonic()

    def report(self) -> dict:
        """Returns what the last pass left, and forgets the cell.

        `kept`: [(indices, logits)] of the checked texts; `latencies`: seconds of single batches; `memory`: MiB;
        `padded`: tokens with the padding.
        """
        memory = used_memory_mib(self.gpu)
        kept = []
        for batch, outputs in zip(self.batches, self.outputs, strict=True):
            here = np.isin(batch, self.inputs.checked)
            logits = outputs if self.cell.timed == "texts" else self.runner.fetch(outputs)
            kept.append((batch[here], logits[here]))
        if self.gpu is not None:
            self.latencies = [self.time_batch(i) for i in evenly_spaced(len(self.prepared), LATENCY_BATCHES)]
        answer = {"kept": kept, "latencies": self.latencies, "memory": memory, "padded": self.padded}
        self.forget()
        return answer

    def time_batch(self, i: int) -> float:
        start = time.monotonic()
        self.runner.forward(self.prepared[i])
        self.runner.synchronize()
        return time.monotonic() - start

    # ------------------------------------------------------------------------------------------- from texts to logits

    def prepare_texts(self) -> None:
        """Takes about as many characters as every other worker, loads the tokenizer, and warms up.

        On a GPU a whole pass follows, which allocates all inputs.
        """
        texts = self.inputs.texts()
        self.indices = share_of(texts, self.number, self.cell.workers)
        self.texts = [texts[i] for i in self.indices]
        if self.runner.answer:
            self.runner.answer(self.texts[: self.cell.size], self.cell.size, self.inputs.about["limit"], beat)
            lengths = self.inputs.lengths[self.indices]
            self.padded = padded_tokens(lengths, make_batches(lengths, self.cell.size, self.cell.order)).sum()
            return
        self.tokenizer = self.tokenizer or load_tokenizer(self.job.model)
        by_shape = {}
        for _, inputs in self.padded_batches():
            by_shape[inputs["input_ids"].shape] = self.runner.prepare(inputs)
            beat()
        self.warm_up(by_shape)
        if self.gpu is not None:
            self.run_texts()

    def run_texts(self) -> tuple[float, float]:
        if self.runner.answer:
            start = time.monotonic()
            self.outputs = [self.runner.answer(self.texts, self.cell.size, self.inputs.about["limit"], beat)]
            self.batches = [self.indices]
            return start, time.monotonic()
        self.padded = 0
        start = time.monotonic()
        done = []  # with the inputs: a GPU may still read them
        for batch, inputs in prefetch((batch, self.runner.prepare(inputs)) for batch, inputs in self.padded_batches()):
            done.append((batch, inputs, self.runner.forward(inputs)))
            beat(len(done))
        self.runner.synchronize()
        self.batches = [batch for batch, _, _ in done]
        self.outputs = [self.runner.fetch(logits) for _, _, logits in done]
        return start, time.monotonic()

    def padded_batches(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields (indices, inputs) of each batch, made from the texts."""
        limit, names = self.inputs.about["limit"], list(self.inputs.ids)
        made = token_batches(
            self.texts,
            lambda texts: tokenize(self.tokenizer, texts, limit, names),
            (self.cell.size, self.cell.order),
            self.shape_lengths,
        )
        for batch, rows, width in made:
            yield self.indices[batch], self.pad(rows, width)


def used_memory_mib(gpu: int | None) -> float:
    """Returns MiB: on a CPU this process's peak resident set since `forget`, on a GPU all that is in use on it now.

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
