"""Rows <-> results/*.tsv: files that are only ever appended to, one whole line at a time."""

import errno
import os
from collections import Counter
from pathlib import Path

from bench.files import LONGEST_NAME
from bench.model.batches import BATCHINGS
from bench.naming import file_name
from utils import UserError, clean

# A row: what was asked, what was measured, where it comes from. results/README.md says what each column means.
COLUMNS = (
    *("workers", "threads", "batching", "batch_size", "batch_tokens", "stage"),
    *("messages/s", "min", "max", "passes", "tokens/s", "padding", "tflops", "mfu"),
    *("p50_ms", "p99_ms", "memory_mib", "busy", "throttled", "max_diff", "flips", "decisions", "within", "status"),
    *("variant", "model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold"),
    *("versions", "driver", "commit", "date"),
)
# the columns that say which cell a row is of
CELL_COLUMNS = ("model", "device", "dataset", "texts", "texts_id", "weights_id", "threshold")
CELL_COLUMNS += ("variant", "workers", "threads", "batching", "batch_size", "batch_tokens", "stage")
COUNTS = ("workers", "threads", "batch_size", "batch_tokens", "texts")
SPEEDS = ("messages/s", "min", "max")
NUMBERS = (*COUNTS, *SPEEDS, "passes", "tokens/s", "padding", "tflops", "mfu", "max_diff", "flips", "decisions", "busy")
STAGES = ("forward", "end-to-end", "check")
DATE = r"(\d{4}-\d\d-\d\dT[\d:.]+Z)?"
PUBLISHED = "published"  # the commit of rows that were measured elsewhere, see results/README.md
# how rows of before November 26, 2026 call some columns and values; `size` was of texts or of tokens
OLD_COLUMNS = {"order": "batching", "timed": "stage", "messages": "texts", "load": "busy"}
OLD_VALUES = {
    "batching": {"dataset": "in-order", "length": "sorted", "tokens": "token-budget"},
    "stage": {"texts": "end-to-end"},
}


def results_path(results_dir: Path, row: dict) -> Path:
    """Returns the file of a row: `<results_dir>/<model>/<device>_<variant>_<dataset>.tsv`.

    Raises UserError if the name would be too long.
    """
    file = "_".join(file_name(row[key]) for key in ("device", "variant", "dataset")) + ".tsv"
    if len(os.fsencode(file)) > LONGEST_NAME:
        raise UserError(f"rows can't be saved: {row['dataset'][:20]}... is too long for the name of a file")
    return results_dir / file_name(Path(row["model"]).resolve().name) / file


def line_of(row: dict) -> str:
    """Returns a row as a line of text; a value's tabs and line breaks become spaces."""
    return "\t".join(clean(str(row[name])) for name in COLUMNS) + "\n"


HEADER = line_of(dict(zip(COLUMNS, COLUMNS, strict=True)))


def append_row(path: Path, row: dict) -> None:
    """Appends a row in one write, preceded by the header if the file's last header differs. Raises OSError.

    Several processes may append to one file; a line that a crash or a full disk cut short is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "there is something that is not a file")
    with path.open("ab+", buffering=0) as file:
        file.seek(0)
        before = file.read()
        headers = [line for line in before.decode(errors="replace").split("\n") if is_header(line.split("\t"))]
        text = "" if headers[-1:] == [HEADER.rstrip()] else HEADER
        text = "\n" * (before[-1:] not in (b"", b"\n")) + text + line_of(row)
        written = file.write(text.encode())
        if written < len(text.encode()):
            if file.tell() == os.fstat(file.fileno()).st_size:  # what is there of the line could pass for all of it
                file.truncate(file.tell() - written)
            raise OSError(errno.ENOSPC, "No space left on device")


def is_header(fields: list[str]) -> bool:
    return "messages/s" in fields and bool({"batching", "order"} & set(fields))


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """Reads the rows of a file, as text by column, and counts the lines that can't be read.

    A line belongs to the header before it, so that files of several versions can be joined; columns that it lacks are
    empty. Raises OSError.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a file")
    rows, skipped, header = [], 0, []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
        fields = line.rstrip("\r").split("\t")
        if is_header(fields):
            header = fields
            continue
        if header and len(fields) == len(header):
            rows.append(dict.fromkeys(COLUMNS, "") | in_new_words(dict(zip(header, fields, strict=True))))
        elif line.strip():
            skipped += 1
    return rows, skipped


def in_new_words(row: dict[str, str]) -> dict[str, str]:
    """Returns a row under the names of now; see OLD_COLUMNS."""
    if "batching" in row:
        return row
    row = {OLD_COLUMNS.get(name, name): value for name, value in row.items()}
    row |= {name: OLD_VALUES[name].get(row.get(name), row.get(name, "")) for name in OLD_VALUES}
    size = row.pop("size", "")
    return row | ({"batch_tokens": size} if row["batching"] == "token-budget" else {"batch_size": size})


def read_results(paths: list[Path]):
    """Reads the completed rows of several files, in their order, as a pandas DataFrame: see completed_rows.

    Returns (rows, how many cells have failed rows only, {path: how many lines can't be read}). An `ok` row without
    possible figures can't be read.
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
    """Returns (the rows that ran as a DataFrame, numbers as numbers; how many cells have none; paths of bad ones)."""
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
    whole = ok[[*COUNTS]]
    possible = (whole % 1 == 0).all(axis=1) & (whole.abs() < 2**31).all(axis=1)
    possible &= (ok[["workers", "threads"]] > 0).all(axis=1) & (ok["batch_size"] + ok["batch_tokens"] > 0)
    possible &= (ok["min"] > 0) & (ok["min"] <= ok["messages/s"]) & (ok["messages/s"] <= ok["max"]) & (ok["max"] < 1e12)
    possible &= ok["flips"].fillna(0).between(0, 1) & ok["max_diff"].fillna(0).between(0, 1e12)
    possible &= ok["batching"].isin(BATCHINGS) & ok["stage"].isin(STAGES) & ok["date"].str.fullmatch(DATE)
    ran = table.assign(ok=table.status == "ok").groupby([*CELL_COLUMNS], dropna=False).ok.any()
    return ok[possible].astype(dict.fromkeys(COUNTS, int)), int((~ran).sum()), list(ok.path[~possible])


def latest_per_cell(rows):
    """Returns one row for each cell of a DataFrame of completed rows, from its latest run by the clock.

    With several repeats: the median speed, `min` and `max` of all passes, the busiest moment, and the worst parity.
    """
    rows = rows[rows.date == rows.groupby([*CELL_COLUMNS], sort=False).date.transform("max")]
    how = dict.fromkeys(rows.columns.difference(CELL_COLUMNS, sort=False), "last")
    how |= dict.fromkeys(("messages/s", "tokens/s", "tflops", "mfu"), "median")
    how |= {"min": "min", "max": "max", "passes": "sum", "max_diff": "max", "flips": "max", "decisions": "max"}
    how |= {"busy": "max", "within": "min"}  # of yes, not proven and no the last in the alphabet is the best
    return rows.groupby([*CELL_COLUMNS], sort=False, as_index=False).agg(how)


def fastest_per(rows, *keys: str):
    """Returns the fastest row for each combination of values of the keys, the fastest of them first."""
    return rows.sort_values("messages/s", ascending=False, kind="stable").drop_duplicates([*keys])
