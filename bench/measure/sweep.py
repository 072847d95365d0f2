"""Cells -> figures: starts the workers, repeats passes, and computes what a row says."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.judge import alpha_for_look
from bench.machine import cpu_busy, cpu_cores, watch_throttling
from bench.measure.cells import Cell, fastest_of
from bench.measure.token_cache import TokenizedTexts
from bench.measure.worker import Report, Worker
from bench.model.batches import make_batches, padded_tokens
from bench.model.model import Model
from bench.model.parity import ParityCounter
from bench.processes import ProcessPool
from bench.variants import Device
from runtimes import VARIANTS
from runtimes.classifier import ClassifierSpec
from utils import UserError

ASSUMED_MFU = 0.5  # share of the peak that estimates assume: between what FP32 and BF16 reach on a CPU


@dataclass(frozen=True)
class Sweep:
    """What all cells of a run share.

    exports: variant -> the folder of the export that it loads (None: it loads none), or why it can't run;
    peaks: precision -> FLOP/s; min_time: seconds of passes for each cell; stall_timeout: seconds without a heartbeat, 0
    for no limit; uuid: NVML's id of the GPU, empty on a CPU and where NVML does not tell; more_texts: for what is not
    proven behind the cells; check_time: how many seconds may be spent on them.
    """

    model: Model
    tokens: TokenizedTexts
    exports: dict[str, Path | UserError | None]
    device: Device
    peaks: dict[str, float]
    min_time: float
    stall_timeout: float
    uuid: str = ""
    more_texts: Sequence[str] = ()
    check_time: float = 0.0

    def peak_of(self, variant: str) -> float | None:
        return self.peaks.get(VARIANTS[variant].computes_in(self.device.gpu))


def run_cells(sweep: Sweep, cells: list[Cell], speeds: dict[Cell, float], repeats: int) -> Iterator[tuple[Cell, dict]]:
    """Measures the cells; yields each with the measured columns of its row, or with only a status if it failed.

    After the cells of a variant and worker count, the fastest of them is timed end to end. `speeds` are the messages/s
    of cells that were measured before: they count for which is the fastest, and are not timed again. Everything is
    measured `repeats` times, in turn.

    Workers are started once for all cells of a variant and worker count, and again after a failed cell; where they
    can't be started, none of their cells is tried again.
    """
    known = dict(speeds)
    groups = [list(group) for _, group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.workers))]
    for group in groups * repeats:
        with contextlib.ExitStack() as stack:
            workers, no_start, busy = None, None, measure_busy(sweep.device)
            queue = list(group)
            while queue:
                cell = queue.pop(0)
                try:
                    if no_start:
                        raise no_start
                    workers = workers or stack.enter_context(start_workers(sweep, cell))
                    figures = measure(sweep, workers, cell)
                    if figures["status"] == "ok":
                        known[cell] = float(figures["messages/s"])
                except UserError as error:
                    figures = {"status": str(error)}
                    no_start = None if workers else error
                    workers = None
                    stack.close()
                yield cell, figures | busy
                if not queue and cell.stage == "forward" and not no_start:
                    fastest = fastest_end_to_end(cell, known)
                    queue += [fastest] if fastest not in (None, *speeds) else []


def fastest_end_to_end(cell: Cell, speeds: dict[Cell, float]) -> Cell | None:
    """Returns the fastest cell with the variant and workers of this one, end to end; None if all failed."""
    same = replace(cell, batching=None)
    others = {other: speed for other, speed in speeds.items() if replace(other, batching=None) == same}
    return replace(fastest_of(others), stage="end-to-end") if others else None


def run_in_turn(sweep: Sweep, workers: dict[Cell, ProcessPool], rounds: int) -> Iterator[tuple[Cell, dict]]:
    """Times cells once more, `rounds` times in turn with their workers ready: a slow second hits all alike.

    A round before them does not count: the first passes of new workers are slow. Yields as run_cells; a cell that fails
    is left out, since it has a row already.
    """
    for i, (cell, own) in enumerate([*workers.items()] * (1 + rounds)):
        with contextlib.suppress(UserError):
            figures = measure(sweep, own, cell)
            if i >= len(workers):
                yield cell, figures


def measure_busy(device: Device) -> dict[str, str]:
    """Returns the column `busy` as it is now; nothing on a GPU, which tells only of what we did there ourselves."""
    busy = cpu_busy() if device.gpu is None else None
    return {} if busy is None else {"busy": f"{busy:.2f}"}


def estimate(sweep: Sweep, cells: list[Cell]) -> dict[Cell, float]:
    """Estimates the seconds of each cell: its passes at ASSUMED_MFU. Compiling and warming up come on top."""
    lengths, groups, seconds = sweep.tokens.lengths, sweep.tokens.groups, {}
    for cell in cells:
        padding = padded_tokens(lengths, make_batches(lengths, cell.batching, groups)).sum() / lengths.sum()
        peak = sweep.peak_of(cell.variant) or sweep.peaks["fp32"]
        if sweep.device.gpu is None:
            peak *= min(1, cell.workers * sweep.device.threads / cpu_cores())
        a_pass = padding * np.nan_to_num(sweep.tokens.flops) / (ASSUMED_MFU * peak)
        seconds[cell] = max(a_pass, sweep.min_time)
    return seconds


def start_workers(sweep: Sweep, cell: Cell) -> ProcessPool:
    """Starts the workers of a cell's variant. Raises UserError if they can't load it."""
    exported = sweep.exports[cell.variant]
    if isinstance(exported, UserError):
        raise exported
    spec = ClassifierSpec(sweep.model, cell.variant, exported, replace(sweep.device, exclusive=cell.workers == 1))
    arguments = [(number, spec, sweep.tokens.folder, cell.workers) for number in range(cell.workers)]
    forked = not VARIANTS[cell.variant].environment  # else it would show the memory of what it does not need
    return ProcessPool(Worker, arguments, sweep.stall_timeout, forked)


def measure(sweep: Sweep, workers: ProcessPool, cell: Cell) -> dict[str, str]:
    """Returns the measured columns of a cell's row. Raises UserError."""
    workers.call(Worker.prepare, cell)
    seconds = []
    with watch_throttling(sweep.uuid) if sweep.uuid else contextlib.nullcontext(set()) as throttled:
        while not seconds or sum(seconds) < sweep.min_time:
            starts, ends = zip(*workers.call(Worker.run), strict=True)
            seconds.append(max(ends) - min(starts))
    reports = workers.call(Worker.report)

    texts, tokens, median = sweep.tokens.n_items, int(sweep.tokens.lengths.sum()), float(np.median(seconds))
    share = sweep.tokens.flops / median / (sweep.peak_of(cell.variant) or np.nan)
    figures = {
        "messages/s": texts / median,
        "min": texts / max(seconds),
        "max": texts / min(seconds),
        "passes": len(seconds),
        "tokens/s": tokens / median,
        "padding": sum(report.padded_tokens for report in reports) / tokens,
        "tflops": sweep.tokens.flops / median / 1e12,
        "mfu": share if share <= 1 else np.nan,
        "memory_mib": (sum if sweep.device.gpu is None else max)(report.memory_mib for report in reports),
    }
    if cell.stage == "forward":
        latencies = np.concatenate([report.latencies for report in reports])
        figures["p50_ms"], figures["p99_ms"] = np.percentile(latencies, [50, 99]) * 1000
    figures |= compare_sample(sweep, cell, reports)
    row = format_figures(figures)
    row |= {name: "" for name in ("tflops", "mfu") if np.isnan(figures[name])}
    row["throttled"] = (", ".join(sorted(throttled)) or "no") if sweep.uuid else ""
    return row | {"status": "ok" if np.isfinite(figures["max_diff"]) else "outputs are not finite"}


def format_figures(figures: dict) -> dict[str, str]:
    return {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in figures.items()}


def compare_sample(sweep: Sweep, cell: Cell, reports: list[Report]) -> dict:
    """Compare what the workers answer for the sample with the reference; return the columns of ParityCounter."""
    tokens, task = sweep.tokens, sweep.model.task
    items = np.concatenate([report.items for report in reports])
    values = np.concatenate([report.values for report in reports])
    if cell.stage == "forward":
        answers = task.answers(values, items, tokens.n_items, "cut")
    else:
        answers = np.full((tokens.n_items, len(task.labels)), np.nan)
        answers[items] = values
    parity = new_counter(sweep, cell.variant)
    parity.add(answers[tokens.sample], tokens.reference)
    return parity.columns(alpha_for_look(1))


def new_counter(sweep: Sweep, variant: str) -> ParityCounter:
    precision = VARIANTS[variant].computes_in(sweep.device.gpu)
    return ParityCounter(sweep.model.task, precision, spread=sweep.tokens.reference.std(axis=0))
