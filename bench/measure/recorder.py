"""Measured cells -> rows: printed, kept, and appended to their files."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np

from bench.judge import TOLERANCE
from bench.machine import BUSY, DeviceInfo
from bench.measure.cells import Cell, cell_of
from bench.model.model import Model
from bench.naming import slug
from bench.provenance import package_versions, project_commit
from bench.report import rows
from bench.report.evidence import EvidenceFile
from bench.report.table import table_line
from bench.report.verdict import rank
from bench.tables.datasets import Dataset
from bench.tables.items import digest_items
from runtimes import VARIANTS
from utils import say


def columns_of_run(model: Model, dataset: Dataset, info: DeviceInfo) -> dict:
    """Return the columns that all rows of a run share, except `busy` and `date`."""
    return {
        "model": model.public_name,
        "dataset": dataset.name,
        "device": slug(info.name),
        "texts": len(dataset.texts),
        "texts_id": digest_items(dataset.texts),
        "weights_id": model.weights_id,
        "threshold": model.task.rule_id,
        "commit": project_commit(),
        "driver": info.driver,
    }


def rows_for_advice(results_dir: Path, run_columns: dict):
    """Return earlier rows with the same weights, threshold, device, dataset and versions, as a DataFrame."""
    versions = {name: package_versions(variant) for name, variant in VARIANTS.items()}
    paths = [rows.results_path(results_dir, run_columns | {"variant": name}) for name in VARIANTS]
    found, _, _ = rows.read_results([path for path in paths if path.exists()])
    found = found[found["versions"] == found["variant"].map(versions)]
    for name in ("model", "device", "dataset", "weights_id", "threshold"):
        found = found[found[name] == run_columns[name]]
    return found


def rows_to_reuse(earlier, run_columns: dict, cells: list[Cell]):
    """Return the earlier rows of these cells that need not be measured again, see rows_for_advice.

    They ran on the same texts and commit while no other process kept the device busy. Their end-to-end rows are
    included.
    """
    usable = [
        all(str(row[name]) == str(run_columns[name]) for name in ("texts", "texts_id", "commit", "driver"))
        and not {cell_of(row), replace(cell_of(row), stage="forward")}.isdisjoint(cells)
        for row in earlier.to_dict("records")
    ]
    found = rows.latest_per_cell(earlier[np.array(usable, dtype=bool)])
    return found[~(found["busy"] > BUSY)]


@dataclass
class Recorder:
    """Collects the rows of a run, prints each and appends it to its file."""

    run_columns: dict
    results_dir: Path | None  # None to save nothing
    file: TextIO  # for the rows as a table
    evidence: EvidenceFile
    tolerance: float = TOLERANCE
    earlier: object = None  # a DataFrame, see rows_for_advice
    reused: object = None  # those of them that are not measured again, see rows_to_reuse
    rows: list[dict] = field(default_factory=list)  # of this run
    unsaved: list[dict] = field(default_factory=list)  # those of them that could not be appended
    cells: set[Cell] = field(default_factory=set)  # that this run has measured

    def __post_init__(self) -> None:
        self.run_columns = self.run_columns | {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        self.earlier = rows.completed_rows([])[0] if self.earlier is None else self.earlier
        self.reused = self.earlier.iloc[:0] if self.reused is None else self.reused

    def add(self, cell: Cell, figures: dict[str, str]) -> None:
        row = dict.fromkeys(rows.COLUMNS, "") | self.run_columns
        row |= {"versions": package_versions(VARIANTS[cell.variant])} | cell.columns() | figures
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
        print(table_line(row), file=self.file, flush=True)

    def speeds(self) -> dict[Cell, float]:
        return {cell_of(row): row["messages/s"] for row in self.reused.to_dict("records")}

    def completed(self):
        """Return one row for each cell that ran, now or earlier, as a DataFrame.

        Speeds on other texts count only for variants that were not timed end to end on these.
        """
        earlier = self.earlier.astype(str).replace("nan", "").to_dict("records")
        completed, _, _ = rows.completed_rows([*earlier, *self.rows])
        same = completed["texts_id"] == self.run_columns["texts_id"]
        timed = completed["variant"][same & (completed["stage"] == "end-to-end")]
        completed = completed[same | (completed["stage"] == "check") | ~completed["variant"].isin(timed)]
        return rows.latest_per_cell(rows.add_slowdowns(completed), any_texts=True)

    def ranked(self):
        return rank(self.completed(), self.evidence, self.tolerance)
