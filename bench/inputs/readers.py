"""Files of texts -> rows: the one reader for every script. A format is a module and a line in FORMATS."""

import contextlib
import csv
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pyarrow as pa

from bench.files import check_no_pointer
from bench.inputs import format_csv, format_json_lines, format_parquet
from bench.inputs.blocks import Rows
from utils import UserError, clean, first_line, say

# how a file's name ends: the module that reads it, which has
# read_schema(path) -> names and types of the columns;
# read_rows(path, schema, skip) -> yields Rows of these columns in the file's order; of the first `skip` rows the values
# may be missing, but not the rows;
# estimate_rows(path) -> how many rows there are, exactly or about
FORMATS = {".csv": format_csv, ".csv.gz": format_csv, ".parquet": format_parquet, ".zst": format_json_lines}
TEXT_TYPES = ("string", "large_string", "string_view", "null")


class UnreadableFile(UserError):
    """A file that can't be read to its end; the message names it and says why."""


@dataclass(frozen=True)
class Table:
    """A file of rows. `schema`: names and types of its columns."""

    path: Path
    schema: pa.Schema

    def rows(self, schema: pa.Schema, skip: int = 0) -> Iterator[Rows]:
        """Yields all rows, cast to the schema; of the first `skip` the values may be missing. Raises UnreadableFile."""
        with reading(self.path):
            for rows in format_of(self.path).read_rows(self.path, schema, skip):
                yield Rows(rows.table.cast(schema), rows.bad, rows.bytes_read)

    def estimate_rows(self) -> int:
        with reading(self.path):
            return format_of(self.path).estimate_rows(self.path)

    def field(self, name: str) -> pa.Field:
        """Returns a column's name and type. Raises UserError if there is none."""
        if name not in self.schema.names:
            raise UserError(
                f"{self.path} has no column {name!r} (see --column); its columns: {', '.join(self.schema.names)}"
            )
        return self.schema.field(name).with_nullable(True)


def open_table(path: Path) -> Table:
    """Opens a file. Raises UserError if it can't be read, has no column, or two of one name."""
    if not format_of(path):
        raise UserError(f"{path} can't be read: the formats that can are {', '.join(FORMATS)}")
    with reading(path):
        check_no_pointer(path)
        schema = format_of(path).read_schema(path)
    if not schema.names:
        raise UserError(f"{path} is empty: it has no columns")
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        columns = ", ".join(schema.names)
        raise UserError(f"{path} has {len(twice)} columns {twice[0]!r}; its columns: {columns}")
    return Table(path, schema)


def format_of(path: Path) -> ModuleType | None:
    """Returns what reads a file of this name, None if nothing does."""
    suffixes = [suffix for suffix in FORMATS if path.name.lower().endswith(suffix)]
    return FORMATS[max(suffixes, key=len)] if suffixes else None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the errors of reading a file into an UnreadableFile."""
    try:
        yield
    except MemoryError as error:
        raise UnreadableFile(f"{path} can't be read: out of memory for {error or 'its rows'}") from error
    except (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise UnreadableFile(f"{path} can't be read: {first_line(error)}") from error


# -------------------------------------------------------------------------------------------------- several files


def find_files(path: Path) -> list[Path]:
    """Returns the file, or those files of a folder that can be read, by name; says what else is in the folder.

    Raises UserError if there is none.
    """
    formats = ", ".join(FORMATS)
    if not os.path.lexists(path):
        raise UserError(f"there is no {path}")
    if not path.is_dir():
        if not path.is_file() or not format_of(path):
            raise UserError(f"{path} is no file that can be read: those that can end in {formats}")
        return [path]
    seen = sorted(file for file in path.iterdir() if not file.name.startswith((".", "_")))
    files = [file for file in seen if format_of(file) and file.is_file()]
    if not files:
        raise UserError(f"{path} holds no file that can be read: those that can end in {formats}")
    if others := [file.name for file in seen if file not in files]:
        say(f"{path}: {len(others)} folders or other files in it are passed over, such as {clean(others[0])}")
    return files


def common_schema(tables: list[Table], columns: list[str], text_column: str) -> pa.Schema:
    """Returns the types that these columns have in all files, wide enough for each of them.

    Raises UserError if a file lacks one, if two files don't go together, or if the texts' column is not text.
    """
    common = None
    for table in tables:
        own = pa.schema([decoded(table.field(name)) for name in columns])
        try:
            common = pa.unify_schemas([common or own, own], promote_options="permissive")
        except pa.ArrowException as error:
            raise UserError(f"{table.path}: a column is of another type than in the files before: {error}") from error
    kind = common.field(text_column).type
    if str(kind) not in TEXT_TYPES:
        raise UserError(f"column {text_column!r} is not text, it is {kind}")
    return common


def decoded(field: pa.Field) -> pa.Field:
    """Returns a column of categories as one of their values: each file has categories of its own."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def read_all(tables: list[Table], schema: pa.Schema, skip: int = 0) -> Iterator[pa.Table]:
    """Yields the rows of all files behind the first `skip`, thousands at once. Raises UnreadableFile."""
    for table in tables:
        for rows in table.rows(schema, skip):
            if bad := [why for i, why in rows.bad.items() if i >= skip]:
                raise UnreadableFile(f"{table.path} can't be read: {bad[0]}")
            if len(rows.table) > skip:
                yield rows.table.slice(skip)
            skip = max(skip - len(rows.table), 0)
