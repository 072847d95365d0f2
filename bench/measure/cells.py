"""The cells of a sweep, and which of them still have to be measured."""

import itertools
from dataclasses import dataclass, replace

from bench.model.batches import Batching
from bench.report.verdict import ONE_PASS_ERROR
from runtimes import VARIANTS

Split = tuple[int, int]  # workers, threads of each


@dataclass(frozen=True)
class Cell:
    """One combination to measure, which gives one row of results.

    Its stage is what is timed: `forward`, the forward passes only; `end-to-end`, from texts to answers on the host;
    `check`, the same over more texts, which are compared with the original model.
    """

    variant: str
    workers: int
    threads: int  # of each worker
    batching: Batching
    stage: str = "forward"

    @property
    def split(self) -> Split:
        return self.workers, self.threads

    @property
    def loaded(self) -> tuple[str, Split]:
        """What its workers load: cells with the same value run in the same processes."""
        return self.variant, self.split

    def columns(self) -> dict:
        """Return the columns of a row that identify the cell."""
        size, tokens = self.batching.batch_size or "", self.batching.batch_tokens or ""
        return vars(self) | {"batching": self.batching.name, "batch_size": size, "batch_tokens": tokens}


def cell_of(row: dict) -> Cell:
    return Cell(row["variant"], row["workers"], row["threads"], batching_of(row), row["stage"])


def batching_of(row: dict) -> Batching:
    return Batching(row["batching"], int(row["batch_size"]), int(row["batch_tokens"]))


def plan_cells(
    variants: list[str], splits: list[Split], names: list[str], batch_sizes: list[int], batch_tokens: list[int]
) -> list[Cell]:
    """Return the cells to measure, without duplicates: batches of one text are the same in-order and sorted.

    `names`: of BATCHINGS. A variant that takes texts is measured end to end only, in-order at each batch size.
    """
    in_order = [Batching("in-order", size) for size in batch_sizes]
    sizes = itertools.product(batch_sizes, [name for name in names if name != "token-budget"])
    budgets = batch_tokens if "token-budget" in names else []
    batchings = [Batching("token-budget", batch_tokens=tokens) for tokens in budgets]  # first: the likeliest to win
    batchings += [Batching("in-order" if size == 1 else name, size) for size, name in sizes]
    cells = []
    for variant, split in itertools.product(variants, splits):
        if VARIANTS[variant].takes_texts:
            cells += [Cell(variant, *split, batching, "end-to-end") for batching in in_order]
        else:
            cells += [Cell(variant, *split, batching) for batching in batchings]
    return list(dict.fromkeys(cells))


def cells_to_run(cells: list[Cell], speeds: dict[Cell, float]) -> list[Cell]:
    """Return the cells that still have to be measured. `speeds`: messages/s of the cells measured before.

    If all cells of a variant and split have a speed, only the end-to-end row of the fastest can be missing.
    """
    chosen = []
    for _, group in itertools.groupby(cells, key=lambda cell: cell.loaded):
        group_cells = list(group)
        missing = [cell for cell in group_cells if cell not in speeds]
        end_to_end = fastest_end_to_end(group_cells[0], speeds)
        if not missing and end_to_end not in speeds:
            missing = [end_to_end]
        chosen += missing
    return chosen


def fastest_end_to_end(cell: Cell, speeds: dict[Cell, float]) -> Cell | None:
    """Return the end-to-end cell for the fastest with this one's variant and split; None if all failed.

    Among cells that a single pass cannot tell apart, this is one with a token budget, which is safe for texts of any
    length, while a fixed number of texts may suit only these.
    """
    wanted = replace(cell, batching=None)
    candidates = [other for other in speeds if replace(other, batching=None) == wanted]
    if not candidates:
        return None
    limit = (1 - ONE_PASS_ERROR) * max(map(speeds.get, candidates))
    near = [other for other in candidates if speeds[other] >= limit]
    fastest = max(near, key=lambda other: (other.batching.name == "token-budget", speeds[other]))
    return replace(fastest, stage="end-to-end")
