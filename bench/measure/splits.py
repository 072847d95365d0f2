"""Splits of the machine: how many workers with how many threads each, and the search for the fastest split."""

import time
from dataclasses import replace

from bench.machine import cpu_cores, free_memory
from bench.measure.cells import Cell, Split
from bench.measure.recorder import Recorder
from bench.measure.sweep import Sweep, run_cells
from bench.measure.warnings import note
from bench.model.model import Model
from bench.model_files import weight_files
from runtimes import VARIANTS
from utils import UserError, say

SMALL_WEIGHTS = 2**28  # bytes of the largest model for which four workers on a GPU are tried
WEIGHT_COPIES = 3  # while a worker loads: the file, its tensors, and those that the runtime rearranges
WORKER_BYTES = {"cpu": 2**28, "gpu": 2**31}  # besides the weights: the runtime, on a GPU also large batches
SEARCH_SECONDS = 1.0  # of passes for each split
SEARCH_SHARE = 1 / 3  # of the time until the deadline


def share_cores(counts: list[int], threads: int | None = None) -> list[Split]:
    """Return the split for each number of workers; without `threads`, all cores are shared out."""
    return [(count, threads or max(1, cpu_cores() // count)) for count in counts]


def splits_to_try(model: Model, device: str, uuid: str) -> list[Split]:
    """Return at most four splits of a `gpu` or `cpu` that fit into its memory, one worker first; note the others."""
    cores = cpu_cores()
    counts = [1, cores // 4, cores // 2, cores]
    if device == "gpu":
        counts = [1, 2, 4] if weight_bytes(model) <= SMALL_WEIGHTS else [1, 2]
    counts = sorted({count for count in counts if 1 <= count <= cores})
    free, needed = free_memory(uuid if device == "gpu" else None), worker_bytes(model, device)
    large = [count for count in counts[1:] if count * needed > free]
    if large:
        sizes = f"{needed / 2**30:.1f} GiB each, and {free / 2**30:.1f} GiB are free"
        splits = ", ".join(f"{workers} x {threads}" for workers, threads in share_cores(large))
        note(f"not enough memory for {splits} (workers x threads): {sizes}")
    return share_cores([count for count in counts if count not in large])


def worker_bytes(model: Model, device: str) -> int:
    return WEIGHT_COPIES * weight_bytes(model) + WORKER_BYTES[device]


def weight_bytes(model: Model) -> int:
    return sum(file.stat().st_size for file in weight_files(model.folder))


def on_split(cells: list[Cell], split: Split) -> list[Cell]:
    return [cell for cell in cells if cell.split == split]


def search_cells(cells: list[Cell]) -> list[Cell]:
    """Return the cells that rank the splits: the first of one variant for each split, end to end.

    The variant is the likeliest winner: of those that load at once and are seldom refuted, the last in VARIANTS.
    """

    def likelihood(name: str) -> tuple:
        variant = VARIANTS[name]
        return not variant.takes_texts, not variant.compiles, variant.precision != "int8", list(VARIANTS).index(name)

    name = max({cell.variant for cell in cells}, key=likelihood)
    firsts = {}
    for cell in cells:
        if cell.variant == name:
            firsts.setdefault(cell.split, replace(cell, stage="end-to-end"))
    return [*firsts.values()] if len(firsts) > 1 else []


def expected_cells(sweep: Sweep, cells: list[Cell]) -> list[Cell]:
    """Return the cells that will probably run: all, or with a search those that rank the splits and those of one."""
    return [*search_cells(cells), *on_split(cells, cells[0].split)] if sweep.search else cells


def fastest_split(sweep: Sweep, cells: list[Cell], recorder: Recorder) -> list[Cell]:
    """Time one variant end to end with each split. Return the cells of the fastest split."""
    usable = [cell for cell in cells if not isinstance(sweep.exports[cell.variant], UserError)]
    ranking = search_cells(usable) if usable else []
    if not ranking:
        return on_split(cells, cells[0].split)
    now = time.monotonic()
    deadline = now + SEARCH_SHARE * (sweep.deadline - now)
    speeds = {cell: speed for cell, speed in recorder.speeds().items() if cell in ranking}
    missing = [cell for cell in ranking if cell not in speeds]
    for cell, figures in run_cells(replace(sweep, deadline=deadline, min_time=SEARCH_SECONDS), missing, speeds, 1):
        recorder.add(cell, figures)
        if figures["status"] == "ok":
            speeds[cell] = float(figures["messages/s"])
    best = max(speeds, key=speeds.get, default=ranking[0])
    if len(speeds) > 1:
        say(f"split      {best.workers} x {best.threads} (workers x threads): the fastest with {best.variant}")
    return on_split(cells, best.split)
