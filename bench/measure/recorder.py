"""Measured cells -> rows: shown, kept, and appended to their files."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.machine import BUSY, DeviceInfo
from bench.measure.cells import Cell, cell_of
from bench.model.model import Model
from bench.naming import slug
from bench.provenance import package_versions, project_commit
from bench.report import rows
from bench.tables.datasets import Dataset
from bench.tables.items import digest_items
from runtimes import VARIANTS
from utils import say


def columns_of_variant(variant: str) -> dict[str, str]:
    return {"variant": variant, "versions": package_versions(VARIANTS[variant])}


def columns_of_run(model: Model, dataset: Dataset, info: DeviceInfo, threads: int) -> dict:
    """Return the columns that all rows of a run share, except `busy` and `date`."""
    return {
        "model": model.id,
        "dataset": dataset.name,
        "device": slug(info.name),
        "threads": threads,
        "texts": len(dataset.texts),
        "texts_id": digest_items(dataset.texts),
        "weights_id": model.weights_id,
        "threshold": model.task.rule_id,
        "commit": project_commit(),
        "driver": info.driver,
    }


def rows_to_reuse(results_dir: Path, run_columns: dict, cells: list[Cell]):
    """Return earlier rows of these cells that need not be measured again, as a DataFrame.

    They ran on the same texts, weights, commit and versions while no other process kept the device busy. Their
    end-to-end rows are included.
    """
    columns = {cell.variant: run_columns | columns_of_variant(cell.variant) for cell in cells}
    paths = [rows.results_path(results_dir, wanted) for wanted in columns.values()]
    found, _, _ = rows.read_results([path for path in paths if path.exists()])
    usable = [
        all(str(row[name]) == str(value) for name, value in columns[row["variant"]].items())
        and not {cell_of(row), replace(cell_of(row), stage="forward")}.isdisjoint(cells)
        for row in found.to_dict("records")
    ]
    found = rows.latest_per_cell(found[np.array(usable, dtype=bool)])
    return found[~(found["busy"] > BUSY)]


class Recorder:
    """Collects the rows of a run, shows each and appends it to its file.

    `results_dir`: None to save nothing; `earlier`: a DataFrame of rows to reuse, see rows_to_reuse.
    """

    def __init__(self, run_columns: dict, results_dir: Path | None, show: Callable[[Cell, dict], object], earlier=None):
        self.run_columns = run_columns | {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        self.results_dir = results_dir
        self.show = show
        self.earlier = rows.completed_rows([])[0] if earlier is None else earlier
        self.rows: list[dict] = []  # of this run
        self.unsaved: list[dict] = []  # those of them that could not be appended
        self.cells: set[Cell] = set()  # that this run has measured

    def add(self, cell: Cell, figures: dict[str, str]) -> None:
        row = dict.fromkeys(rows.COLUMNS, "") | self.run_columns
        row |= columns_of_variant(cell.variant) | cell.columns() | figures
        self.rows.append(row)
        self.cells.add(cell)
        if self.results_dir is not None:
            path = rows.results_path(self.results_dir, row)
            self.unsaved.append(row)  # first, because Ctrl-C may interrupt the next line
            try:
                rows.append_row(path, row)
                self.unsaved.pop()
            except OSError as error:
                say(f"{path}: not saved: {error.strerror}")
        self.show(cell, row)

    def speeds(self) -> dict[Cell, float]:
        return {cell_of(row): row["messages/s"] for row in self.earlier.to_dict("records")}

    def completed(self):
        """Return one row for each cell that ran, now or earlier, as a DataFrame."""
        earlier = self.earlier.astype(str).replace("nan", "").to_dict("records")
        return rows.latest_per_cell(rows.completed_rows([*earlier, *self.rows])[0])
