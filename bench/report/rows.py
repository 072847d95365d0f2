"""Rows <-> results/*.tsv: files that are only ever appended to, one whole line at a time."""

import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np

from bench.files import LONGEST_NAME, append_line
from bench.machine import BUSY
from bench.naming import file_name
from bench.options import BATCHINGS
from utils import UserError, clean

# A row: what was asked, what was measured, where it comes from. results/README.md explains each column.
COLUMNS = (
    *("workers", "threads", "batching", "batch_size", "batch_tokens", "stage"),
    *("messages/s", "min", "max", "passes", "tokens/s", "padding", "tflops", "mfu"),
    *("p50_ms", "p99_ms", "memory_mib", "busy", "throttled", "max_diff", "flips", "decisions", "within", "status"),
    *("variant", "model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold"),
    *("versions", "driver", "commit", "date"),
)
# the columns that identify the cell of a row
CELL_COLUMNS = ("model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold")
CELL_COLUMNS += ("variant", "workers", "threads", "batching", "batch_size", "batch_tokens", "stage")
ADVICE_CELL = tuple(name for name in CELL_COLUMNS if name not in ("texts", "texts_id"))  # on any texts of the dataset
COUNTS = ("workers", "threads", "batch_size", "batch_tokens", "texts")
SPEEDS = ("messages/s", "min", "max")
NUMBERS = (*COUNTS, *SPEEDS, "passes", "tokens/s", "padding", "tflops", "mfu", "max_diff", "flips", "decisions", "busy")
MOST_PROCESSES = 1024  # workers, or threads of one: more than any machine has
MOST_CHANGES = 2**20  # decisions; the time to judge them grows with their number
STAGES = ("forward", "end-to-end", "check")
DATE = r"(\d{4}-\d\d-\d\dT[\d:.]+Z)?"
PUBLISHED = "published"  # the commit of rows that were measured elsewhere, see results/README.md


def results_path(results_dir: Path, row: dict) -> Path:
    """Return the file of a row: `<results_dir>/<model>/<device>_<variant>_<dataset>.tsv`.

    Raises UserError if the name would be too long.
    """
    file = "_".join(file_name(row[key]) for key in ("device", "variant", "dataset")) + ".tsv"
    if len(os.fsencode(file)) > LONGEST_NAME:
        raise UserError(f"cannot save results: the name of dataset {row['dataset'][:20]}... is too long for a file")
    return results_dir / file_name(Path(row["model"]).resolve().name) / file


def line_of(row: dict) -> str:
    return "\t".join(clean(str(row[name])) for name in COLUMNS) + "\n"


HEADER = line_of(dict(zip(COLUMNS, COLUMNS, strict=True)))


def append_row(path: Path, row: dict) -> None:
    """Append a row, after a header if the file's last header differs. Raises OSError."""
    lines = path.read_bytes().decode(errors="replace").split("\n") if path.is_file() else []
    headers = [line for line in lines if is_header(line.split("\t"))]
    is_current = headers[-1:] == [HEADER.rstrip()]
    append_line(path, ("" if is_current else HEADER) + line_of(row).rstrip("\n"))


def is_header(fields: list[str]) -> bool:
    return {"messages/s", "batching"} <= set(fields)


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """Read the rows of a file as text by column. Return (rows, number of unreadable lines). Raises OSError.

    A line belongs to the header before it, so files of several versions can be concatenated. Missing columns are empty.
    Values are cleaned, since another program may have written the file.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    rows, skipped, header = [], 0, []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
        fields = line.rstrip("\r").split("\t")
        if is_header(fields):
            header = fields
        elif header and len(fields) == len(header):
            rows.append(dict.fromkeys(COLUMNS, "") | dict(zip(header, map(clean, fields), strict=True)))
        elif line.strip():
            skipped += 1
    return rows, skipped


def read_results(paths: list[Path]):
    """Read the completed rows of several files, in order.

    Return (rows as a pandas DataFrame, number of cells with only failed rows, {path: number of unreadable lines}). A
    row with status `ok` and impossible figures counts as unreadable.
    """
    found, skipped = [], Counter()
    for path in paths:
        try:
            rows, skipped[path] = read_rows(path)
        except OSError:
            rows, skipped[path] = [], 1
        found += [row | {"path": str(path)} for row in rows]
    completed, failed, impossible = completed_rows(found)
    skipped.update(map(Path, impossible))
    return completed, failed, +skipped


def completed_rows(rows: list[dict]):
    """Convert rows to numbers and check them.

    Return (rows that ran as a DataFrame, number of cells with only failed rows, paths of rows with impossible figures).
    """
    import pandas as pd

    table = pd.DataFrame(rows, columns=[*COLUMNS, "path"])
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    for name in ("min", "max"):
        table[name] = table[name].fillna(table["messages/s"])
    by_tokens = table["batching"] == "token-budget"
    table["batch_size"] = table["batch_size"].mask(by_tokens, 0)
    table["batch_tokens"] = table["batch_tokens"].mask(~by_tokens, 0)
    ok = table[table.status == "ok"]
    whole = ok[[*COUNTS]].assign(decisions=ok["decisions"].fillna(0))
    possible = (whole % 1 == 0).all(axis=1) & (whole < 2**31).all(axis=1) & (whole["texts"] > 0)
    possible &= ok[["workers", "threads"]].isin(range(1, MOST_PROCESSES + 1)).all(axis=1)
    possible &= ok["batch_size"] + ok["batch_tokens"] > 0
    possible &= ok[[*NUMBERS]].fillna(0).apply(lambda column: column.between(0, 1e12)).all(axis=1)
    possible &= ok["flips"].fillna(0) * whole["decisions"] <= MOST_CHANGES
    possible &= (ok["min"] > 0) & (ok["min"] <= ok["messages/s"]) & (ok["messages/s"] <= ok["max"])
    possible &= ok["flips"].fillna(0).between(0, 1)
    possible &= ok["batching"].isin(BATCHINGS) & ok["stage"].isin(STAGES) & ok["date"].str.fullmatch(DATE)
    any_ok = table.assign(ok=table.status == "ok").groupby([*CELL_COLUMNS], dropna=False).ok.any()
    return ok[possible].astype(dict.fromkeys(COUNTS, int)), int((~any_ok).sum()), list(ok.path[~possible])


def add_slowdowns(rows):
    """Add the column `slowdown` to rows of one device and dataset: how much slower a busy run was than an idle one.

    It is estimated from the cells that runs have in common, and 1 for idle runs and for busy ones that were faster.
    Speeds of several runs can be compared when multiplied by it, so a busy run does not change the ranking of what it
    leaves out.
    """
    log_speeds, run = np.log(rows["messages/s"]), rows["date"]
    cell = rows.groupby([*ADVICE_CELL], dropna=False).ngroup()
    is_busy = (rows["busy"] > BUSY).groupby(run).any()
    slowdowns = run.map(is_busy * 0.0)
    for _ in range(20):
        idle_speeds = (log_speeds + slowdowns).groupby(cell).transform("median")
        found = (idle_speeds - log_speeds).groupby(run).median()
        slowdowns = run.map(found.where(is_busy, 0).clip(lower=0) if not is_busy.all() else found - found.min())
    return rows.assign(slowdown=np.exp(slowdowns))


def latest_per_cell(rows, any_texts: bool = False):
    """Return one row per cell of a DataFrame of completed rows, from its latest run on an idle device, else its latest.
    The repeats of a run are combined: median speed, `min` and `max` of all passes, highest load and worst parity. With
    `any_texts`, cells on different texts of a dataset are the same.
    """
    cell = [*(ADVICE_CELL if any_texts else CELL_COLUMNS)]
    is_busy = rows.groupby([*cell, "date"], sort=False)["busy"].transform("max") > BUSY
    rows = rows[~is_busy | is_busy.groupby([rows[name] for name in cell], sort=False).transform("all")]
    rows = rows[rows.date == rows.groupby(cell, sort=False).date.transform("max")]
    combine = dict.fromkeys(rows.columns.difference(cell, sort=False), "last")
    combine |= dict.fromkeys(("messages/s", "tokens/s", "tflops", "mfu"), "median")
    combine |= {"min": "min", "max": "max", "passes": "sum", "max_diff": "max", "flips": "max", "decisions": "max"}
    combine |= {"busy": "max", "within": "min"}  # yes > not proven > no in alphabetical order, too
    return rows.groupby(cell, sort=False, as_index=False).agg(combine)
