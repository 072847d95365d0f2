"""Input files -> chunks of rows; rows and probabilities -> part-00000.parquet, part-00001.parquet, ..."""

import csv
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.files import new_file
from bench.texts import read_csv, reading
from utils import UserError

ROWS = 10_000  # that are read at once
BEGINNING = 2**20  # bytes of a CSV file, from which its rows are estimated
SUFFIXES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class Layout:
    """What is in the parts.

    columns: which are copied; column: of the texts; labels: their names; top: only the best of them; rows: of a part;
    limit: of the rows in all, None for no limit.
    """

    columns: list[str]
    column: str
    labels: list[str]
    top: bool
    rows: int
    limit: int | None

    def needed(self) -> list[str]:
        """Returns the columns that are read."""
        return list(dict.fromkeys([*self.columns, self.column]))


def find_files(path: Path) -> list[Path]:
    """Returns the file, or the CSV, CSV.gz and Parquet files of a folder by name. Raises UserError if there is none."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    files = [file for file in files if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")]
    if not files:
        raise UserError(f"{path} is not a CSV, CSV.gz or Parquet file, nor a folder of them")
    return files


def is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def columns_of(file: Path) -> list[str]:
    """Returns the columns of a file. Raises UserError if it can't be read, or if one occurs twice."""
    with reading(file):
        columns = pq.read_schema(file).names if is_parquet(file) else next(read_csv(file), [])
    if len(set(columns)) < len(columns):
        raise UserError(f"{file} has several columns of one name among {', '.join(columns)}")
    return columns


def read_tables(files: list[Path], columns: list[str], skip: int) -> Iterator[tuple[Path, pa.Table]]:
    """Yields thousands of rows at once, behind the first `skip` of all, and the file that they are from.

    Columns of a CSV file are text. Raises UserError if a file can't be read.
    """
    for file in files:
        for table in read_parquet(file, columns, skip) if is_parquet(file) else read_text(file, columns):
            yield file, table.slice(skip)
            skip = max(skip - len(table), 0)


def read_parquet(file: Path, columns: list[str], skip: int) -> Iterator[pa.Table]:
    """Yields a Parquet file's rows; of a row group that is among the first `skip` only the number of rows is right."""
    with reading(file), pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if rows <= skip:
                yield pa.table({"": pa.nulls(rows)})
                skip -= rows
                continue
            skip = 0
            for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=columns):
                yield pa.Table.from_batches([batch]).select(columns)


def read_text(file: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Yields a CSV file's rows."""
    with reading(file):
        rows = read_csv(file)
        header = next(rows)
        at = [header.index(name) for name in columns]
        while some := list(islice(rows, ROWS)):
            values = [[row[i] if i < len(row) else None for row in some] for i in at]
            yield pa.table([pa.array(column, pa.string()) for column in values], names=columns)


def estimate_rows(file: Path) -> int:
    """Counts the rows of a Parquet file; those of a CSV file are estimated from its beginning."""
    with reading(file):
        if is_parquet(file):
            return pq.read_metadata(file).num_rows
        with file.open("rb") as whole:
            head, size = whole.read(BEGINNING), max(file.stat().st_size, 1)
        if file.suffix.lower() == ".gz":
            decompress = zlib.decompressobj(wbits=31)  # gzip's format
            text = decompress.decompress(head)
            head = head[: len(head) - len(decompress.unused_data)]
        else:
            text = head
        rows = sum(1 for _ in csv.reader(io.StringIO(text.decode(errors="replace"), newline=""))) - 1
        return round(rows * size / max(len(head), 1))


def read_parts(files: list[Path], layout: Layout, skip: int) -> Iterator[pa.Table]:
    """Yields the rows of all files behind the first `skip`, a part's at once.

    Raises UserError where a file can't be read, or its columns are of other types than those before.
    """
    waiting, left = [], float("inf") if layout.limit is None else max(layout.limit - skip, 0)
    for file, behind in read_tables(files, layout.needed(), skip):
        table = behind.slice(0, int(min(left, len(behind))))
        left -= len(table)
        waiting += [table] if len(table) else []
        while sum(map(len, waiting)) >= layout.rows:
            joined = join(waiting, file)
            yield joined.slice(0, layout.rows)
            waiting = [joined.slice(layout.rows)] if len(joined) > layout.rows else []
        if not left:
            break
    if waiting:
        yield join(waiting, file)


def join(tables: list[pa.Table], file: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise UserError(f"{file}: its columns are of other types than those of the files before: {error}") from error


def texts_of(table: pa.Table, column: str) -> tuple[np.ndarray, list[str]]:
    """Returns (the indices of the rows that have a text, these texts)."""
    values = table[column].to_pylist()
    full = [i for i, value in enumerate(values) if isinstance(value, str) and value.strip()]
    return np.array(full, dtype=int), [values[i] for i in full]


def label_table(table: pa.Table, classify: Callable, layout: Layout) -> tuple[pa.Table, np.ndarray]:
    """Returns (the `columns` of a table and what the model says of its texts, [texts, tokens, texts without answer]).

    classify(texts) -> (probabilities [texts, labels], tokens). That is a float32 column for each label, or with `top`
    the best `label` and its `score`; nulls where there is no text. Without an answer are texts that have no token, and
    those of which the model says something that is not finite; they have nulls, too.
    """
    full, texts = texts_of(table, layout.column)
    probs, tokens = np.full((len(table), len(layout.labels)), np.nan, dtype=np.float32), 0
    if texts:
        probs[full], tokens = classify(texts)
    missing = ~np.isfinite(probs).all(axis=1)
    counts = np.array([len(texts), tokens, missing[full].sum()])
    found = table.select(layout.columns)
    if layout.top:
        best = np.where(missing, 0, probs.argmax(axis=1))
        names = pa.array([layout.labels[i] for i in best], pa.string(), mask=missing)
        scores = pa.array(probs[np.arange(len(probs)), best], mask=missing)
        return found.append_column("label", names).append_column("score", scores), counts
    for i, label in enumerate(layout.labels):
        found = found.append_column(label, pa.array(np.ascontiguousarray(probs[:, i]), mask=missing))
    return found, counts


def part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def write_part(folder: Path, number: int, table: pa.Table) -> None:
    with new_file(folder / part_name(number)) as file:
        pq.write_table(table, file)
