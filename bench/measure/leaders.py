"""Measures all cells, times the leaders again in turn, and checks the fast variants that are not proven yet."""

import contextlib
import itertools
import math
import time
from dataclasses import replace

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.machine import cpu_cores, free_memory
from bench.measure.cells import Cell, batching_of, cell_of, cells_to_run
from bench.measure.check import FurtherCheck, check_more, undecided
from bench.measure.recorder import Recorder
from bench.measure.splits import fastest_split, worker_bytes
from bench.measure.sweep import Sweep, run_cells, run_in_turn, start_workers
from bench.processes import ProcessPool
from utils import UserError, say

ROUNDS = 2  # in which the leaders are timed again
LEADING_SPEED = 0.8  # of the speed of the fastest proven variant: slower cells are not timed again
MAX_LEADERS = 4  # variants loaded at once


def estimate(sweep: Sweep, cells: list[Cell], repeats: int) -> float:
    """Estimate the seconds of measure_all from the original's speed, without compiling, padding and checks."""
    total, leaders = 0.0, {}
    for (variant, split), group in itertools.groupby(cells, key=lambda cell: cell.loaded):
        seconds = len(sweep.tokens.texts) / sweep.reference_speed * sweep.peaks["fp32"]
        seconds /= sweep.peak_of(variant) or sweep.peaks["fp32"]
        if sweep.device.gpu is None:
            seconds /= min(1, math.prod(split) / cpu_cores())
        seconds = max(seconds, sweep.min_time)
        total += repeats * (sweep.loading + seconds * (1 + len(list(group))))  # one to warm up
        leaders[variant] = sweep.loading + (1 + ROUNDS) * seconds
    if len(leaders) > 1 and repeats == 1:
        total += sum(sorted(leaders.values())[:MAX_LEADERS])
    return total


def measure_all(sweep: Sweep, cells: list[Cell], recorder: Recorder, repeats: int) -> None:
    """Measure cells, time the leaders again in turn, and check unproven variants that are faster than proven ones.

    Cells with a reused row are left out. If the sweep searches, only the cells of the fastest split are measured.
    """
    cells = cells_to_run(fastest_split(sweep, cells, recorder) if sweep.search else cells, recorder.speeds())
    for cell, figures in run_cells(sweep, cells, recorder.speeds(), repeats):
        recorder.add(cell, figures)
    measured = {cell.variant for cell in (*recorder.cells, *recorder.speeds())}
    if missing := list(dict.fromkeys(cell.variant for cell in cells if cell.variant not in measured)):
        say(f"note       no time left for {', '.join(missing)}; measure them without --quick")
    can_check = sweep.check_time and sweep.more_texts
    timed_again = []
    with contextlib.ExitStack() as stack:
        workers = {}
        while True:
            leading = leading_cells(sweep, recorder)
            leaders = [cell for cell in leading if cell in recorder.cells]
            if repeats > 1 or len({*leaders, *timed_again}) < 2:  # repeated cells took turns already
                leaders = []
            checked = [cell for cell, is_undecided in leading.items() if is_undecided and can_check]
            new = [cell for cell in dict.fromkeys([*leaders, *checked]) if cell not in workers]
            for cell in affordable(sweep, recorder, new, len(workers)):
                try:
                    workers[cell] = stack.enter_context(start_workers(sweep, cell))
                except UserError as error:
                    say(f"note       {cell.variant} was not timed again: {error}")
            in_turn = {cell: workers[cell] for cell in dict.fromkeys([*timed_again, *leaders]) if cell in workers}
            if len(in_turn) < 2 or len(in_turn) == len(timed_again):
                break
            timed_again = [*in_turn]  # if all got slower, another variant may lead now
            for cell, figures in run_in_turn(sweep, in_turn, ROUNDS):
                recorder.add(cell, figures)
        if can_check:  # the new times may have changed which cells are undecided
            check_undecided(sweep, recorder, workers)


def affordable(sweep: Sweep, recorder: Recorder, cells: list[Cell], loaded: int) -> list[Cell]:
    """Return the first cells that fit into memory beside those `loaded`, and can be timed before the deadline."""
    left, kind = sweep.deadline - time.monotonic(), sweep.device.kind
    free = free_memory(sweep.uuid if kind == "gpu" else None)
    speeds = {cell_of(row): row["messages/s"] for row in recorder.completed().to_dict("records")}
    for count, cell in enumerate(cells):
        left -= sweep.loading + (1 + ROUNDS) * len(sweep.tokens.texts) / speeds[cell]
        free -= cell.workers * worker_bytes(sweep.model, kind)
        if (count or loaded) and free < 0:
            say(f"note       not enough memory to load {cell.variant}, too: it was not timed again")
        if left < 0 or ((count or loaded) and free < 0):
            return cells[:count]
    return cells


def check_undecided(sweep: Sweep, recorder: Recorder, workers: dict[Cell, ProcessPool]) -> None:
    """Check variants on more texts, with the batching that changed most."""
    rows = recorder.completed().sort_values(["flips", "messages/s"])
    worst = {row["variant"]: batching_of(row) for row in rows[rows["stage"] != "check"].to_dict("records")}
    loaded = {cell.variant: cell for cell in workers}  # perhaps with another split than the fastest of all runs
    leading = leading_cells(sweep, recorder).items()
    cells = [loaded[cell.variant] for cell, is_undecided in leading if is_undecided and cell.variant in loaded]
    checks = {cell: FurtherCheck(sweep, replace(cell, batching=worst[cell.variant], stage="check")) for cell in cells}
    seconds = min(sweep.check_time, sweep.deadline - time.monotonic())
    if not undecided(checks) or seconds < 0:
        return
    say(f"check      {', '.join(cell.variant for cell in checks)}: on more texts, for up to {seconds:.0f} s")
    try:
        check_more(sweep, workers, checks)
    except UserError as error:  # such as out of memory: what was compared so far remains valid
        say(f"check      stopped: {error}")
    for check in checks.values():
        if check.texts:
            recorder.add(check.cell, check.columns())


def leading_cells(sweep: Sweep, recorder: Recorder) -> dict[Cell, bool]:
    """Return this run's end-to-end cells that may be recommended in the end, the fastest first, see LEADING_SPEED.

    The value is true for a cell that is compared but not proven, and faster than every proven one.
    """
    ranked = recorder.ranked()
    usable = ranked[(ranked["verdict"] != NOT_WITHIN) & ranked["end_to_end"]]
    usable = usable.sort_values("speed", ascending=False)
    proven_speed = usable[usable["verdict"] == WITHIN]["speed"].max()  # nan if none is proven
    usable = usable[~(usable["speed"] < LEADING_SPEED * proven_speed) & usable["variant"].isin(sweep.exports)]
    usable = usable.head(MAX_LEADERS)
    is_undecided = (usable["verdict"] == UNPROVEN) & usable["decisions"].notna()
    is_undecided &= ~(usable["speed"] <= proven_speed)
    return dict(zip(map(cell_of, usable.to_dict("records")), is_undecided, strict=True))
