"""Files of texts -> rows: the one reader for every script. A format is a module or class, and a line in FORMATS."""

import contextlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pyarrow as pa

from bench.tables import format_json_lines, format_parquet
from bench.tables.blocks import Rows
from bench.tables.format_csv import Csv
from bench.tables.storage import Location, check_no_pointer, locate
from utils import UserError, first_line, nearest

# how a file's name ends: what reads it, which has
# read_schema(file) -> names and types of the columns;
# read_rows(file, schema, skip) -> yields Rows of these columns in the file's order; it may pass over the first `skip`;
# estimate_rows(file) -> how many rows there are, exactly or about;
# row_groups(file) -> how many rows there are in each piece that can be read by itself, None if there is only the whole
JSON_LINES = ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst", ".zst"
CSV = ".csv", ".csv.gz", ".csv.zst", ".tsv", ".tsv.gz", ".tsv.zst"
FORMATS = dict.fromkeys(CSV, Csv) | dict.fromkeys(JSON_LINES, format_json_lines) | {".parquet": format_parquet}
FORMAT_WORDS = "CSV or TSV (.csv, .tsv), JSON Lines (.jsonl, .ndjson), both also as .gz or .zst, and Parquet (.parquet)"
COMMAS = Csv()
SEPARATORS = {";": "';'", "|": "'|'", "\t": "tab"}  # of files that call themselves CSV -> how --delimiter names them
BAD = "classify_texts: bad row"  # the column that says why a row can't be read, see read_all


class UnreadableFile(UserError):
    """A file that can't be read to its end; the message names it and says why."""


class EmptyFile(UserError):
    """A file that has not even columns."""


@dataclass(frozen=True)
class Table:
    """A file of rows.

    schema: names and types of its columns; csv: how it is read if it is CSV; of_folders: columns that the names of its
    folders give, with their values.
    """

    file: Location
    schema: pa.Schema
    csv: Csv = COMMAS
    of_folders: dict[str, str] = field(default_factory=dict)

    def rows(self, schema: pa.Schema, skip: int = 0) -> Iterator[Rows]:
        """Yields the rows, cast to the schema; the first `skip` may be passed over. Raises UnreadableFile.

        A column that the file lacks is null. JSON is read as the schema's types at once: what becomes text is no number
        before, and a column may come further on than where the file's own schema was found.
        """
        own = []
        for column in schema:
            if column.name in self.of_folders:
                continue
            if self.format is format_json_lines and column.type in format_json_lines.TYPES:
                own.append(column)
            elif column.name in self.schema.names:
                own.append(decoded(self.field(column.name)))
        read = pa.schema(own)
        with reading(self.file):
            for rows in self.format.read_rows(self.file, read, skip):
                table = rows.table
                for name in schema.names:
                    if name not in read.names:
                        same = pa.repeat(pa.scalar(self.of_folders.get(name), schema.field(name).type), len(table))
                        table = table.append_column(name, same)
                yield replace(rows, table=table.select(schema.names).cast(schema))

    @property
    def format(self) -> ModuleType | Csv:
        return format_of(self.file.name, self.csv)

    def estimate_rows(self) -> int:
        with reading(self.file):
            return self.format.estimate_rows(self.file)

    def row_groups(self) -> list[int] | None:
        with reading(self.file):
            return self.format.row_groups(self.file)

    def field(self, name: str, option: str = "") -> pa.Field:
        """Returns a column's name and type. Raises UserError if there is none, with what may have been meant.

        `option`: of the command line, that names another.
        """
        names = self.schema.names
        if name in names:
            return self.schema.field(name).with_nullable(True)
        words = f"{self.file} has no column {name!r}{f' ({option} names another)' if option else ''}"
        words += f"; its columns: {', '.join(names)}"
        if near := nearest(name, names):
            words += f". Did you mean {near!r}?"
        signs = [sign for sign in SEPARATORS if sign in names[0]] if len(names) == 1 else []
        if signs and isinstance(self.format, Csv):
            words += f". --delimiter {SEPARATORS[signs[0]]} may tell them apart"
        raise UserError(words)


def open_table(file: Path | Location, csv: Csv = COMMAS, root: Location | None = None) -> Table:
    """Opens a file. Folders below the `root` of names like `year=2024` give columns of text, as Hive and Spark do it.

    Raises UserError if it can't be read or has two columns of one name, EmptyFile if it has none.
    """
    file = locate(file)
    if not format_of(file.name):
        raise UserError(f"{file} can't be read: what can is {FORMAT_WORDS}")
    with reading(file):
        check_no_pointer(file)
        schema = format_of(file.name, csv).read_schema(file) if file.size() else pa.schema([])
    if not schema.names:
        raise EmptyFile(f"{file} is empty: it has no columns")
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        columns = ", ".join(schema.names)
        raise UserError(f"{file} has {len(twice)} columns {twice[0]!r}; its columns: {columns}")
    folders = file.parts_below(root)[:-1] if root else ()
    pairs = [name.split("=", 1) for name in folders if "=" in name]
    of_folders = {unquote(key): unquote(value) for key, value in pairs if unquote(key) not in schema.names}
    for name in of_folders:
        schema = schema.append(pa.field(name, pa.string()))
    return Table(file, schema, csv, of_folders)


def format_of(name: str, csv: Csv = COMMAS) -> ModuleType | Csv | None:
    """Returns what reads a file of this name, `csv` if it is one; None if nothing does."""
    suffixes = [suffix for suffix in FORMATS if name.lower().endswith(suffix)]
    found = FORMATS[max(suffixes, key=len)] if suffixes else None
    return csv if found is Csv else found


@contextlib.contextmanager
def reading(file: Location) -> Iterator[None]:
    """Turns the errors of reading a file into an UnreadableFile."""
    try:
        yield
    except MemoryError as error:
        raise UnreadableFile(f"{file} can't be read: out of memory for {error or 'its rows'}") from error
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        raise UnreadableFile(f"{file} can't be read: {first_line(error)}") from error


def decoded(field: pa.Field) -> pa.Field:
    """Returns a column of categories as one of their values: each file has categories of its own."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def read_all(tables: list[Table], schema: pa.Schema, skip: int = 0, set_aside: bool = False) -> Iterator[pa.Table]:
    """Yields the rows of all files behind the first `skip`, thousands at once. Raises UnreadableFile.

    Of a bad row it is raised, too; `set_aside` gives nulls instead, and a column BAD with the file, the line and the
    reason, as JSON.
    """
    for table in tables:
        for rows in table.rows(schema, skip):
            skip = max(skip - rows.passed_over, 0)
            bad, found = {i: place for i, place in rows.bad.items() if i >= skip}, rows.table
            if bad and not set_aside:
                line, why = next(iter(bad.values()))
                raise UnreadableFile(f"{table.file} can't be read: line {line}: {why}")
            if set_aside:
                words = [None] * len(found)
                for i, (line, why) in bad.items():
                    words[i] = json.dumps({"file": str(table.file), "line": line, "reason": why})
                found = found.append_column(BAD, pa.array(words, pa.string()))
            if len(found) > skip:
                yield found.slice(skip)
            skip = max(skip - len(found), 0)
