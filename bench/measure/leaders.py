"""How much is measured: the size of a first look, the leaders that are timed again in turn, and what is checked."""

import contextlib
from collections.abc import Iterator

import numpy as np

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.measure.cells import Cell, cell_of
from bench.measure.check import check_more, continue_check
from bench.measure.peak import count_flops
from bench.measure.recorder import Recorder
from bench.measure.sweep import ASSUMED_MFU, Sweep, run_cells, run_in_turn, start_workers
from bench.model.model import Model
from bench.processes import ProcessPool
from bench.provenance import versions
from bench.report.verdict import rank
from bench.tables.datasets import evenly_spaced
from runtimes import VARIANTS
from utils import UserError, say

# of a first look: options of run_benchmark.py
LOOK = {
    "cpu": {"batches": [1, 8], "batch_tokens": [512], "batching": ["sorted", "token-budget"]},
    "gpu": {"batches": [32], "batch_tokens": [16384, 65536], "batching": ["in-order", "sorted", "token-budget"]},
}
PASS_SECONDS = 1.5  # of an FP32 pass in a first look, about
LEAST_TEXTS = 32  # that it takes, however slow the device
N_COUNTED = 64  # texts on which the FLOPs of one are counted
ROUNDS = 2  # in which the leaders are timed again
CLOSE = 0.8  # of the speed that would be recommended: what is slower is not timed again
MAX_LEADERS = 4  # that are loaded at once


def flops_of_a_text(model: Model, texts: list[str]) -> float:
    """Counts the FLOPs of a text, on average over some evenly spaced ones; nan where torch can't count them."""
    ids = model.tokenize([texts[i] for i in evenly_spaced(len(texts), N_COUNTED)])["input_ids"]
    ids = [own for own in ids if own]
    try:
        return count_flops(model, np.array([len(own) for own in ids]), max(ids, key=len)) / len(ids)
    except Exception:  # torch's counter fails for Perceiver, and CANINE takes no short texts
        return np.nan


def look_size(flops: float, peak: float) -> int:
    """Returns how many texts a device with this FP32 peak (FLOP/s) does in PASS_SECONDS."""
    texts = PASS_SECONDS * ASSUMED_MFU * peak / flops
    return max(LEAST_TEXTS, int(texts)) if np.isfinite(texts) else LEAST_TEXTS


def default_variants(device: str, compiled: bool = False) -> list[str]:
    """Returns the variants that are fast on a `gpu` or `cpu` and whose runtime is installed.

    Those that compile first only if `compiled`.
    """
    return [
        name
        for name, variant in VARIANTS.items()
        if device in variant.default_on
        and versions(*variant.packages)
        and variant.is_native_on(device)
        and (compiled or not variant.compiles)
    ]


def measure_all(sweep: Sweep, cells: list[Cell], recorder: Recorder, repeats: int) -> None:
    """Measures cells, times the leaders again in turn, and checks on more texts what is faster than what is proven."""
    for cell, figures in run_cells(sweep, cells, recorder.speeds(), repeats):
        recorder.add(cell, figures)
    leaders = [cell for cell in leading(recorder) if cell in recorder.cells]
    leaders = leaders if len(leaders) > 1 and repeats == 1 else []  # else there is nobody to take turns with
    checks = sweep.check_time and sweep.more_texts
    unsettled = undecided(recorder) if checks else []
    if not leaders and not unsettled:
        return
    with start_all(sweep, list(dict.fromkeys([*leaders, *unsettled]))) as workers:
        for cell, figures in run_in_turn(sweep, {cell: workers[cell] for cell in leaders if cell in workers}, ROUNDS):
            recorder.add(cell, figures)
        rows = recorder.completed()
        rows = rows[rows["stage"] != "check"]
        unsettled = [cell for cell in undecided(recorder) if checks and cell in workers]
        if unsettled:
            names = ", ".join(cell.variant for cell in unsettled)
            say(f"check      {names}: more texts, {sweep.check_time:.0f} s at most")
            begun = {cell: continue_check(sweep, rows[rows["variant"] == cell.variant]) for cell in unsettled}
            try:
                for cell, figures in check_more(sweep, workers, begun):
                    recorder.add(cell, figures)
            except UserError as error:  # such as memory: the rows that there are stand
                say(f"the check ended: {error}")


def leading(recorder: Recorder) -> list[Cell]:
    """Returns the cells, end to end, that may be taken in the end, the fastest first: none slower than CLOSE allows."""
    ranked = rank(recorder.completed())
    fit = ranked[(ranked["verdict"] != NOT_WITHIN) & ranked["end_to_end"]].sort_values("messages/s", ascending=False)
    proven = fit[fit["verdict"] == WITHIN]["messages/s"]
    fit = fit[fit["messages/s"] >= CLOSE * (proven.max() if len(proven) else 0)]
    return [cell_of(row) for row in fit.to_dict("records")][:MAX_LEADERS]


def undecided(recorder: Recorder) -> list[Cell]:
    """Returns those of the leading cells that are not proven, and faster than what is."""
    ranked = rank(recorder.completed())
    proven = ranked[(ranked["verdict"] == WITHIN) & ranked["end_to_end"]]["messages/s"]
    faster = ranked[(ranked["verdict"] == UNPROVEN) & ~(ranked["messages/s"] <= proven.max())]
    faster = {cell_of(row) for row in faster[faster["decisions"].notna()].to_dict("records")}
    return [cell for cell in leading(recorder) if cell in faster]


@contextlib.contextmanager
def start_all(sweep: Sweep, cells: list[Cell]) -> Iterator[dict[Cell, ProcessPool]]:
    """Starts the workers of several cells at once; says which can't be started, and goes without them."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for cell in cells:
            try:
                workers[cell] = stack.enter_context(start_workers(sweep, cell))
            except UserError as error:
                say(f"{cell.variant} can't be started again: {error}")
        yield workers
