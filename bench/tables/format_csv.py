"""CSV files, and others whose fields a character separates. Their columns stay text."""

import codecs
import csv
import io
import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from bench.tables.blocks import MAX_LINE, N_ROWS, Rows, open_text, read_head
from bench.tables.storage import Location

TABBED = re.compile(r"\.tsv(\.gz|\.zst)?$", re.IGNORECASE)  # the names of files with tabs
UNDECODED = re.compile(r"[\udc80-\udcff]")  # what a byte that can't be decoded becomes, see PEP 383
FAULTS = {  # what the csv module says, in words that help here
    "end of data": "a quote that is not closed: it swallows the lines before",
    "new-line character": "a carriage return alone, outside quotes: lines end in \\n or \\r\\n",
}


@dataclass(frozen=True)
class Csv:
    """Reads files whose fields are separated by a `delimiter`: without one by a tab in .tsv files, else by a comma.

    encoding: of the text, by one of Python's names. A byte order mark of UTF-8 is no text.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"

    def read_schema(self, file: Location) -> pa.Schema:
        line, header, why = next(self.read_fields(file), (1, [], ""))
        if why := why or undecoded(header, self.encoding):
            raise ValueError(f"line {line}: {why}")
        return pa.schema([(name, pa.string()) for name in header])

    def read_rows(self, file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
        rows = self.read_fields(file)
        _, header, _ = next(rows)
        places = [header.index(name) for name in schema.names]
        while some := list(islice(rows, N_ROWS)):
            bad = {i: (line, why) for i, (line, _, why) in enumerate(some) if why}
            values = [None if why else fields for _, fields, why in some]
            try:
                yield Rows(to_table(values, places, schema), bad)
            except UnicodeEncodeError:
                for i, (line, fields, _) in enumerate(some):
                    if fields and (why := undecoded(fields, self.encoding)):
                        bad[i], values[i] = (line, why), None
                yield Rows(to_table(values, places, schema), bad)

    def read_fields(self, file: Location) -> Iterator[tuple[int, list[str], str]]:
        """Yields (number of its last line, fields, why it can't be read) of the header and of each row.

        Rows have as many fields as the header, or as many as it has without empty ones at its end. Where a delimiter, a
        quote or a line break stands unquoted in a field, a row has more or fewer: that is not guessed at. A blank line
        is a row where there is one column. A byte that can't be decoded becomes half of a surrogate pair.
        """
        csv.field_size_limit(MAX_LINE)  # what an unclosed quote swallows, at most
        with open_text(file, self.encoding) as text:
            reader, most = csv.reader(text, strict=True, delimiter=self.delimiter_of(file)), 0
            while True:
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    why = next((words for part, words in FAULTS.items() if part in str(error)), str(error))
                    yield reader.line_num, [], why
                    continue
                if not fields and most != 1:
                    continue
                fields = fields or [""]
                if not most:
                    most = len(fields)
                    while fields and not fields[-1]:
                        fields.pop()
                    least = len(fields)
                fits = least <= len(fields) <= most
                yield reader.line_num, fields, "" if fits else f"{len(fields)} fields, the header has {least}"

    def delimiter_of(self, file: Location) -> str:
        return self.delimiter or ("\t" if TABBED.search(file.name) else ",")

    def estimate_rows(self, file: Location) -> int:
        head, times = read_head(file)
        text = io.StringIO(head.decode(self.encoding, errors="replace"), newline="")
        lines = csv.reader(text, delimiter=self.delimiter_of(file))
        return round((sum(1 for _ in lines) - 1) * times)

    def row_groups(self, file: Location) -> None:
        """Says that a file can only be read from its beginning."""


def add_options(parser: ArgumentParser) -> None:
    """Adds the options of a Csv: --delimiter and --encoding."""
    parser.add_argument("--delimiter", type=delimiter, help="of CSV files, or tab (default: a comma; of .tsv a tab)")
    parser.add_argument(
        "--encoding", type=encoding, default="utf-8", help="of CSV files, such as cp1252 (default: utf-8)"
    )


def delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or character in '"\n\r':
        raise ArgumentTypeError(f"{text!r} is not one character, or tab")
    return character


def encoding(text: str) -> str:
    try:
        return codecs.lookup(text).name
    except LookupError as error:
        raise ArgumentTypeError(f"{text!r} is no encoding that Python knows") from error


def to_table(rows: list[list[str] | None], places: list[int], schema: pa.Schema) -> pa.Table:
    """Returns the fields in these places as columns; nulls where there is no row."""
    columns = [pa.array([fields and fields[i] for fields in rows], pa.string()) for i in places]
    return pa.table(columns, names=schema.names)


def undecoded(fields: list[str], encoding: str) -> str:
    """Says which byte of the fields is not of the encoding; nothing if all are."""
    bad = UNDECODED.search("".join(fields))
    return f"the byte 0x{ord(bad[0]) - 0xDC00:02x}, which is no {encoding.upper()}: see --encoding" if bad else ""
