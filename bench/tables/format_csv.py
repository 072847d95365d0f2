"""CSV files, and others with a delimiter. Every column is text."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from bench.tables.blocks import CHUNK_ROWS, MAX_LINE, Rows, open_text, read_head
from bench.tables.storage import Location

TSV_NAME = re.compile(r"\.tsv(\.gz|\.zst)?$", re.IGNORECASE)
UNDECODED = re.compile(r"[\udc80-\udcff]")  # bytes that could not be decoded, see PEP 383
CLEARER_MESSAGES = {  # part of the csv module's message -> clearer message
    "end of data": "unclosed quote: this row swallowed the lines above",
    "new-line character": "carriage return outside quotes; lines must end in \\n or \\r\\n",
}


@dataclass(frozen=True)
class Csv:
    """Reader of files with delimited fields. A UTF-8 byte order mark is ignored."""

    delimiter: str | None = None  # None: a tab in .tsv files, else a comma
    encoding: str = "utf-8"  # as Python names it

    def read_schema(self, file: Location) -> pa.Schema:
        line, header, reason = next(self.read_fields(file), (1, [], ""))
        if reason := reason or undecoded(header, self.encoding):
            raise ValueError(f"line {line}: {reason}")
        return pa.schema([(name, pa.string()) for name in header])

    def read_rows(self, file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
        rows = self.read_fields(file)
        _, header, _ = next(rows)
        indices = [header.index(name) for name in schema.names]
        while chunk := list(islice(rows, CHUNK_ROWS)):
            bad = {i: (line, reason) for i, (line, _, reason) in enumerate(chunk) if reason}
            values = [None if reason else fields for _, fields, reason in chunk]
            try:
                yield Rows(to_table(values, indices, schema), bad)
            except UnicodeEncodeError:
                for i, (line, fields, _) in enumerate(chunk):
                    if fields and (reason := undecoded(fields, self.encoding)):
                        bad[i], values[i] = (line, reason), None
                yield Rows(to_table(values, indices, schema), bad)

    def read_fields(self, file: Location) -> Iterator[tuple[int, list[str], str]]:
        """Yield (last line number, fields, error message or "") for the header and for each row.

        A row must have as many fields as the header; empty ones at the end of the header are optional. Any other number
        means an unquoted delimiter, quote or line break in a field: such a row is bad, nothing is guessed. A blank line
        is a row only if there is one column. An undecodable byte becomes half of a surrogate pair.
        """
        csv.field_size_limit(MAX_LINE)  # so that an unclosed quote does not swallow the whole file
        lines = open_text(file, self.encoding)
        reader = csv.reader(lines, strict=True, delimiter=self.delimiter_of(file))
        longest = 0
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                clearer = (message for part, message in CLEARER_MESSAGES.items() if part in str(error))
                yield reader.line_num, [], next(clearer, str(error))
                continue
            if not fields and longest != 1:
                continue
            fields = fields or [""]
            if not longest:  # the header
                longest = len(fields)
                while fields and not fields[-1]:
                    fields.pop()
                shortest = len(fields)
            reason = ""
            if not shortest <= len(fields) <= longest:
                reason = f"{len(fields)} fields, but the header has {shortest}; quote fields that contain the delimiter"
            yield reader.line_num, fields, reason

    def delimiter_of(self, file: Location) -> str:
        return self.delimiter or ("\t" if TSV_NAME.search(file.name) else ",")

    def estimate_rows(self, file: Location) -> int:
        head, ratio = read_head(file)
        text = io.StringIO(head.decode(self.encoding, errors="replace"), newline="")
        rows = csv.reader(text, delimiter=self.delimiter_of(file))
        return round((sum(1 for _ in rows) - 1) * ratio)


def to_table(rows: list[list[str] | None], indices: list[int], schema: pa.Schema) -> pa.Table:
    """Return these fields of the rows as columns; a row that is None becomes nulls."""
    columns = [pa.array([fields and fields[i] for fields in rows], pa.string()) for i in indices]
    return pa.table(columns, names=schema.names)


def undecoded(fields: list[str], encoding: str) -> str:
    """Return a message that names the first undecodable byte in the fields; empty if there is none."""
    byte = UNDECODED.search("".join(fields))
    return f"byte 0x{ord(byte[0]) - 0xDC00:02x} is not valid {encoding.upper()}; set --encoding" if byte else ""
