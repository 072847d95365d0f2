"""CSV and CSV.gz files in UTF-8. Their columns stay text."""

import csv
import gzip
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from bench.inputs.blocks import N_ROWS, Rows, read_head

UNDECODED = re.compile(r"[\udc80-\udcff]")  # what a byte that is no UTF-8 becomes, see PEP 383


def read_schema(path: Path) -> pa.Schema:
    line, header = next(read_fields(path), (1, []))
    check_encoding(line, header)
    return pa.schema([(name, pa.string()) for name in header])


def read_rows(path: Path, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    rows = read_fields(path)
    _, header = next(rows)
    places = [header.index(name) for name in schema.names]
    while some := list(islice(rows, N_ROWS)):
        try:
            columns = [pa.array([fields[i] for _, fields in some], pa.string()) for i in places]
        except UnicodeEncodeError:
            for line, fields in some:
                check_encoding(line, fields)
            raise
        yield Rows(pa.table(columns, names=schema.names))


def read_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of its last line, fields) of the header and each row, without blank lines.

    A byte that is no UTF-8 becomes half of a surrogate pair. Raises ValueError, with the line, where a comma, a quote
    or a line break stands unquoted in a field, rather than guess: rows have as many fields as the header, or as many as
    it has without commas at its end.
    """
    csv.field_size_limit(2**31 - 1)  # the largest that fits a C long everywhere
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        reader, most = csv.reader(file, strict=True), 0
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"line {reader.line_num}: {error}") from error
            if not fields:
                continue
            if not most:
                most = len(fields)
                while fields and not fields[-1]:
                    fields.pop()
                least = len(fields)
            if not least <= len(fields) <= most:
                raise ValueError(f"line {reader.line_num} has {len(fields)} fields, the header has {least}")
            yield reader.line_num, fields


def check_encoding(line: int, fields: list[str]) -> None:
    """Raises ValueError, with the line, if a field has a byte that is no UTF-8."""
    if bad := UNDECODED.search("".join(fields)):
        byte = ord(bad[0]) - 0xDC00
        raise ValueError(f"line {line} has the byte 0x{byte:02x}, which is no UTF-8: convert the file to UTF-8")


def estimate_rows(path: Path) -> int:
    head, times = read_head(path)
    lines = csv.reader(io.StringIO(head.decode(errors="replace"), newline=""))
    return round((sum(1 for _ in lines) - 1) * times)
