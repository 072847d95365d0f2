"""CSV files, and others with a delimiter. Every column is text."""

import csv
import io
import json
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from bench.options import CSV_OPTIONS
from bench.tables.blocks import CHUNK_BYTES, CHUNK_ROWS, MAX_LINE, NOTE, BlockReader, Rows, read_head, undecoded
from bench.tables.format_json_lines import NESTED
from bench.tables.storage import Location

TSV_NAME = re.compile(r"\.tsv(\.gz|\.zst)?$", re.IGNORECASE)
FEW_LINES, MANY_LINES = 3, 100  # breaks in a row
LOST_LINES = "lost lines"  # how the reason begins if a quote is unclosed, or a bad row swallowed others
WORD, ID = re.compile(r"[^\W\d_]+"), re.compile(r"\w*\d\w*")  # made alike to compare two values' kinds
UNCLOSED = "unclosed quote"
ADVICE = "if a quote is plain text, set --quoting none or --escape"
CLEARER_MESSAGES = {  # part of the csv module's message -> clearer message
    "end of data": UNCLOSED,
    "new-line character": "carriage return outside quotes; lines must end in \\n or \\r\\n",
    "field larger": f"a field of more than {MAX_LINE >> 20} MiB",
}


@dataclass(frozen=True)
class Csv:
    """Reader of files with delimited fields."""

    delimiter: str | None = None  # None: a tab in .tsv files, else a comma
    encoding: str = "utf-8"  # as Python names it
    quoting: str | None = None  # "none": quotes are plain signs; None: "none" for .tsv files, else "standard"
    escape: str | None = None  # a sign before a quote, or before itself, that makes it plain

    @classmethod
    def from_options(cls, args: Namespace) -> "Csv":
        return cls(*(getattr(args, name) for name in CSV_OPTIONS))

    def read_schema(self, file: Location) -> pa.Schema:
        header, fields = self.read_header(self.parse(file, self.open(file)))
        metadata = {NESTED: json.dumps([""])} if len(header) < fields else None
        return pa.schema([(name, pa.string()) for name in header], metadata)

    def open(self, file: Location) -> io.TextIOWrapper:
        """Open a file as lines that end in a line feed; undecodable bytes: see PEP 383."""
        return io.TextIOWrapper(BlockReader(file, self.encoding), "utf-8", errors="surrogateescape", newline="\n")

    def parse(self, file: Location, lines: Iterable[str], strict: bool = True) -> Iterator[list[str]]:
        """Return a reader of the fields in these lines."""
        csv.field_size_limit(MAX_LINE)  # so that an unclosed quote does not swallow the whole file
        delimiter, quoting = self.delimiter or ",", self.quoting or "standard"
        if TSV_NAME.search(file.name):
            delimiter, quoting = self.delimiter or "\t", self.quoting or "none"
        if self.escape:  # the csv module would also drop it before signs that need none
            signs = re.escape(self.escape + (f'"\n{delimiter}' if quoting == "none" else '"'))
            escape = re.compile(f"{re.escape(self.escape)}([{signs}]?)")
            lines = (escape.sub(lambda found: found[0] if found[1] else found[0] * 2, line) for line in lines)
        quoting = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
        return csv.reader(lines, strict=strict, delimiter=delimiter, quoting=quoting, escapechar=self.escape)

    def read_header(self, reader: Iterator[list[str]]) -> tuple[list[str], int]:
        """Return (the columns' names, number of fields in the header). Raises ValueError."""
        try:
            header = next(filter(None, reader), [])
            reason = bad_byte(header, self.encoding)
        except csv.Error as error:
            reason = clearer(error)
        if reason:
            raise ValueError(f"line {reader.line_num}: {reason}")
        longest = len(header)
        while header and not header[-1]:
            header.pop()
        return header, longest

    def read_rows(self, file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
        """Yield the rows; the line of a bad row is its last one.

        A row must have as many fields as the header; empty ones at the end of the header are optional. Any other number
        means an unquoted delimiter, quote or line break in a field: such a row is bad, nothing is guessed. A blank line
        is a row only if there is one column. An undecodable byte becomes half of a surrogate pair.
        """
        lines = self.open(file)
        reader = self.parse(file, lines)
        header, longest = self.read_header(reader)
        positions = {name: i for i, name in enumerate(header)}
        indices = [positions[name] for name in schema.names]
        marked = [f"\ufeff{name}" for name in header[:1]] + header[1:]
        headers = [header, marked] if len(header) > 1 else [marked]
        while True:
            lines.buffer.count = 0
            rows, ends, bad = read_chunk(reader, lines.buffer, len(header), longest)
            if not rows:
                return
            if not self.quoting and reader.dialect.quoting == csv.QUOTE_NONE and any(map(has_quoted_field, rows)):
                i = next(filter(lambda i: has_quoted_field(rows[i]), range(len(rows))))
                bad.setdefault(i, (ends[i], f"{NOTE}quotes are kept as text; to remove them, set --quoting standard"))
            if any(repeated in rows for repeated in headers):  # files that were joined
                for i in [i for i, fields in enumerate(rows) if fields in headers]:
                    bad[i], rows[i] = (ends[i], "repeats the header"), None
            try:
                table = to_table(rows, indices, schema)
            except UnicodeEncodeError:
                for i, fields in enumerate(rows):
                    if fields and (reason := bad_byte(fields, self.encoding)):
                        bad[i], rows[i] = (ends[i], reason), None
                table = to_table(rows, indices, schema)
            yield Rows(table, dict(sorted(bad.items())))

    def estimate_rows(self, file: Location) -> int:
        head, ratio = read_head(file, BlockReader(file, self.encoding).blocks)
        rows = self.parse(file, io.StringIO(head.decode(errors="replace"), newline=""), strict=False)
        return round((sum(1 for _ in rows) - 1) * ratio)


def read_chunk(
    reader: Iterator[list[str]], source: BlockReader, shortest: int, longest: int
) -> tuple[list[list[str] | None], list[int], dict[int, tuple[int, str]]]:
    """Return (rows up to CHUNK_ROWS or CHUNK_BYTES, None for bad ones; their last lines; Rows.bad)."""
    rows, ends, bad, end = [], [], {}, reader.line_num
    while True:
        try:
            for fields in reader:
                start, end = end + 1, reader.line_num
                if not shortest <= len(fields) <= longest:
                    if fields:
                        reason = f"{len(fields)} fields, but the header has {shortest}"
                        bad[len(rows)] = end, lost(start, end, bad_byte(fields, source.encoding) or reason)
                        fields = None  # noqa: PLW2901
                    elif longest == 1:
                        fields = [""]  # noqa: PLW2901
                    elif rows and source.count > CHUNK_BYTES:
                        break
                    else:
                        source.count = source.count if rows else 0
                        continue
                elif end > start and (reason := swallowed(fields, reader.dialect.delimiter)):
                    bad[len(rows)] = end, lost(start, end, reason)
                    fields = fields if reason.startswith(NOTE) else None  # noqa: PLW2901
                rows.append(fields)
                ends.append(end)
                if len(rows) == CHUNK_ROWS or source.count > CHUNK_BYTES:
                    break
            return rows, ends, bad
        except csv.Error as error:
            start, end = end + 1, reader.line_num
            bad[len(rows)] = end, lost(start, end, clearer(error))
            rows.append(None)
            ends.append(end)


def lost(start: int, end: int, reason: str) -> str:
    """Return the reason why the row in these lines is bad, with LOST_LINES if that applies."""
    if reason.startswith(NOTE):
        return f"{reason}; {ADVICE}"
    return f"{LOST_LINES} {start} to {end}: {reason}; {ADVICE}" if start < end or reason == UNCLOSED else reason


def swallowed(fields: list[str], delimiter: str) -> str:
    """Return why a row of several lines may be several rows: a reason, or just a NOTE; empty if it is hardly possible.

    Each line has as many fields as the row then, and in one column the same kind of values. Up to FEW_LINES may still
    be a text with commas, unless that column is one of numbers or ids.
    """
    text = delimiter.join(fields)
    breaks = text.count("\n")
    if text.count(delimiter) != (len(fields) - 1) * (breaks + 1):  # nearly always
        return f"{NOTE}a row of over {MANY_LINES} lines" if breaks >= MANY_LINES else ""
    lines = [line.split(delimiter) for line in text.split("\n")]
    if {*map(len, lines)} != {len(fields)}:
        return ""
    columns = [column for column, field in zip(zip(*lines, strict=True), fields, strict=True) if "\n" not in field]
    kinds = [{ID.sub("0", WORD.sub("a", value)) for value in column} for column in columns]
    same = ["".join(kind) for kind in kinds if len(kind) == 1]
    if any("0" in kind or (kind and breaks >= FEW_LINES) for kind in same):
        return "a quote made one row of several"
    return f"{NOTE}each line of a row looks like a row" if breaks >= FEW_LINES and columns else ""


def has_quoted_field(fields: list[str] | None) -> bool:
    return any(field[:1] == '"' == field[-1:] and len(field) > 1 for field in fields or ())


def clearer(error: csv.Error) -> str:
    return next((message for part, message in CLEARER_MESSAGES.items() if part in str(error)), str(error))


def to_table(rows: list[list[str] | None], indices: list[int], schema: pa.Schema) -> pa.Table:
    """Return these fields of the rows as columns; a row that is None becomes nulls."""
    columns = [pa.array([fields and fields[i] for fields in rows], pa.string()) for i in indices]
    return pa.table(columns, names=schema.names)


def bad_byte(fields: list[str], encoding: str) -> str:
    reason = undecoded("".join(fields).encode("utf-8", "surrogateescape"), encoding)
    return f"{reason}; set --encoding" if reason else ""
