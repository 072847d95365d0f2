"""Cells -> figures: starts the workers, repeats passes, and computes what a row says."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.batches import make_batches, padded_tokens
from bench.inputs import Inputs
from bench.machine import watch_throttling
from bench.parity import count_flips, probabilities
from bench.passes import Cell, Job, Worker
from bench.workers import Workers
from runtimes import VARIANTS
from runtimes.runner import Place
from utils import UserError, cpu_cores

EFFICIENCY = 0.5  # of the peak, for estimates


@dataclass(frozen=True)
class Sweep:
    """What all cells of a run share.

    model: the model's folder; sources: variant -> the folder or file that it loads, or why there is none;
    peaks: precision -> FLOP/s; min_time: seconds of passes for each cell; texts_within: seconds, the longest pass of a
    cell that is also timed from texts; timeout: seconds without a sign of life of a worker, 0 for no limit;
    uuid: NVML's id of the GPU, empty on a CPU and where NVML does not tell.
    """

    model: Path
    inputs: Inputs
    sources: dict[str, Path | UserError]
    place: Place
    peaks: dict[str, float]
    min_time: float
    texts_within: float
    timeout: float
    uuid: str


def run_cells(sweep: Sweep, cells: list[Cell], speeds: dict[Cell, float], rounds: int) -> Iterator[tuple[Cell, dict]]:
    """Measures the cells; yields each with the measured columns of its row, or with only a status if it failed.

    After the cells of a variant and worker count, the fastest of them is timed from texts to logits, unless it is too
    slow for that. `speeds` are the messages/s of cells that were measured before: they count for which is the fastest,
    and are not timed again. Everything is measured `rounds` times, in turn.

    Workers are started once for all cells of a variant and worker count, and again after a failed cell; where they
    can't be started, none of their cells is tried again.
    """
    known = dict(speeds)
    groups = [list(group) for _, group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.workers))]
    for group in groups * rounds:
        with contextlib.ExitStack() as stack:
            workers, no_start = None, None
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
                yield cell, figures
                if not queue and cell.timed == "forward":
                    same = cell.variant, cell.workers, "forward"
                    alike = [other for other in known if (other.variant, other.workers, other.timed) == same]
                    alike = [other for other in alike if known[other] * sweep.texts_within >= len(sweep.inputs.lengths)]
                    fastest = replace(max(alike, key=known.get), timed="texts") if alike else None
                    queue += [fastest] if fastest not in (None, *speeds) and not no_start else []


def estimate(sweep: Sweep, cells: list[Cell]) -> dict[Cell, float]:
    """Estimates the seconds of each cell: its warm-up and passes at EFFICIENCY of the peak; compiling comes on top."""
    lengths, seconds = sweep.inputs.lengths, {}
    for cell in cells:
        padded = padded_tokens(lengths, make_batches(lengths, cell.size, cell.order)).sum() / lengths.sum()
        peak = sweep.peaks.get(VARIANTS[cell.variant].computes_in(sweep.place.gpu), sweep.peaks["fp32"])
        if sweep.place.gpu is None:
            peak *= min(1, cell.workers * sweep.place.threads / cpu_cores())
        a_pass = padded * np.nan_to_num(sweep.inputs.flops) / (EFFICIENCY * peak)
        seconds[cell] = a_pass + max(a_pass, sweep.min_time)
    return seconds


def start_workers(sweep: Sweep, cell: Cell) -> Workers:
    """Starts the workers of a cell's variant. Raises UserError if they can't load it."""
    source = sweep.sources[cell.variant]
    if isinstance(source, UserError):
        raise source
    place = replace(sweep.place, alone=cell.workers == 1)
    job = Job(sweep.model, cell.variant, source, place, sweep.inputs.folder)
    return Workers(Worker, [(number, job) for number in range(cell.workers)], sweep.timeout)


def measure(sweep: Sweep, workers: Workers, cell: Cell) -> dict[str, str]:
    """Returns the measured columns of a cell's row. Raises UserError."""
    workers.ask(Worker.prepare, cell)
    seconds = []
    with watch_throttling(sweep.uuid) if sweep.uuid else contextlib.nullcontext(set()) as throttled:
        while not seconds or sum(seconds) < sweep.min_time:
            starts, ends = zip(*workers.ask(Worker.run), strict=True)
            seconds.append(max(ends) - min(starts))
    reports = workers.ask(Worker.report)

    texts, tokens, median = len(sweep.inputs.lengths), int(sweep.inputs.lengths.sum()), float(np.median(seconds))
    peak = sweep.peaks.get(VARIANTS[cell.variant].computes_in(sweep.place.gpu), np.nan)
    share = sweep.inputs.flops / median / peak
    figures = {
        "messages/s": texts / median,
        "min": texts / max(seconds),
        "max": texts / min(seconds),
        "passes": len(seconds),
        "tokens/s": tokens / median,
        "padding": sum(report["padded"] for report in reports) / tokens,
        "tflops": sweep.inputs.flops / median / 1e12,
        "mfu": share if share <= 1 else np.nan,
        "memory_mib": (sum if sweep.place.gpu is None else max)(report["memory"] for report in reports),
    }
    if cell.timed == "forward":
        latencies = np.concatenate([report["latencies"] for report in reports])
        figures["p50_ms"], figures["p99_ms"] = np.percentile(latencies, [50, 99]) * 1000
    figures["max_diff"], figures["flips"], figures["decisions"] = parity(
        sweep.inputs, [kept for report in reports for kept in report["kept"]]
    )
    known = {name for name, value in figures.items() if name not in ("tflops", "mfu") or np.isfinite(value)}
    row = {name: f"{value:.6g}" if name in known else "" for name, value in figures.items()}
    row["throttled"] = (", ".join(sorted(throttled)) or "no") if sweep.uuid else ""
    return row | {"status": "ok" if np.isfinite(figures["max_diff"]) else "outputs are not finite"}


def parity(inputs: Inputs, kept: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, int]:
    """Returns (the largest deviation from the reference, the share of changed decisions, how many decisions there are).

    Over the checked texts.
    """
    probs = probabilities(gather(inputs, kept)[inputs.checked], inputs.about["problem"])
    changed, decisions = count_flips(probs, inputs.reference, inputs.about["problem"])
    return float(np.abs(probs - inputs.reference).max()), changed / decisions, decisions


def gather(inputs: Inputs, kept: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Puts the workers' logits back in the texts' order: [texts, labels], nan where nothing was kept.

    Raises UserError where they are of another number of labels.
    """
    logits = np.full((len(inputs.lengths), len(inputs.about["labels"])), np.nan)
    for indices, values in kept:
        if values.shape[1:] != logits.shape[1:]:
            raise UserError(f"it gives {values.shape[-1]} labels, the model has {logits.shape[1]}: not its export")
        logits[indices] = values
    return logits
