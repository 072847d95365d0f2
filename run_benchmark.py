"""Finds the fastest way to run an encoder classifier on this machine, and whether the fast way is still right.

    python run_benchmark.py --model onnx-fp16 --device gpu
    python run_benchmark.py --model torch,torch-bf16,onnx --device cpu --model-id random-roberta-base --limit 256

Every combination of variant, workers, batch size and order is a cell; a cell is measured as messages/s and gives a
row: printed on standard output, saved under results/. Everything else (the card, notes, progress, the summary) goes to
standard error.

What is timed: the forward passes over all batches of a cell, from the first worker's start to the last worker's end,
on one clock, with the device synchronized at both ends. Left out: tokenizing (its own speed is on the card), padding,
moving to the device, loading, compiling, and the warm-up. A cell repeats whole passes until --min-time seconds are
measured; its row has the median, the minimum and the maximum. The fastest cell of each variant and worker count is
timed once more from the texts themselves to the logits on the host, tokenizing, padding and moving while the model
runs: `end_to_end`, in messages/s.

How far it is from the limit: `tflops` counts the FLOPs of the real tokens (utils.useful_flops), `mfu` is their share of
what large matrix products reach on the whole device in the variant's precision, measured before the first cell.

What is checked: 256 texts, evenly spaced. Their probabilities, taken from the last timed pass, are compared with those
of the original model in eager FP32 PyTorch: `max_diff` is the largest difference of any label's probability, `flips`
the share of changed decisions. A row is `ok` when it ran and these outputs are finite; whether it is right, these two
say.

Exit code: 0, 1 if a cell failed (its row or a line says why) or a row could not be saved, 2 for wrong usage or input,
130 after Ctrl-C.
"""

import contextlib
import hashlib
import itertools
import json
import os
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
import variants
from utils import UserError, say

CHECK_TEXTS = 256
CHUNK = 2048  # texts that are tokenized at once while the model runs
QUEUED_BATCHES = 16  # that wait for the model, at most
POLL = 0.2  # seconds between two looks at the workers
GPU_POLL = 0.02  # and, while they run, at the GPU's clock
BUSY = 0.1  # a share of the device kept busy by others from which on the card says so
BUSY_MIB = 1024  # and in use on a GPU; its desktop takes less
# what makes a GPU's clock lower than its load and its settings ask for, by NVML's nvmlClocksEventReasons
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
OUT_OF_MEMORY = "OutOfMemory", "out of memory", "can't allocate memory", "Failed to allocate memory", "ALLOC_FAILED"
DAY = 24 * 60 * 60  # seconds
LATENCY_BATCHES = 200  # on a GPU, where a pass does not wait for each batch, these are timed one by one
# the columns of the printed table between variant and status, and how they are printed
PRINTED = {
    **dict.fromkeys(("workers", "threads", "size", "order"), ""),
    **{"messages/s": ".1f", "min": ".1f", "max": ".1f", "/thread": ".1f", "passes": "", "padding": ".3f"},
    **{"tflops": ".3g", "mfu": ".1%", "end_to_end": ".1f"},
    **{"p50_ms": ".1f", "p99_ms": ".1f", "memory_mib": ".0f", "max_diff": ".2g", "flips": ".3%"},
}


@dataclass(frozen=True)
class Cell:
    """One combination that is measured: a variant's name, workers, batch size (in order `tokens`: of tokens) and
    order.
    """

    variant: str
    workers: int
    size: int
    order: str


@dataclass(frozen=True)
class Inputs:
    """The texts' token ids in one run (cut by `lengths`), the indices of the checked texts, and what padding needs:
    the most tokens of a text, and whether batches are to have few shapes.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    pad_id: int
    checked: np.ndarray
    limit: int = utils.MAX_TOKENS
    few_shapes: bool = False

    def padded(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask of a batch, see utils.pad_batch."""
        rows = [self.token_ids[self.ends[i] - self.lengths[i] : self.ends[i]] for i in batch]
        return utils.pad_batch(rows, self.pad_id, self.widths[batch].max())

    @cached_property
    def widths(self) -> np.ndarray:
        """What each text's length counts as in the shape of its batch."""
        return utils.few_lengths(self.lengths, self.limit) if self.few_shapes else self.lengths

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each text ends in `token_ids`."""
        return np.cumsum(self.lengths)


@dataclass(frozen=True)
class Sweep:
    """What all cells of a run share: the inputs, the reference they are checked against, and how to measure."""

    folder: Path  # the model's
    texts: list[str]
    inputs: Inputs
    flops: float  # of one pass over the real tokens
    reference: np.ndarray  # probabilities [checked texts, labels]
    problem: str
    sources: dict[str, Path]
    place: variants.Place
    peaks: dict[str, float]  # precision -> FLOP/s
    min_time: float
    timeout: float = 0  # seconds without a sign of life of a worker, 0 for no limit
    gpu: object = None  # NVML's handle
    seconds: dict[tuple[Cell, str], list[float]] = field(default_factory=dict)  # of the passes, by cell and step


@dataclass(frozen=True)
class TextShard:
    """A worker's texts with their indices in the dataset, the model's folder for the tokenizer, and how to batch."""

    folder: Path
    indices: np.ndarray
    texts: list[str]
    size: int
    order: str


class CellFailed(Exception):
    """A cell has no figures; the message is its row's status."""


# --------------------------------------------------------------------------------------------- the workers' side


def serve(connection: Connection, name: str, source: Path, place: variants.Place, alive) -> None:
    """A worker: receives the inputs, loads a variant once, then answers each request (a step, its argument) with
    (error, value), and keeps the time of its last sign of life (a batch prepared or begun) in `alive`, a shared double.

    A step is a method of Steps: `release`, `prepare`, `run` and `report`, or `prepare_texts` and `run_texts`. Ends when
    the parent does, and after an error, since memory or a GPU may not be usable then.
    """
    variants.quiet_process()
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            if place.gpu is None:
                os.environ["RAYON_NUM_THREADS"] = str(place.threads)  # the tokenizers'
            if variants.VARIANTS[name].runtime != "torch":
                os.environ["USE_TORCH"] = "0"  # else transformers, here for its tokenizer, imports it: seconds
            _, inputs = connection.recv()
            runner = variants.load(name, source, place)

            def noted(function):
                def note_and_call(*arguments):
                    alive.value = time.monotonic()
                    return function(*arguments)

                return note_and_call

            parts = ("prepare", "forward", "warm_up")
            runner = replace(runner, **{part: noted(getattr(runner, part)) for part in parts})
            steps = Steps(runner, place, inputs)
            value = None
            while True:
                connection.send((None, value))
                step, argument = connection.recv()
                value = getattr(steps, step)(argument)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            connection.send((status_of(error), None))


class Steps:
    """What a worker does, over one state: its batches, their outputs and their latencies."""

    def __init__(self, runner: variants.Runner, place: variants.Place, inputs: Inputs):
        self.runner, self.place, self.inputs = runner, place, inputs
        self.batches, self.prepared, self.outputs, self.latencies = [], [], [], []
        self.warm: set[tuple[int, int]] = set()  # the shapes that were run
        self.tokenizer = None

    def warm_up(self, by_shape: dict[tuple[int, int], object]) -> None:
        """Warms up each shape that this worker has not run yet, the largest first: memory grows once."""
        new = sorted(by_shape.keys() - self.warm, key=lambda shape: (shape[0] * shape[1], shape[1]), reverse=True)
        for shape in new:
            self.runner.warm_up(by_shape[shape])
        self.warm.update(new)
        self.runner.synchronize()

    def release(self, _=None) -> None:
        """Forgets the last cell; on a GPU every shape is warmed up again, since torch gives its memory back."""
        for state in (self.batches, self.prepared, self.outputs, self.latencies):
            state.clear()
        if self.place.gpu is not None:
            self.warm.clear()
        release_memory(self.place.gpu)

    def prepare(self, shard: list[np.ndarray]) -> None:
        """Pads and moves the batches, and warms up: of a shape the batch of most real tokens, which needs most memory
        where padding is not computed.
        """
        padded = [self.inputs.padded(batch) for batch in shard]
        self.batches.extend(shard)
        self.prepared.extend(self.runner.prepare(*arrays) for arrays in padded)
        fullest_last = np.argsort([mask.sum() for _, mask in padded])
        self.warm_up({padded[i][0].shape: self.prepared[i] for i in fullest_last})

    def run(self, _=None) -> tuple[float, float]:
        """One pass; returns its start and end in seconds of the machine's monotonic clock."""
        runner, outputs, latencies = self.runner, self.outputs, self.latencies
        outputs.clear()
        runner.synchronize()
        start = before = time.monotonic()
        for batch in self.prepared:
            outputs.append(runner.forward(batch))
            after = time.monotonic()
            latencies.append(after - before)
            before = after
        runner.synchronize()
        return start, time.monotonic()

    def report(self, _=None) -> dict:
        """What the passes left: the checked texts' indices and logits, latencies in seconds, memory in MiB."""
        memory = used_memory_mib(self.place.gpu)
        checked = np.zeros(len(self.inputs.lengths), dtype=bool)
        checked[self.inputs.checked] = True
        kept = []
        for batch, logits in zip(self.batches, self.outputs, strict=True):
            here = checked[batch]
            kept.append((batch[here], self.runner.fetch(logits)[here]))
        if self.place.gpu is not None:
            self.latencies.clear()
            for i in utils.evenly_spaced(len(self.prepared), LATENCY_BATCHES):
                before = time.monotonic()
                self.runner.forward(self.prepared[i])
                self.runner.synchronize()
                self.latencies.append(time.monotonic() - before)
        return {"kept": kept, "latencies": list(self.latencies), "memory": memory}

    def made(self, shard: TextShard) -> Iterator:
        """The texts' batches: (indices, (token ids, attention mask))."""
        return padded_batches(shard, self.tokenizer, self.inputs)

    def prepare_texts(self, shard: TextShard) -> None:
        """Loads the tokenizer, and warms up: with one worker the batches are mostly those that were warmed up. On a GPU
        a whole pass follows, which allocates all inputs.
        """
        if self.tokenizer is None:
            self.tokenizer = utils.load_tokenizer(shard.folder)
        self.warm_up({arrays[0].shape: self.runner.prepare(*arrays) for _, arrays in self.made(shard)})
        if self.place.gpu is not None:
            self.run_texts(shard)

    def run_texts(self, shard: TextShard) -> tuple[float, float, list[tuple[np.ndarray, np.ndarray]]]:
        """One pass over texts, up to the logits on the host: its start and end, and (indices, logits) by batch."""
        start = time.monotonic()
        done = []  # with the inputs: a GPU may still read them
        for batch, padded in ahead((batch, self.runner.prepare(*arrays)) for batch, arrays in self.made(shard)):
            done.append((batch, padded, self.runner.forward(padded)))
        self.runner.synchronize()
        fetched = [(batch, self.runner.fetch(logits)) for batch, _, logits in done]
        return start, time.monotonic(), fetched


def padded_batches(shard: TextShard, tokenizer, like: Inputs) -> Iterator:
    """Tokenizes the shard's texts in chunks, yielding (indices, (token ids, attention mask)) for each batch, padded as
    those of the prepared inputs are.

    Sorted by characters first unless in dataset order, so that a chunk's texts, sorted by tokens, are alike; a chunk's
    last batch, which may not be full, is filled from the next chunk.
    """
    indices, texts = shard.indices, shard.texts
    if shard.order != "dataset":
        by_characters = np.argsort([len(text) for text in texts], kind="stable")
        indices, texts = indices[by_characters], [texts[i] for i in by_characters]
    rest, ids = np.empty(0, int), []
    for start in range(0, len(texts), CHUNK):
        chunk = slice(start, start + CHUNK)
        ids += utils.tokenize(tokenizer, texts[chunk], like.limit)
        rest = np.concatenate([rest, indices[chunk]])
        widths = replace(like, lengths=np.array([len(row) for row in ids])).widths
        batches = utils.make_batches(widths, shard.size, shard.order)
        kept = batches.pop() if chunk.stop < len(texts) else []
        for batch in batches:
            yield rest[batch], utils.pad_batch([ids[i] for i in batch], like.pad_id, widths[batch].max())
        rest, ids = rest[kept], [ids[i] for i in kept]


def ahead(items: Iterator) -> Iterator:
    """The items, made by a thread of their own while the caller works on those before; its error is raised here."""
    ready = queue.Queue(QUEUED_BATCHES)

    def make() -> None:
        try:
            for item in items:
                ready.put((item, None))
            ready.put((None, None))
        except Exception as error:
            ready.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    while True:
        item, error = ready.get()
        if error:
            raise error
        if item is None:
            return
        yield item


def status_of(error: Exception) -> str:
    """What a row says of an error: `out of memory`, or the error's first line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return "out of memory"
    return (
        utils.first_line(error)
        if isinstance(error, UserError)
        else f"{type(error).__name__}: {utils.first_line(error)}"
    )


def release_memory(gpu: int | None) -> None:
    """Gives unused memory back before the next cell, and starts the peak of used_memory_mib anew."""
    if gpu is None:
        with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is that of the whole life then
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    else:
        import torch

        torch.cuda.empty_cache()


def used_memory_mib(gpu: int | None) -> float:
    """MiB: on a CPU this process's peak resident set since release_memory; on a GPU all that is in use on it now, of
    which onnxruntime and CUDA graphs give nothing back from cell to cell.
    """
    if gpu is not None:
        import torch

        free, total = torch.cuda.mem_get_info(gpu)
        return (total - free) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


# ---------------------------------------------------------------------------------------------- the parent's side


class Workers:
    """The processes of one variant and worker count: started once, asked in step, killed together."""

    def __init__(self, count: int, name: str, sweep: Sweep):
        self.sweep, self.throttled = sweep, set()
        few_shapes = sweep.place.gpu is not None and variants.VARIANTS[name].few_shapes
        self.inputs = replace(sweep.inputs, few_shapes=few_shapes)
        self.connections, self.processes, self.alive = [], [], []
        try:
            for _ in range(count):
                self.start(name, alone=count == 1)
            self.ask("load", [self.inputs] * count)
        except OSError as error:  # of processes or files there are no more
            self.kill()
            raise CellFailed(f"{status_of(error)} (worker {len(self.processes)} of {count}, step load)") from error
        except BaseException:
            self.kill()
            raise

    def start(self, name: str, alone: bool) -> None:
        context = get_context("spawn")
        mine, theirs = context.Pipe()
        with theirs:
            limit_sending(mine, self.sweep.timeout)
            self.connections.append(mine)
            self.alive.append(context.RawValue("d"))
            place = replace(self.sweep.place, alone=alone)
            arguments = (theirs, name, self.sweep.sources[name], place, self.alive[-1])
            process = context.Process(target=serve, args=arguments, daemon=True)
            variants.start(process)
            self.processes.append(process)

    def ask(self, step: str, arguments: list) -> list:
        """Sends every worker a step with its argument and waits for all answers. Raises CellFailed as answers does."""
        for connection, argument in zip(self.connections, arguments, strict=True):
            try:
                connection.send((step, argument))
            except BlockingIOError:  # see limit_sending
                raise self.no_answer(step) from None
            except OSError:  # answers() says which worker died, and how
                pass
        return self.answers(step)

    def no_answer(self, step: str) -> CellFailed:
        return CellFailed(f"timeout: no answer in {self.sweep.timeout:g} s (step {step})")

    def answers(self, step: str) -> list:
        """One answer of each worker, in their order. Raises CellFailed at once if a worker died or shows no sign of
        life for too long, and after all have answered if one reports an error.
        """
        waiting, errors = dict(enumerate(self.connections)), []
        values = [None] * len(waiting)
        asked = time.monotonic()
        watched = step in ("run", "run_texts") and self.sweep.gpu is not None
        while waiting:
            sentinels = [self.processes[i].sentinel for i in waiting]
            ready = wait([*waiting.values(), *sentinels], GPU_POLL if watched else POLL)
            if watched:
                self.throttled |= throttling(self.sweep.gpu)
            for i, connection in list(waiting.items()):
                if connection not in ready and self.processes[i].sentinel not in ready:
                    if 0 < self.sweep.timeout < time.monotonic() - max(asked, self.alive[i].value):
                        raise self.no_answer(step)
                    continue
                try:
                    error, values[i] = connection.recv() if connection.poll() else self.died(i, step)
                except (EOFError, OSError):
                    self.died(i, step)
                errors += [error] if error else []
                del waiting[i]
        if errors:
            raise CellFailed(errors[0])
        return values

    def died(self, i: int, step: str) -> None:
        self.processes[i].join()
        code = self.processes[i].exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise CellFailed(f"worker {i + 1} of {len(self.processes)} died ({how}) in step {step}")

    def close(self) -> None:
        """Lets the workers end by themselves."""
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=10)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def limit_sending(connection: Connection, timeout: float) -> None:
    """Makes sending to a worker that does not read fail with a BlockingIOError after `timeout` seconds (0: never)."""
    with socket.socket(fileno=connection.fileno()) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6)))
        pipe.detach()


def throttling(gpu) -> set[str]:
    """What keeps the clock of a GPU (NVML's handle) low now, of THROTTLING."""
    import pynvml

    try:
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
    except pynvml.NVMLError:
        return {"not known"}
    return {name for bit, name in THROTTLING.items() if reasons & bit}


def measure(sweep: Sweep, workers: Workers, cell: Cell) -> dict:
    """The measured columns of a cell's row. Raises CellFailed."""
    lengths, widths = workers.inputs.lengths, workers.inputs.widths
    batches = utils.make_batches(widths, cell.size, cell.order)
    workers.ask("release", [None] * cell.workers)  # all of them, before one needs the memory
    workers.ask("prepare", utils.deal_shards(widths, batches, cell.workers))
    seconds, _ = passes(sweep, workers, cell, "run", [None] * cell.workers)
    reports = workers.ask("report", [None] * cell.workers)

    median = float(np.median(seconds))
    p50, p99 = np.percentile(np.concatenate([report["latencies"] for report in reports]), [50, 99]) * 1000
    memory = (sum if sweep.place.gpu is None else max)(report["memory"] for report in reports)
    max_diff, flips = parity(sweep, [kept for report in reports for kept in report["kept"]])
    figures = {
        "messages/s": len(lengths) / median,
        "min": len(lengths) / max(seconds),
        "max": len(lengths) / min(seconds),
        "passes": len(seconds),
        "tokens/s": lengths.sum() / median,
        "padding": sum(utils.padded_tokens(widths, batch) for batch in batches) / lengths.sum(),
        "tflops": sweep.flops / median / 1e12,
        "mfu": sweep.flops / median / sweep.peaks[variants.peak_precision(cell.variant, sweep.place.gpu)],
        "p50_ms": p50,
        "p99_ms": p99,
        "memory_mib": memory,
        "max_diff": max_diff,
        "flips": flips,
    }
    return written(figures)


def passes(sweep: Sweep, workers: Workers, cell: Cell, step: str, arguments: list) -> tuple[list[float], list]:
    """Repeats a step that is a pass for --min-time; returns the seconds of its passes in this round and those before,
    and the workers' last answers.
    """
    seconds = []
    while not seconds or sum(seconds) < sweep.min_time:
        answers = workers.ask(step, arguments)
        starts, ends, *_ = zip(*answers, strict=True)
        seconds.append(max(ends) - min(starts))
    known = sweep.seconds.setdefault((cell, step), [])
    known += seconds
    return known, answers


def measure_texts(sweep: Sweep, workers: Workers, cell: Cell) -> dict:
    """The cell's `end_to_end`, with the parity of those outputs: each worker gets about as many characters, since what
    tokens they are is not known yet. Raises CellFailed.
    """
    by_characters = np.argsort([len(text) for text in sweep.texts], kind="stable")
    shards = [
        TextShard(sweep.folder, indices, [sweep.texts[i] for i in indices], cell.size, cell.order)
        for indices in (np.sort(by_characters[i :: cell.workers]) for i in range(cell.workers))
    ]
    workers.ask("prepare_texts", shards)
    seconds, answers = passes(sweep, workers, cell, "run_texts", shards)
    max_diff, flips = parity(sweep, [batch for _, _, batches in answers for batch in batches])
    return written({"end_to_end": len(sweep.texts) / np.median(seconds), "max_diff": max_diff, "flips": flips})


def written(figures: dict[str, float]) -> dict[str, str]:
    """Figures as a row has them, with the status that they give."""
    status = "ok" if np.isfinite(figures["max_diff"]) else "outputs are not finite"
    return {name: f"{value:.6g}" for name, value in figures.items()} | {"status": status}


def together(before: dict | None, figures: dict) -> dict:
    """What a cell's row says after it was measured again, in another round or end to end: the later figures, but the
    worse parity, and all that throttled it.
    """
    if not before or not before["max_diff"]:
        return figures
    worst = written({name: np.maximum(float(before[name]), float(figures[name])) for name in ("max_diff", "flips")})
    throttled = {reason for row in (before, figures) for reason in row.get("throttled", "").split(", ")} - {"", "no"}
    clean = figures.get("throttled", "") and "no"
    return before | figures | worst | {"throttled": ", ".join(sorted(throttled)) or clean}


def parity(sweep: Sweep, kept: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The largest deviation from the reference and the share of changed decisions over the checked texts."""
    logits = np.full((len(sweep.inputs.lengths), sweep.reference.shape[1]), np.nan)
    for indices, values in kept:
        logits[indices] = values
    probs = utils.probabilities(logits[sweep.inputs.checked], sweep.problem)
    return float(np.abs(probs - sweep.reference).max()), utils.flips(probs, sweep.reference, sweep.problem)


def run_cells(sweep: Sweep, cells: list[Cell], rows: dict[Cell, dict] | None = None):
    """Measures the cells, yielding each with the measured columns of its row, or with only a status where it failed.
    Then yields the fastest of each variant and worker count again, with `end_to_end`: the fastest in `rows`, which the
    caller fills meanwhile; without them, or without texts, nothing is measured end to end.

    Workers are started once for all cells of a variant and worker count, and again after a failed cell; where they
    can't be started, none of their cells is tried again.
    """
    rows = rows if rows is not None and sweep.texts else {}
    for (name, count), group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.workers)):
        workers, no_start = None, None
        try:
            for cell, step in steps_of(list(group), rows):
                try:
                    if no_start:
                        raise no_start
                    if workers is None:
                        workers = Workers(count, name, sweep)
                    workers.throttled.clear()
                    figures = step(sweep, workers, cell)
                    if sweep.gpu is not None:
                        figures["throttled"] = ", ".join(sorted(workers.throttled)) or "no"
                    yield cell, figures
                except CellFailed as error:
                    if workers is None:
                        no_start = error
                    else:
                        workers.kill()
                        workers = None
                    yield cell, {"status": str(error)}
            if workers:
                workers.close()
        finally:
            if workers:
                workers.kill()


def steps_of(cells: list[Cell], rows: dict[Cell, dict]) -> Iterator[tuple[Cell, Callable]]:
    """The cells of one variant and worker count with `measure`, then the fastest of them in the rows by then with
    `measure_texts`, unless it was resumed with it.
    """
    yield from ((cell, measure) for cell in cells)
    speeds = {
        cell: float(row["messages/s"])
        for cell, row in rows.items()
        if (cell.variant, cell.workers, row["status"]) == (cells[0].variant, cells[0].workers, "ok")
    }
    if speeds:
        fastest = max(speeds, key=speeds.get)
        if fastest in cells or not rows[fastest]["end_to_end"]:
            yield fastest, measure_texts


# ------------------------------------------------------------------------------------------------- the experiment


def parse_arguments() -> Namespace:
    parser = utils.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        type=list_of(str.strip),
        metavar="LIST",
        help=f"comma list of {', '.join(variants.VARIANTS)}; or all",
    )
    add("--device", required=True, choices=("gpu", "cpu"))
    add("--dataset", default="normal", help="normal, filtered, or a CSV, CSV.gz or Parquet file (default: normal)")
    add("--column", default="body", help="the file's text column (default: body)")
    add(
        "--model-id",
        default=variants.DEFAULT_MODEL,
        help=f"Hub id, local folder, or {variants.RANDOM_MODEL}, which needs no network (default: %(default)s)",
    )
    add("--gpu", type=utils.int_from(0), default=0, help="GPU id (default: 0)")
    add(
        "--batches",
        type=list_of(utils.int_from(1)),
        default=[1, 2, 4, 8, 16, 32],
        help="sizes (default: 1,2,4,8,16,32)",
    )
    add(
        "--batch-tokens",
        type=list_of(utils.int_from(1)),
        default=[1024, 4096, 16384],
        help="sizes of batches by tokens, padding counted, in order tokens (default: 1024,4096,16384)",
    )
    few = utils.int_from(1, utils.most_processes())
    add("--workers", type=list_of(few), default=[1], help="comma list of worker counts (default: 1)")
    add("--threads", type=few, default=1, help="CPU threads of each worker (default: 1)")
    add("--order", type=list_of(order), default=list(utils.ORDERS), help="default: dataset,length,tokens")
    add("--limit", type=utils.int_from(1), help="only so many texts, evenly spaced through the dataset (default: all)")
    add("--min-time", type=seconds, default=3.0, help="repeat passes of a cell for so many seconds (default: 3)")
    add(
        "--rounds",
        type=utils.int_from(1),
        default=1,
        help="go through all cells so often, and take a cell's passes together: a machine that others use too has slow "
        "minutes, which hit every cell alike then (default: 1)",
    )
    add(
        "--timeout",
        type=seconds,
        default=600.0,
        help="give a cell up when a worker has begun no batch for so many seconds, nor ended to load, to compile or to "
        "report; a long pass has no limit (default: 600, since reading or compiling a large model takes minutes; 0: "
        "never)",
    )
    saving = parser.add_mutually_exclusive_group()
    saving.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    saving.add_argument("--no-save", action="store_true", help="save nothing")
    add("--resume", action="store_true", help="skip cells that have a good row of the same commit and versions")
    add("--dry-run", action="store_true", help="print the cells that would run, and stop")
    return parser.parse_args()


def list_of(parse):
    """A parser of comma lists; of equal items the first stays."""
    return lambda text: list(dict.fromkeys(parse(item) for item in text.split(",")))


def order(text: str) -> str:
    if text not in utils.ORDERS:
        raise ArgumentTypeError(f"{text!r} is not one of {', '.join(utils.ORDERS)}")
    return text


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= DAY:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {DAY}")
    return value


def possible_sizes(sizes: list[int], messages: int) -> list[int]:
    """The batch sizes that there are enough messages for; says which are left out. Raises UserError if all are."""
    too_large = [size for size in sizes if size > messages]
    if too_large:
        named = ",".join(map(str, too_large))
        if too_large == sizes:
            raise UserError(f"--batches {named}: there are only {messages} messages")
        say(f"note       sizes {named} are left out: there are only {messages} messages")
    return [size for size in sizes if size not in too_large]


def find_machine(args: Namespace) -> tuple[dict[str, str], object]:
    """The row's columns that say on what it was measured, and NVML's handle of the GPU or None. Raises UserError where
    the GPU asked for can't be used.
    """
    name, driver, gpu = utils.cpu_name(), "", None
    if args.device == "gpu":
        with_onnx = any(variants.VARIANTS[variant].runtime == "onnx" for variant in args.model)
        name, driver, uuid = variants.in_fresh_process(variants.check_gpu, args.gpu, with_onnx)
    machine = {"device": utils.slug(name), "driver": driver, "commit": utils.project_commit(), **utils.versions()}
    say(f"machine    {name}{', driver ' + driver if driver else ''}")
    if args.device == "gpu":
        gpu, machine["load"] = gpu_load(uuid)
    else:
        machine["load"] = cpu_load()
    if len(utils.installed(utils.VERSIONS["onnxruntime"])) > 1:
        say("note       onnxruntime and onnxruntime-gpu are both installed and overwrite each other: remove one")
    say("versions   " + ", ".join(f"{key} {machine[key]}" for key in utils.VERSIONS) + f"; commit {machine['commit']}")
    for variant in args.model:
        if note := variants.VARIANTS[variant].notes.get(args.device):
            say(f"note       {variant}: {note}")
    if args.device == "cpu" and max(args.workers) * args.threads > utils.cpu_cores():
        say(f"note       more workers x threads than the {utils.cpu_cores()} cores: they will wait for each other")
    return machine, gpu


def cpu_load() -> str:
    """The share of this process's cores that others keep busy, before anything is measured; it is noted if it is high.
    Empty where it is not known (not Linux).
    """
    try:
        before = cpu_seconds()
        time.sleep(0.25)
        busy, total = cpu_seconds() - before
    except (OSError, AttributeError, TypeError, ValueError):  # other systems, and containers that number cores anew
        return ""
    load = busy / max(total, 1)
    if load > BUSY:
        say(f"note       others keep {load:.0%} of the cores busy: expect less messages/s, and less steady ones")
    return f"{load:.2f}"


def cpu_seconds() -> np.ndarray:
    """Since the start of the machine, of the cores that this process may use: busy, and all in all (in 1/100 s)."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.split()[0] in cores]
    user, nice, system, idle, iowait, irq, softirq, steal = np.array([line[1:9] for line in lines], int).sum(axis=0)
    busy = user + nice + system + irq + softirq + steal  # proc(5)
    return np.array([busy, busy + idle + iowait])


def gpu_load(uuid: str) -> tuple[object, str]:
    """NVML's handle of a GPU, and the share of the last second in which others kept it busy; they are noted. None and
    nothing where NVML does not tell, which is noted too.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        load = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
        others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        used = pynvml.nvmlDeviceGetMemoryInfo(gpu, version=pynvml.nvmlMemory_v2).used / 2**20
    except pynvml.NVMLError as error:
        say(f"note       whether others use the GPU, or its clock is throttled, is not known: {error}")
        return None, ""
    if others or load > BUSY or used > BUSY_MIB:  # in a container, the processes outside are not seen
        say(f"note       others use the GPU: {others} processes seen, {used:.0f} MiB, busy for {load:.0%} of the time")
    return gpu, f"{load:.2f}"


def prepare(args: Namespace, cells: list[Cell], dataset: utils.Dataset, device: str, gpu) -> Sweep:
    """All that comes before the first cell: the model, its token ids, the reference and the exports."""
    utils.check_writable(utils.CACHE)
    folder = variants.find_model(args.model_id)
    place = variants.Place(args.gpu if args.device == "gpu" else None, args.threads)
    ready = prepared_before(folder, dataset.texts, place.gpu)
    pad_id, limit = int(ready["pad_id"]), int(ready["limit"])
    inputs = Inputs(ready["token_ids"], ready["lengths"], pad_id, ready["checked"], limit)
    p5, p50, p95, p99 = np.percentile(inputs.lengths, [5, 50, 95, 99])
    say(f"model      {args.model_id}: {ready['model']}")
    say(f"dataset    {dataset.name}: {len(dataset.texts)} messages; tokens: mean {inputs.lengths.mean():.1f},")
    say(f"           p5 {p5:.0f}, p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, most {inputs.lengths.max()}")
    say(f"tokenizer  {ready['tokenizer']}")
    say(f"reference  eager FP32 torch, on {len(inputs.checked)} of the messages")
    sources = {}
    for name in dict.fromkeys(cell.variant for cell in cells):
        sources[name], origin = folder, args.model_id
        if variants.VARIANTS[name].runtime != "torch":
            sources[name], origin = variants.find_onnx(variants.VARIANTS[name], args.model_id, folder)
        say(f"variant    {name}: {origin}")
    precisions = {variants.peak_precision(name, place.gpu) for name in sources}
    peaks = peaks_today(f"{device}, torch {utils.versions()['torch']}", sorted(precisions), place)
    say(f"peak       {', '.join(f'{name} {peak / 1e12:.3g}' for name, peak in peaks.items())} TFLOP/s, large products")
    return Sweep(
        folder,
        dataset.texts,
        inputs,
        flops=float(ready["flops"]),
        reference=ready["reference"],
        problem=str(ready["problem"]),
        sources=sources,
        place=place,
        peaks=peaks,
        min_time=args.min_time,
        timeout=args.timeout,
        gpu=gpu,
    )


def peaks_today(device: str, precisions: list[str], place: variants.Place) -> dict[str, float]:
    """variants.measure_peaks, once an hour, and the best of the day: a machine that others use too has slow minutes."""
    path = utils.CACHE / "peaks.json"
    now = datetime.now(UTC)
    day, hour = f"{now:%Y-%m-%d}", f"{now:%Y-%m-%dT%H}"
    try:
        known = {name: float(peak) for name, peak in json.loads(path.read_text()).items() if name.startswith(day)}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    if missing := [name for name in precisions if f"{hour}, {device}, {name}" not in known]:
        measured = variants.in_fresh_process(variants.measure_peaks, missing, place)
        known |= {f"{hour}, {device}, {name}": peak for name, peak in measured.items()}
        with utils.atomic_file(path) as file:
            file.write(json.dumps(known).encode())
    return {name: max(peak for of, peak in known.items() if of.endswith(f", {device}, {name}")) for name in precisions}


def prepared_before(folder: Path, texts: list[str], gpu: int | None) -> dict[str, np.ndarray]:
    """What prepare_inputs gives, kept for the next run with the same model, texts, versions and kind of device."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    key = [str(folder.resolve()), files, texts, utils.versions(), CHECK_TEXTS, gpu is not None]
    path = utils.CACHE / "inputs" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path) as arrays:
            ready = dict(arrays)
        if "limit" not in ready:
            raise ValueError("of an older version")
        return ready | {"tokenizer": f"{ready['tokenizer']}, measured when these token ids were made"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        ready = variants.in_fresh_process(prepare_inputs, folder, texts, variants.Place(gpu, utils.cpu_cores()))
        with utils.atomic_file(path) as file:
            np.savez(file, **ready)
        return {name: np.asarray(value) for name, value in ready.items()}


def prepare_inputs(folder: Path, texts: list[str], place: variants.Place) -> dict:
    """Token ids of the texts (in one run, with their lengths), and for some of them, evenly spaced, the reference:
    probabilities [checked texts, labels] of eager FP32 torch, computed text by text, without padding.
    """
    config = variants.load_config(folder)
    tokenizer = utils.load_tokenizer(folder)
    limit = utils.token_limit(config, tokenizer)
    utils.tokenize(tokenizer, texts[:1], limit)  # the first call sets the tokenizer up
    start = time.monotonic()
    token_ids = utils.tokenize(tokenizer, texts, limit)
    speed = len(texts) / (time.monotonic() - start)
    utils.check_vocabulary(token_ids, config)

    pad_id, problem = tokenizer.pad_token_id or 0, utils.problem_type(config)
    runner = variants.load("torch", folder, place)
    checked = utils.evenly_spaced(len(texts), CHECK_TEXTS)
    batches = [runner.prepare(*utils.pad_batch([token_ids[i]], pad_id)) for i in checked]
    logits = np.concatenate([runner.fetch(runner.forward(batch)) for batch in batches])
    return {
        "token_ids": np.concatenate(token_ids).astype(np.int32),
        "lengths": np.array([len(ids) for ids in token_ids]),
        "limit": limit,
        "flops": utils.useful_flops(config, np.array([len(ids) for ids in token_ids])),
        "pad_id": pad_id,
        "checked": checked,
        "reference": utils.probabilities(logits, problem),
        "problem": problem,
        "model": f"{config.model_type}, {config.num_labels} labels, {problem}, at most {limit} tokens",
        "tokenizer": f"{speed:,.0f} messages/s ({'fast' if tokenizer.is_fast else 'slow'} tokenizer)",
    }


def measured_before(results_dir: Path, wanted: dict) -> dict | None:
    """The good row of the cell that `wanted` describes, of the same commit and versions, if there is one."""
    same = (*utils.CELL, *utils.VERSIONS, "commit")
    rows = utils.read_rows(utils.results_path(results_dir, wanted))
    found = [row for row in rows if row["status"] == "ok" and all(row[key] == str(wanted[key]) for key in same)]
    return found[-1] | wanted | {"load": found[-1]["load"]} if found else None


def to_resume(cells: list[Cell], before: dict[Cell, dict | None]) -> list[Cell]:
    """The cells that still have to run: those without a good row, and where a variant and worker count has them all,
    but none that was timed end to end, the fastest.
    """
    missing = {cell for cell in cells if not before[cell]}
    for _, adjacent in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.workers)):
        group = list(adjacent)
        if missing.isdisjoint(group) and not any(before[cell]["end_to_end"] for cell in group):
            missing.add(max(group, key=lambda cell: float(before[cell]["messages/s"])))
    return [cell for cell in cells if cell in missing]


def line(row: dict, on_cpu: bool) -> str:
    """A row as a line of the printed table; on a CPU with messages/s of each thread."""
    row = row | {"/thread": ""}
    if on_cpu and row["messages/s"]:
        row["/thread"] = float(row["messages/s"]) / (row["workers"] * row["threads"])
    shown = [row["variant"].ljust(18)]
    for name, form in PRINTED.items():
        value = format(float(row[name]), form) if form and row[name] else row[name] or "-"
        shown.append(f"{value:>{max(len(name), 7)}}")
    throttled = f" (throttled: {row['throttled']})" if row["throttled"] not in ("", "no") else ""
    return "  ".join([" ".join(shown), row["status"] + throttled])


def summary(rows: list[dict], names: list[str]) -> list[str]:
    """A line for each variant: its best row, and how many times as fast it is as the first variant's."""
    best = {}
    for row in rows:
        if row["status"] == "ok":
            best[row["variant"]] = max(best.get(row["variant"], row), row, key=lambda row: float(row["messages/s"]))
    lines = []
    for name in names:
        if name in best:
            row = best[name]
            factor = (
                float(row["messages/s"]) / float(best[names[0]]["messages/s"]) if names[0] in best else float("nan")
            )
            where = f"size {row['size']}, order {row['order']}, {row['workers']} worker(s) x {row['threads']} thread(s)"
            of_peak = f"{float(row['mfu']):.1%} of the peak"
            check = f"max_diff {float(row['max_diff']):.2g}, flips {float(row['flips']):.3%}"
            lines.append(
                f"{name:<18} {float(row['messages/s']):>9.1f} messages/s {factor:>6.2f}x   {where}; {check}; {of_peak}"
            )
        else:
            lines.append(f"{name:<18}         - no cell was measured")
    return lines


def save(unsaved: list[dict], results_dir: Path) -> None:
    """Saves the rows and takes them out of the list; what can't be saved now stays in it for the next time."""
    for row in list(unsaved):
        path = utils.results_path(results_dir, row)
        try:
            utils.save_row(path, row)
            unsaved.remove(row)
        except OSError as error:
            say(f"{path}: not saved yet: {utils.first_line(error)}")


@contextlib.contextmanager
def keep(unsaved: list[dict], results_dir: Path):
    """However the block ends, tries once more to save the rows that are in the list then, or prints them."""
    try:
        yield
    finally:
        save(unsaved, results_dir)
        if unsaved:
            say(f"not saved in {results_dir}, so copy it from here:\n{utils.table(unsaved)}")


def main() -> int:
    args = parse_arguments()
    args.model = variants.choose_variants(args.model, args.device)
    dataset = utils.load_dataset(args.dataset, args.column, args.limit)
    machine, gpu = find_machine(args)
    for note in dataset.notes:
        say(f"note       {note}")
    args.batches = possible_sizes(args.batches, len(dataset.texts)) if args.order != ["tokens"] else []
    same = machine | {"model": args.model_id, "dataset": dataset.name, "messages": len(dataset.texts)}
    same["threads"] = args.threads
    batchings = [(size, order) for size in args.batches for order in args.order if order != "tokens"]
    batchings += [(size, "tokens") for size in args.batch_tokens if "tokens" in args.order]
    cells = [Cell(*place, *how) for *place, how in itertools.product(args.model, args.workers, batchings)]
    rows = {}
    if args.resume:
        before = {cell: measured_before(args.results_dir, same | asdict(cell)) for cell in cells}
        cells = to_resume(cells, before)
        rows = {cell: row for cell, row in before.items() if row and cell not in cells}
    if args.dry_run or not cells:
        say(f"{len(cells)} cells to run")
        for cell in cells:
            print(cell.variant, cell.workers, cell.size, cell.order, sep="\t")
        return 0
    if not args.no_save:
        for variant in args.model:
            path = utils.results_path(args.results_dir, same | {"variant": variant})
            utils.check_writable(path.parent)
            utils.read_rows(path)

    sweep = prepare(args, cells, dataset, machine["device"], gpu)
    unsaved, failed = [], False
    print(" ".join(["variant".ljust(18), *(name.rjust(7) for name in PRINTED), " status"]), flush=True)
    measured = contextlib.closing(run_cells(sweep, cells * args.rounds, rows))
    progress_bar = tqdm(total=len(cells) * args.rounds, unit="cell", file=sys.stderr)
    with keep(unsaved, args.results_dir), measured as measured, progress_bar as progress:
        for cell, figures in measured:
            if "max_diff" not in figures and cell in rows and rows[cell]["max_diff"]:
                say(f"{cell}: {figures['status']}; its earlier figures stay")
                failed = True
                continue
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            row = dict.fromkeys(utils.COLUMNS, "") | same | asdict(cell)
            row |= together(rows.get(cell), figures) | {"date": date}
            if not args.no_save:
                unsaved[:] = [other for other in unsaved if other is not rows.get(cell)] + [row]
                save(unsaved, args.results_dir)
            progress.write(line(row, args.device == "cpu"), file=sys.stdout)
            sys.stdout.flush()
            progress.update("end_to_end" not in figures)
            rows[cell] = row
    for text in summary(list(rows.values()), args.model):
        say(text)
    return int(failed or any(row["status"] != "ok" for row in rows.values()) or bool(unsaved))


if __name__ == "__main__":
    utils.run(main)
