"""Cells and earlier rows -> the cells that are left to measure."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from bench.passes import Cell
from bench.results import latest, read_results, results_path


def measured_before(results_dir: Path, same: dict, columns_of: Callable, cells: list[Cell]):
    """Returns the rows of cells that need not be measured again, `texts` rows included, as a DataFrame.

    They are good, and have the columns that are the `same` for all cells of a run, and those that columns_of(variant)
    gives: of the same texts, weights, commit and versions.
    """
    variants = dict.fromkeys(cell.variant for cell in cells)
    paths = [results_path(results_dir, same | {"variant": variant}) for variant in variants]
    rows, _, _ = read_results([path for path in paths if path.exists()])
    wanted = [(same | columns_of(variant)).items() for variant in rows["variant"]]
    alike = [
        all(str(row[name]) == str(value) for name, value in own)
        and not {cell_of(row), replace(cell_of(row), timed="forward")}.isdisjoint(cells)
        for row, own in zip(rows.to_dict("records"), wanted, strict=True)
    ]
    return latest(rows[np.array(alike, dtype=bool)])


def cell_of(row: dict) -> Cell:
    return Cell(*(row[field.name] for field in fields(Cell)))


def cells_to_run(cells: list[Cell], before: dict[Cell, float]) -> list[Cell]:
    """Returns the cells still to measure.

    Where a variant and worker count has all of them but no `texts` row, that is its fastest cell, timed from texts.
    """
    chosen = []
    for _, group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.workers)):
        alike = list(group)
        missing = [cell for cell in alike if cell not in before]
        fastest = replace(max(alike, key=lambda cell: before.get(cell, 0)), timed="texts")
        chosen += missing or [fastest] * (fastest not in before)
    return chosen
