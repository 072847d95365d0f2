"""The cells of a sweep, and which of them are left to measure."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.machine import BUSY
from bench.model.batches import Batching
from bench.report.rows import latest_per_cell, read_results, results_path
from bench.report.verdict import ONE_PASS_ERROR
from runtimes import VARIANTS


@dataclass(frozen=True)
class Cell:
    """One combination that is measured, which gives one row.

    stage: what is timed: `forward`, the forward passes alone; `end-to-end`, from texts to logits on the host; `check`,
    the same over more texts, which are compared with the original.
    """

    variant: str
    workers: int
    batching: Batching
    stage: str = "forward"

    def columns(self) -> dict:
        """Returns the columns of its row that name it."""
        how = self.batching
        sizes = {"batching": how.name, "batch_size": how.batch_size or "", "batch_tokens": how.batch_tokens or ""}
        return {"variant": self.variant, "workers": self.workers, "stage": self.stage} | sizes


def cell_of(row: dict) -> Cell:
    return Cell(row["variant"], row["workers"], batching_of(row), row["stage"])


def batching_of(row: dict) -> Batching:
    return Batching(row["batching"], int(row["batch_size"]), int(row["batch_tokens"]))


def plan_cells(
    variants: list[str], workers: list[int], names: list[str], batch_sizes: list[int], batch_tokens: list[int]
) -> list[Cell]:
    """Returns the cells to measure, each once: one text at a time is the same work in-order and sorted.

    `names`: of BATCHINGS. A variant that takes texts is measured end to end, in-order at each batch size.
    """
    in_order = [Batching("in-order", size) for size in batch_sizes]
    sizes = itertools.product(batch_sizes, [name for name in names if name != "token-budget"])
    batchings = [Batching("in-order" if size == 1 else name, size) for size, name in sizes]
    batchings += [Batching("token-budget", batch_tokens=tokens) for tokens in batch_tokens if "token-budget" in names]
    cells = []
    for variant, count in itertools.product(variants, workers):
        stage, ways = ("end-to-end", in_order) if VARIANTS[variant].takes_texts else ("forward", batchings)
        cells += [Cell(variant, count, how, stage) for how in ways]
    return list(dict.fromkeys(cells))


def measured_before(results_dir: Path, same: dict, columns_of: Callable, cells: list[Cell]):
    """Returns the rows of cells that need not be measured again, end-to-end rows and checks included, as a DataFrame.

    They are complete, were measured while others left the device alone, and have the columns that are the `same` for
    all cells of a run, and those that columns_of(variant) gives: of the same texts, weights, commit and versions.
    """
    variants = dict.fromkeys(cell.variant for cell in cells)
    paths = [results_path(results_dir, same | {"variant": variant}) for variant in variants]
    rows, _, _ = read_results([path for path in paths if path.exists()])
    wanted = [(same | columns_of(variant)).items() for variant in rows["variant"]]
    alike = [
        all(str(row[name]) == str(value) for name, value in own)
        and not {cell_of(row), replace(cell_of(row), stage="forward")}.isdisjoint(cells)
        for row, own in zip(rows.to_dict("records"), wanted, strict=True)
    ]
    rows = latest_per_cell(rows[np.array(alike, dtype=bool)])
    return rows[~(rows["busy"] > BUSY)]


def cells_to_run(cells: list[Cell], speeds: dict[Cell, float]) -> list[Cell]:
    """Returns the cells still to measure, where some have a speed.

    Where a variant and worker count has all of them but no end-to-end row, that is its fastest cell, end to end.
    """
    chosen = []
    for _, group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.workers)):
        alike = list(group)
        missing = [cell for cell in alike if cell not in speeds]
        fastest = missing or [replace(fastest_of({cell: speeds[cell] for cell in alike}), stage="end-to-end")]
        chosen += [cell for cell in fastest if cell not in speeds]
    return chosen


def fastest_of(speeds: dict[Cell, float]) -> Cell:
    """Returns the fastest cell; of those that one pass can't tell from it, one with a token budget if there is one.

    A budget is safe for texts of any length; one text at a time, or many, may have been lucky.
    """
    near = [cell for cell in speeds if speeds[cell] >= (1 - ONE_PASS_ERROR) * max(speeds.values())]
    return max(near, key=lambda cell: (cell.batching.name == "token-budget", speeds[cell]))
