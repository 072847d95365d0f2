"""Measured cells -> rows: shown, kept, and appended to their files."""

from collections.abc import Callable
from pathlib import Path

from bench.machine import DeviceInfo
from bench.measure.cells import Cell, cell_of
from bench.model.model import Model
from bench.naming import slug
from bench.provenance import package_versions, project_commit
from bench.report import rows
from bench.tables.datasets import Dataset
from bench.tables.items import digest_items
from runtimes import VARIANTS
from utils import say


def columns_of(variant: str) -> dict[str, str]:
    """Returns the columns that are the same in all rows of a variant: its name, and the versions that it runs with."""
    return {"variant": variant, "versions": package_versions(VARIANTS[variant])}


def columns_of_run(model: Model, dataset: Dataset, info: DeviceInfo, threads: int) -> dict:
    """Returns the columns that are the same in all rows of a run, but for how `busy` it is and its `date`."""
    same = {"model": model.id, "dataset": dataset.name, "device": slug(info.name), "threads": threads}
    same |= {"texts": len(dataset.texts), "texts_id": digest_items(dataset.texts)}
    same |= {"weights_id": model.weights_id, "threshold": model.task.rule_id}
    return same | {"commit": project_commit(), "driver": info.driver}


class Recorder:
    """Collects the rows of a run.

    same: the columns that all rows share; before: rows of earlier runs that count, too; results_dir: where rows are
    appended, None for nowhere; show(cell, row) is called for each. `found`: the rows of this run, of these `cells`;
    `unsaved`: those of them that could not be appended.
    """

    def __init__(self, same: dict, before, results_dir: Path | None, show: Callable[[Cell, dict], object]):
        self.same, self.before, self.results_dir, self.show = same, before, results_dir, show
        self.found, self.unsaved, self.cells = [], [], set()

    def add(self, cell: Cell, figures: dict[str, str]) -> None:
        row = dict.fromkeys(rows.COLUMNS, "") | self.same | columns_of(cell.variant) | cell.columns() | figures
        self.found.append(row)
        self.cells.add(cell)
        if self.results_dir is not None:
            path = rows.results_path(self.results_dir, row)
            self.unsaved.append(row)  # until it is: Ctrl-C may come in between
            try:
                rows.append_row(path, row)
                self.unsaved.pop()
            except OSError as error:
                say(f"{path}: not saved: {error.strerror}")
        self.show(cell, row)

    def speeds(self) -> dict[Cell, float]:
        """Returns the messages/s of the cells that were measured before."""
        return {cell_of(row): row["messages/s"] for row in self.before.to_dict("records")}

    def completed(self):
        """Returns one row for each cell that ran, now or before, as a DataFrame."""
        before = self.before.astype(str).replace("nan", "").to_dict("records")
        return rows.latest_per_cell(rows.completed_rows([*before, *self.found])[0])
