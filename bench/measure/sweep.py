"""Cells -> the measured columns of their rows: starts the workers, repeats passes, and computes the figures."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.judge import TOLERANCE
from bench.machine import cpu_busy, watch_throttling
from bench.measure.cells import Cell, fastest_end_to_end
from bench.measure.tokens import TokenizedTexts
from bench.measure.worker import Report, Worker
from bench.model.model import Model
from bench.model.parity import ParityCounter
from bench.processes import ProcessPool
from bench.report.evidence import EvidenceFile
from bench.tables.items import Item
from bench.variants import Device
from runtimes import VARIANTS
from runtimes.classifier import ClassifierSpec
from utils import UserError


@dataclass(frozen=True)
class Sweep:
    """What all cells of a run share."""

    model: Model
    tokens: TokenizedTexts
    exports: dict[str, Path | UserError | None]  # variant -> the export it loads, if any, or why it can't run
    device: Device
    peaks: dict[str, float]  # precision -> FLOP/s
    min_time: float  # seconds of passes for each cell, at least
    stall_timeout: float  # seconds without a heartbeat after which a cell fails; 0 for no limit
    uuid: str = ""  # NVML's id of the GPU; empty on a CPU, or if unknown
    more_texts: Sequence[Item] = ()  # for variants that are not proven after the sweep
    check_time: float = 0.0  # seconds for these, at most
    reference_speed: float = math.nan  # messages/s of the original model, text by text, in estimates of time
    loading: float = 4.0  # seconds until a variant's workers are ready, in estimates of time
    deadline: float = math.inf  # of time.monotonic(), after which only what is necessary is measured
    tolerance: float = TOLERANCE  # share of changed decisions
    search: bool = False  # measure only the fastest of the cells' splits, see splits.py
    evidence: EvidenceFile = field(default_factory=EvidenceFile)
    keys: dict[str, dict] = field(default_factory=dict)  # variant -> the key of its evidence

    def verdict(self, variant: str) -> str:
        evidence = self.evidence.of_key(self.keys[variant])
        return evidence.verdict(variant, self.device.gpu is not None, self.tolerance)

    def peak_of(self, variant: str) -> float | None:
        return self.peaks.get(VARIANTS[variant].computes_in(self.device.gpu))


def run_cells(sweep: Sweep, cells: list[Cell], speeds: dict[Cell, float], repeats: int) -> Iterator[tuple[Cell, dict]]:
    """Measure the cells, `repeats` times in turn. Yield each with its measured columns, or a status if it failed.

    The fastest cell of each variant and split is then timed end to end. `speeds`: messages/s of cells that
    already have a row. They are compared when the fastest cell is chosen, but not measured again. Workers start again
    after a failed cell. If they cannot start, the remaining cells of this variant and split fail, too. With a
    deadline, each variant has the same share of the time, and cells that do not fit in are left out.
    """
    known = dict(speeds)
    groups = [list(group) for _, group in itertools.groupby(cells, key=lambda cell: cell.loaded)]
    for left, group in zip(range(repeats * len(groups), 0, -1), groups * repeats, strict=True):
        now = time.monotonic()
        if now > sweep.deadline:
            break
        end = now + (sweep.deadline - now) / (left + 1)  # the rest is for the leaders and the check
        with contextlib.ExitStack() as stack:
            workers, start_error = None, None
            busy = busy_column(sweep.device)
            queue = list(group)
            while queue:
                cell = queue.pop(0)
                try:
                    if start_error:
                        raise start_error
                    workers = workers or stack.enter_context(start_workers(sweep, cell))
                    figures = measure(sweep, workers, cell)
                    if figures["status"] == "ok":
                        known[cell] = float(figures["messages/s"])
                except UserError as error:
                    figures = {"status": str(error)}
                    start_error = None if workers else error
                    workers = None
                    stack.close()
                yield cell, figures | busy
                if time.monotonic() > end:
                    queue.clear()
                if not queue and cell.stage == "forward" and not start_error:
                    fastest = fastest_end_to_end(cell, known)
                    queue += [fastest] if fastest not in (None, *speeds) else []


def run_in_turn(sweep: Sweep, workers: dict[Cell, ProcessPool], rounds: int) -> Iterator[tuple[Cell, dict]]:
    """Time cells again, `rounds` times in turn with all workers ready, so that a slow second affects all alike.

    An extra first round warms up. Yields as run_cells; a cell that fails is skipped, because it has a row already.
    """
    for i in range(1 + rounds):
        busy = busy_column(sweep.device)
        for cell, pool in workers.items():
            with contextlib.suppress(UserError):
                figures = measure(sweep, pool, cell)
                if i:
                    yield cell, figures | busy


def busy_column(device: Device) -> dict[str, str]:
    """Return the column `busy` while no worker runs; none on a GPU, where our own work would count as others'."""
    busy = cpu_busy() if device.gpu is None else None
    return {} if busy is None else {"busy": f"{busy:.2f}"}


def start_workers(sweep: Sweep, cell: Cell) -> ProcessPool:
    """Start the workers of a cell's variant. Raises UserError if they can't load it."""
    exported = sweep.exports[cell.variant]
    if isinstance(exported, UserError):
        raise exported
    device = Device(sweep.device.gpu, cell.threads, exclusive=cell.workers == 1)
    spec = ClassifierSpec(sweep.model, cell.variant, exported, device)
    arguments = [(number, spec, sweep.tokens, cell.workers) for number in range(cell.workers)]
    forked = not VARIANTS[cell.variant].environment  # else the memory would include modules it does not need
    return ProcessPool(Worker, arguments, sweep.stall_timeout, forked)


def measure(sweep: Sweep, workers: ProcessPool, cell: Cell) -> dict[str, str]:
    """Return the measured columns of a cell's row. Raises UserError."""
    workers.call(Worker.prepare, cell)
    seconds = []
    with watch_throttling(sweep.uuid) if sweep.uuid else contextlib.nullcontext(set()) as throttled:
        while not seconds or sum(seconds) < sweep.min_time:
            starts, ends = zip(*workers.call(Worker.run), strict=True)
            seconds.append(max(ends) - min(starts))
    reports = workers.call(Worker.report)

    texts, tokens = len(sweep.tokens.texts), int(sweep.tokens.lengths.sum())
    median = float(np.median(seconds))
    mfu = sweep.tokens.flops / median / (sweep.peak_of(cell.variant) or np.nan)
    figures = {
        "messages/s": texts / median,
        "min": texts / max(seconds),
        "max": texts / min(seconds),
        "passes": len(seconds),
        "tokens/s": tokens / median,
        "padding": sum(report.padded_tokens for report in reports) / tokens,
        "tflops": sweep.tokens.flops / median / 1e12,
        "mfu": mfu if mfu <= 1 else np.nan,
        "memory_mib": (sum if sweep.device.gpu is None else max)(report.memory_mib for report in reports),
    }
    if cell.stage == "forward":
        latencies = np.concatenate([report.latencies for report in reports])
        figures["p50_ms"], figures["p99_ms"] = np.percentile(latencies, [50, 99]) * 1000
    figures |= compare_sample(sweep, cell, reports)
    row = format_figures(figures)
    row |= {name: "" for name in ("tflops", "mfu") if np.isnan(figures[name])}
    row["throttled"] = (", ".join(sorted(throttled)) or "no") if sweep.uuid else ""
    return row | {"status": "ok" if np.isfinite(figures.get("max_diff", 0)) else "outputs are not finite"}


def format_figures(figures: dict) -> dict[str, str]:
    return {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in figures.items()}


def compare_sample(sweep: Sweep, cell: Cell, reports: list[Report]) -> dict:
    """Compare the workers' answers for the sample with the reference. Return the columns of ParityCounter.

    Without a reference there are none, or `max_diff` if an answer is not finite.
    """
    tokens, task = sweep.tokens, sweep.model.task
    owners = np.concatenate([report.items for report in reports])
    values = np.concatenate([report.values for report in reports])
    if tokens.reference is None:
        return {} if np.isfinite(values).all() else {"max_diff": np.nan}
    if cell.stage == "forward":
        answers = task.answers(values, owners, len(tokens.texts), "cut")
    else:
        answers = np.full((len(tokens.texts), len(task.labels)), np.nan)
        answers[owners] = values
    texts = [tokens.texts[i] for i in tokens.sample]
    return compare(sweep, cell.variant, texts, answers[tokens.sample], tokens.reference).columns()


def compare(sweep: Sweep, variant: str, texts: list[Item], answers: np.ndarray, reference: np.ndarray) -> ParityCounter:
    """Compare a variant's answers with the reference; add what that finds to the evidence, and return it."""
    precision = VARIANTS[variant].computes_in(sweep.device.gpu)
    parity = ParityCounter(sweep.model.task, precision, basis=sweep.model.task.basis(sweep.tokens.reference))
    parity.add(answers, reference, texts)
    sweep.evidence.add(sweep.keys[variant], parity)
    return parity
