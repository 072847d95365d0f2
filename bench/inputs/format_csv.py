"""CSV and CSV.gz files in UTF-8. Their columns stay text."""

import csv
import gzip
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from bench.inputs.blocks import N_ROWS, Rows, read_head


def read_schema(path: Path) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in next(read_fields(path), [])])


def read_rows(path: Path, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    fields = read_fields(path)
    header = next(fields)
    places = [header.index(name) for name in schema.names]
    while some := list(islice(fields, N_ROWS)):
        values = [[row[i] if i < len(row) else None for row in some] for i in places]
        yield Rows(pa.table([pa.array(column, pa.string()) for column in values], names=schema.names))


def read_fields(path: Path) -> Iterator[list[str]]:
    """Yields the header and the rows, without blank lines.

    Raises ValueError or csv.Error where a comma or a line break stands unquoted in a field, rather than guess.
    """
    csv.field_size_limit(2**31 - 1)  # the largest that fits a C long everywhere
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        reader, width = csv.reader(file, strict=True), 0
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                raise ValueError(f"line {reader.line_num} has {len(row)} fields, the header has {width}")
            if row:
                yield row


def estimate_rows(path: Path) -> int:
    head, times = read_head(path)
    lines = csv.reader(io.StringIO(head.decode(errors="replace"), newline=""))
    return round((sum(1 for _ in lines) - 1) * times)
