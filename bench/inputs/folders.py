"""A folder of files -> tables that go together: which files there are, and which types their columns have."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from bench.inputs.format_csv import Csv
from bench.inputs.format_json_lines import LEFT_OUT
from bench.inputs.readers import COMMAS, FORMAT_WORDS, EmptyFile, Table, decoded, format_of, open_table, reading
from bench.storage import CONCURRENT_FILES, Location, locate
from utils import UserError, clean, say

TEXT_TYPES = ("string", "large_string", "string_view", "null")


def find_files(path: Path | Location) -> list[Location]:
    """Returns the file, or those files of a folder and its sub-folders that can be read, in the order of their paths.

    Passes over what begins with a dot or an underscore; says what else is there. Raises UserError if there is none.
    """
    place = locate(path)
    with reading(place):
        if not place.is_folder():
            if not place.exists():
                raise UserError(f"there is no {place}")
            if not place.is_file() or not format_of(place.name):
                raise UserError(f"{place} is no file that can be read: what can is {FORMAT_WORDS}")
            return [place]
        hidden = ".", "_"
        seen = [
            file
            for file in place.files(recursive=True)
            if not any(name.startswith(hidden) for name in file.parts_below(place))
        ]
    files = [file for file in seen if format_of(file.name) and (not file.local or file.is_file())]
    if not files:
        raise UserError(f"{place} holds no file that can be read: what can is {FORMAT_WORDS}")
    readable = {file.path for file in files}
    if others := [file.name for file in seen if file.path not in readable]:
        say(f"{place}: {len(others)} other files in it are passed over, such as {clean(others[0])}")
    return files


def open_tables(files: list[Location], csv: Csv = COMMAS, root: Location | None = None) -> list[Table]:
    """Opens several files, see open_table; passes over empty ones, and says so. Raises UserError if all are."""

    def table_or_none(file: Location) -> Table | None:
        try:
            return open_table(file, csv, root)
        except EmptyFile:
            if len(files) == 1:
                raise
            return None

    with ThreadPoolExecutor(1 if files[0].local else CONCURRENT_FILES) as pool:  # in a bucket each takes some 100 ms
        tables = list(pool.map(table_or_none, files))
    if empty := [file for file, table in zip(files, tables, strict=True) if not table]:
        say(f"{len(empty)} empty files are passed over, such as {clean(empty[0].name)}")
        if len(empty) == len(files):
            raise EmptyFile(f"all {len(files)} files are empty, such as {empty[0]}")
    return [table for table in tables if table]


def common_schema(tables: list[Table], columns: list[str], text_column: str) -> pa.Schema:
    """Returns the types that these columns have in all files, wide enough for each of them.

    Raises UserError if a file lacks the texts' column, if all lack another, if two files don't go together, or if the
    texts' column is not text.
    """
    fields = []
    for name in columns:
        having = [table for table in tables if name in table.schema.names]
        if name == text_column or not having:
            having = tables
        kinds = [decoded(table.field(name, "--column" if name == text_column else "")).type for table in having]
        fields.append(pa.field(name, common_type(name, list(dict.fromkeys(kinds)))))
    common = pa.schema(fields)
    kind = common.field(text_column).type
    if str(kind) not in TEXT_TYPES:
        raise UserError(f"column {text_column!r} is not text, it is {kind}")
    return common


def common_type(name: str, kinds: list[pa.DataType]) -> pa.DataType:
    """Returns a type that holds each value that a column has in several files: text where there is no other.

    A double holds no whole number of 64 bits, and an int64 not all that are unsigned. Raises UserError if a list or an
    object is to be text.
    """
    words = " and ".join(map(str, kinds))
    try:
        found = pa.unify_schemas([pa.schema([(name, kind)]) for kind in kinds], promote_options="permissive")
        kind = found.field(name).type
        rounded = [own for own in kinds if pa.types.is_integer(own) and own.bit_width == 64 and own != kind]
        if not rounded or pa.types.is_decimal(kind):
            return kind
    except pa.ArrowException:
        if any(map(pa.types.is_nested, kinds)):
            raise UserError(f"column {name!r} is {words}: --keep-columns names those to copy") from None
    say(f"column {name} is {words}: it is copied as text")
    return pa.string()


def left_out(tables: list[Table]) -> list[str]:
    """Returns the names of the columns that are not copied since they hold lists or objects in JSON."""
    names = [name for table in tables for name in json.loads((table.schema.metadata or {}).get(LEFT_OUT, b"[]"))]
    return list(dict.fromkeys(names))
