"""Measures all cells, times the leaders again in turn, and checks the fast variants that are not proven yet."""

import contextlib

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.measure.cells import Cell, cell_of
from bench.measure.check import check_more, continue_check
from bench.measure.recorder import Recorder
from bench.measure.sweep import Sweep, run_cells, run_in_turn, start_workers
from bench.processes import ProcessPool
from bench.report.verdict import rank
from utils import UserError, say

ROUNDS = 2  # in which the leaders are timed again
LEADING_SPEED = 0.8  # of the speed of the fastest proven variant: slower cells are not timed again
MAX_LEADERS = 4  # variants loaded at once
LOADING_SECONDS = 4.0  # assumed in estimates, until a variant's workers are ready


def estimate_total(sweep: Sweep, seconds: dict[Cell, float], repeats: int) -> float:
    """Estimate the seconds of measure_all without compiling. `seconds`: of each cell, see sweep.estimate."""
    slowest = {}  # pass of each variant and worker count
    for cell, cost in seconds.items():
        slowest[cell.variant, cell.workers] = max(cost, slowest.get((cell.variant, cell.workers), 0))
    total = repeats * (sum(seconds.values()) + sum(LOADING_SECONDS + cost for cost in slowest.values()))
    if len(slowest) > 1 and repeats == 1:
        total += sum(LOADING_SECONDS + (1 + ROUNDS) * cost for cost in sorted(slowest.values())[:MAX_LEADERS])
    return total


def measure_all(sweep: Sweep, cells: list[Cell], recorder: Recorder, repeats: int) -> None:
    """Measure cells, time the leaders again in turn, and check unproven variants that are faster than proven ones."""
    for cell, figures in run_cells(sweep, cells, recorder.speeds(), repeats):
        recorder.add(cell, figures)
    leading = leading_cells(recorder)
    leaders = [cell for cell in leading if cell in recorder.cells]
    if len(leaders) < 2 or repeats > 1:  # repeated cells took turns already
        leaders = []
    can_check = sweep.check_time and sweep.more_texts
    undecided = [cell for cell, is_undecided in leading.items() if is_undecided and can_check]
    with contextlib.ExitStack() as stack:
        workers = {}
        for cell in dict.fromkeys([*leaders, *undecided]):
            try:
                workers[cell] = stack.enter_context(start_workers(sweep, cell))
            except UserError as error:
                say(f"note       {cell.variant} was not timed again: {error}")
        for cell, figures in run_in_turn(sweep, {cell: workers[cell] for cell in leaders if cell in workers}, ROUNDS):
            recorder.add(cell, figures)
        if can_check:  # the new times may have changed which cells are undecided
            check_undecided(sweep, recorder, workers)


def check_undecided(sweep: Sweep, recorder: Recorder, workers: dict[Cell, ProcessPool]) -> None:
    rows = recorder.completed()
    rows = rows[rows["stage"] != "check"]
    undecided = [cell for cell, is_undecided in leading_cells(recorder).items() if is_undecided and cell in workers]
    if not undecided:
        return
    names = ", ".join(cell.variant for cell in undecided)
    say(f"check      {names}: on more texts, for up to {sweep.check_time:.0f} s")
    checks = {cell: continue_check(sweep, rows[rows["variant"] == cell.variant]) for cell in undecided}
    try:
        for cell, figures in check_more(sweep, workers, checks):
            recorder.add(cell, figures)
    except UserError as error:  # such as out of memory: the rows so far remain valid
        say(f"check      stopped: {error}")


def leading_cells(recorder: Recorder) -> dict[Cell, bool]:
    """Return the end-to-end cells that may be recommended in the end, the fastest first, see LEADING_SPEED.

    The value is true for a cell that is compared but not proven, and faster than every proven one.
    """
    ranked = rank(recorder.completed())
    usable = ranked[(ranked["verdict"] != NOT_WITHIN) & ranked["end_to_end"]]
    usable = usable.sort_values("messages/s", ascending=False)
    proven_speed = usable[usable["verdict"] == WITHIN]["messages/s"].max()  # nan if none is proven
    usable = usable[~(usable["messages/s"] < LEADING_SPEED * proven_speed)].head(MAX_LEADERS)
    is_undecided = (usable["verdict"] == UNPROVEN) & usable["decisions"].notna()
    is_undecided &= ~(usable["messages/s"] <= proven_speed)
    return dict(zip(map(cell_of, usable.to_dict("records")), is_undecided, strict=True))
