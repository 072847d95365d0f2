"""Input files -> chunks of rows; rows and probabilities -> part-00000.parquet, part-00001.parquet, ..."""

import csv
import io
import re
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
PART = re.compile(r"part-\d{5,}\.parquet")
TEXT_TYPES = ("string", "large_string", "string_view", "null")
SUFFIXES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class Layout:
    """What is in the parts.

    schema: of the columns that are read, in all files; columns: which are copied; column: of the texts; labels: their
    names; top: only the best of them; rows: of a part; limit: of the rows in all, None for no limit.
    """

    schema: pa.Schema
    columns: list[str]
    column: str
    labels: list[str]
    top: bool
    rows: int
    limit: int | None


def find_files(path: Path) -> list[Path]:
    """Returns the file, or the CSV, CSV.gz and Parquet files of a folder by name. Raises UserError if there is none."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    files = [file for file in files if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")]
    if not files:
        raise UserError(f"{path} is not a CSV, CSV.gz or Parquet file, nor a folder of them")
    return files


def is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def schema_of(file: Path) -> pa.Schema:
    """Returns the columns of a file; those of a CSV file are text.

    Raises UserError if it can't be read, or if it has no column, or two of one name.
    """
    with reading(file):
        if is_parquet(file):
            schema = pq.read_schema(file).remove_metadata()
        else:
            schema = pa.schema([(name, pa.string()) for name in next(read_csv(file), [])])
    if not schema.names:
        raise UserError(f"{file} is empty")
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{file} has several columns of one name among {', '.join(schema.names)}")
    return schema


def common_schema(files: list[Path], columns: list[str], column: str) -> pa.Schema:
    """Returns the types that these columns have in all files, wide enough for each of them.

    Raises UserError if a file lacks one, if two files don't go together, or if the texts' column is not text.
    """
    common = None
    for file in files:
        there = schema_of(file)
        if missing := [name for name in columns if name not in there.names]:
            raise UserError(f"{file} has no column {missing[0]!r}; its columns: {', '.join(there.names)}")
        own = pa.schema([there.field(name).with_nullable(True) for name in columns])
        try:
            common = pa.unify_schemas([common or own, own], promote_options="permissive")
        except pa.ArrowException as error:
            raise UserError(f"{file}: a column is of another type than in the files before: {error}") from error
    kind = common.field(column).type
    if str(kind.value_type if pa.types.is_dictionary(kind) else kind) not in TEXT_TYPES:
        raise UserError(f"column {column!r} is not text, it is {kind}")
    return common


def read_tables(files: list[Path], schema: pa.Schema, skip: int) -> Iterator[pa.Table]:
    """Yields thousands of rows at once, behind the first `skip` of all. Raises UserError if a file can't be read."""
    for file in files:
        for table in read_parquet(file, schema.names, skip) if is_parquet(file) else read_text(file, schema.names):
            if len(table) > skip:
                with reading(file):
                    yield table.slice(skip).cast(schema)
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
                batch.validate(full=True)  # whether its text is UTF-8
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
    """Yields the rows of all files behind the first `skip`, a part's at once. Raises UserError as read_tables."""
    waiting, left = [], float("inf") if layout.limit is None else max(layout.limit - skip, 0)
    for behind in read_tables(files, layout.schema, skip):
        table = behind.slice(0, int(min(left, len(behind))))
        left -= len(table)
        waiting += [table] if len(table) else []
        while sum(map(len, waiting)) >= layout.rows:
            joined = pa.concat_tables(waiting).combine_chunks()
            yield joined.slice(0, layout.rows)
            waiting = [joined.slice(layout.rows)] if len(joined) > layout.rows else []
        if not left:
            break
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


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
    return sorted(path for path in folder.glob("part-*") if PART.fullmatch(path.name))


def is_whole(part: Path, rows: int) -> bool:
    """Says whether a part is there, can be read, and has so many rows."""
    try:
        return pq.read_metadata(part).num_rows == rows
    except (OSError, ValueError):
        return False


def write_part(folder: Path, number: int, table: pa.Table) -> None:
    with new_file(folder / part_name(number)) as file:
        pq.write_table(table, file)
