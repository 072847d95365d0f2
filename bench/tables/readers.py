"""Files of texts -> rows, for every script. A format is a module or class, and a line in FORMATS."""

import contextlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pyarrow as pa

from bench.naming import listed, nearest
from bench.tables import format_json_lines, format_parquet
from bench.tables.blocks import NOTE, Rows
from bench.tables.format_csv import Csv
from bench.tables.storage import Location, check_not_lfs_pointer, locate
from utils import RunError, UserError, first_line, say

# Name suffix -> reader, which has
# read_schema(file) -> names and types of the columns
# read_rows(file, schema, skip) -> yields Rows of these columns in file order; may omit the first `skip` rows
# estimate_rows(file) -> number of rows, exact or estimated
NAMES = {".csv": Csv, ".tsv": Csv} | dict.fromkeys((".jsonl", ".ndjson", ".json"), format_json_lines)
FORMATS = {name + packed: reader for name, reader in NAMES.items() for packed in ("", ".gz", ".zst")}
FORMATS |= {".zst": format_json_lines, ".parquet": format_parquet}
FORMAT_WORDS = "CSV or TSV (.csv, .tsv), JSON Lines (.jsonl, .json), both also as .gz or .zst, and Parquet (.parquet)"
DEFAULT_CSV = Csv()
# delimiter found in a .csv header -> value to suggest for --delimiter
DELIMITERS = {";": "';'", "|": "'|'", "\t": "tab"}
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"  # value of a folder column that stands for null
BAD = "classify_texts: bad row"  # column with the reason why a row is bad, see read_all


class UnreadableFile(UserError):
    """A file cannot be read to its end; the message names it and the reason."""


class EmptyFile(UserError):
    """A file without columns."""


@dataclass(frozen=True)
class Table:
    """A file of rows."""

    file: Location
    schema: pa.Schema
    csv: Csv = DEFAULT_CSV  # how to read it if it is CSV
    folder_columns: dict[str, str | None] = field(default_factory=dict)  # column -> value, from names such as year=2024
    stamp: tuple = ()  # of the file when it was opened

    def rows(self, schema: pa.Schema, skip: int = 0) -> Iterator[Rows]:
        """Yield the rows cast to `schema`; may omit the first `skip`. Raises UnreadableFile.

        A column that the file lacks is null. JSON is parsed as the types of `schema`, not cast to them: `1.0` in a text
        column stays `1.0`, and a column may first appear after the lines from which the file's schema was inferred.
        """
        fields, reader = [], self.format
        for column in schema:
            if column.name in self.folder_columns:
                continue
            if reader is format_json_lines and format_json_lines.can_read(column):
                fields.append(column)
            elif self.has(column.name):
                fields.append(decoded(self.field(column.name)))
        stored = pa.schema(fields, schema.metadata)
        with reading(self.file):
            for rows in reader.read_rows(self.file, stored, skip):
                columns = [
                    rows.table[column.name]
                    if stored.get_field_index(column.name) >= 0
                    else pa.repeat(pa.scalar(self.folder_columns.get(column.name), column.type), len(rows.table))
                    for column in schema
                ]
                yield replace(rows, table=pa.table(columns, schema.names).cast(schema))

    def has(self, name: str) -> bool:
        return self.schema.get_field_index(name) >= 0

    def check_unchanged(self, refresh: bool = True) -> None:
        """Raise RunError if the file has been edited, extended or replaced; `refresh` lists its folder again."""
        with reading(self.file):
            if refresh:
                self.file.forget_listings()
            if self.file.stamp() != self.stamp:
                raise RunError(f"{self.file} has changed since the run began; start again with --overwrite")

    @property
    def format(self) -> ModuleType | Csv:
        return format_of(self.file.name, self.csv)

    @property
    def stem(self) -> str:
        """Return the file's path without the suffix that tells its format."""
        return str(self.file).removesuffix(suffix_of(self.file.name))

    def estimate_rows(self) -> int:
        with reading(self.file):
            return self.format.estimate_rows(self.file)

    def row_groups(self) -> list[int] | None:
        """Return the number of rows in each row group of a Parquet file; None for other formats."""
        with reading(self.file):
            return format_parquet.row_groups(self.file) if self.format is format_parquet else None

    def field(self, name: str, option: str = "") -> pa.Field:
        """Return a column's name and type. Raises UserError, which suggests similar columns and this `option`."""
        if self.has(name):
            return self.schema.field(name).with_nullable(True)
        names = self.schema.names
        message = f"{self.file} has no column {name!r}"
        if option:
            message += f"; choose another with {option}"
        message += f". Its columns: {listed(names)}"
        if similar := nearest(name, names):
            message += f". Did you mean {similar!r}?"
        delimiters = [sign for sign in DELIMITERS if sign in names[0]]
        if len(names) == 1 and delimiters and isinstance(self.format, Csv):
            message += f". Try --delimiter {DELIMITERS[delimiters[0]]}"
        raise UserError(message)


def open_table(file: Path | Location, csv: Csv = DEFAULT_CSV, root: Location | None = None) -> Table:
    """Open a file. Folders with names like `year=2024`, below or just above `root`, become text columns, as in Hive.

    Raises UserError if the file is unreadable or has two columns of the same name, EmptyFile if it has no columns.
    """
    file = locate(file)
    if not format_of(file.name):
        raise UserError(f"unsupported file type: {file}. Supported: {FORMAT_WORDS}")
    with reading(file):
        check_not_lfs_pointer(file)
        stamp = file.stamp()
        schema = format_of(file.name, csv).read_schema(file) if stamp[0] else pa.schema([])
    names = schema.names
    if not names:
        raise EmptyFile(f"{file} is empty: it has no columns")
    pairs = [map(unquote, folder.split("=", 1)) for folder in file.folders_below(root or file) if "=" in folder]
    folder_columns = {name: None if value == NULL_FOLDER else value for name, value in pairs if name not in names}
    for name in folder_columns:
        schema = schema.append(pa.field(name, pa.string()))
    name, count = Counter([*schema.names, BAD]).most_common(1)[0]
    if count > 1:
        fault = "a column with the reserved name" if name == BAD else f"{count} columns with the name"
        raise UserError(f"{file} has {fault} {listed([name])!r}: rename them. Its columns: {listed(names)}")
    return Table(file, schema, csv, folder_columns, stamp)


def format_of(name: str, csv: Csv = DEFAULT_CSV) -> ModuleType | Csv | None:
    """Return the reader for a file of this name (`csv` for CSV files); None if there is none."""
    reader = FORMATS.get(suffix_of(name).lower())
    return csv if reader is Csv else reader


def suffix_of(name: str) -> str:
    """Return the end of a name that tells the format, such as `.csv.gz`; empty if there is none."""
    length = max((len(suffix) for suffix in FORMATS if name.lower().endswith(suffix)), default=0)
    return name[len(name) - length :]


@contextlib.contextmanager
def reading(file: Location) -> Iterator[None]:
    """Turn errors of reading a file into an UnreadableFile."""
    try:
        yield
    except MemoryError as error:
        raise UnreadableFile(f"{file} can't be read: out of memory for {error or 'its rows'}") from error
    except (OSError, EOFError, ValueError, KeyError, zlib.error, pa.ArrowException) as error:
        raise UnreadableFile(f"{file} can't be read: {first_line(error)}") from error


def decoded(field: pa.Field) -> pa.Field:
    """Return a column of categories as a column of their values, since each file has its own categories."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def read_all(tables: list[Table], schema: pa.Schema, skip: int = 0, keep_bad_rows: bool = False) -> Iterator[pa.Table]:
    """Yield the rows of all files after the first `skip`, in chunks. Raises UnreadableFile, also for a bad row.

    With `keep_bad_rows`, bad rows have nulls instead, and a column BAD has the file, line and reason as JSON.
    """
    for table in tables:
        notes = set()
        for rows in table.rows(schema, skip):
            skip = max(skip - rows.skipped, 0)
            chunk = rows.table
            bad = {i: fault for i, fault in rows.bad.items() if i >= skip}
            for line, reason in bad.values():
                if reason.startswith(NOTE) and reason not in notes:
                    say(f"{table.file}, line {line}: {reason}")
                    notes.add(reason)
            if keep_bad_rows:
                faults = [None] * len(chunk)
                for i, (line, reason) in bad.items():
                    faults[i] = json.dumps({"file": str(table.file), "line": line, "reason": reason})
                chunk = chunk.append_column(BAD, pa.array(faults, pa.string()))
            elif faults := [fault for fault in bad.values() if not fault[1].startswith(NOTE)]:
                line, reason = faults[0]
                raise UnreadableFile(f"{table.file} can't be read: line {line}: {reason}")
            if len(chunk) > skip:
                yield chunk.slice(skip)
            skip = max(skip - len(chunk), 0)
