"""A folder of files -> tables that go together: which files there are, and which types their columns have."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from bench.tables import format_json_lines
from bench.tables.format_csv import Csv
from bench.tables.format_json_lines import LEFT_OUT
from bench.tables.readers import COMMAS, FORMAT_WORDS, EmptyFile, Table, decoded, format_of, open_table, reading
from bench.tables.storage import CONCURRENT_FILES, Location, locate
from utils import UserError, clean, say

TEXT_TYPES = ("string", "large_string", "string_view", "null")
WHOLE_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}  # of the whole numbers that each holds exactly


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
        kind = common_type(name, list(dict.fromkeys(kinds)))
        if pa.types.is_null(kind) and any(table.format is format_json_lines for table in having):
            kind = pa.string()  # for what comes further on
        fields.append(pa.field(name, kind))
    common = pa.schema(fields)
    kind = common.field(text_column).type
    if str(kind) not in TEXT_TYPES:
        raise UserError(f"column {text_column!r} is not text, it is {kind}")
    return common


def common_type(name: str, kinds: list[pa.DataType]) -> pa.DataType:
    """Returns a type that holds each value that a column has in several files: text where there is no other.

    Raises UserError if not even text holds them, such as lists, objects and bytes.
    """
    words = " and ".join(map(str, kinds))
    with contextlib.suppress(pa.ArrowException):
        found = pa.unify_schemas([pa.schema([(name, kind)]) for kind in kinds], promote_options="permissive")
        kind = found.field(name).type
        if all(can_hold(own, kind) for own in kinds):
            return kind
    if not all(map(castable_to_text, kinds)):
        raise UserError(f"column {name!r} is {words}: --keep-columns names those to copy")
    say(f"column {name} is {words}: it is copied as text")
    return pa.string()


def can_hold(own: pa.DataType, kind: pa.DataType) -> bool:
    """Says whether a type holds each value of another to the last digit: what pyarrow makes of two does not always."""
    is_a = pa.types
    if own == kind or is_a.is_null(own):
        return True
    if is_a.is_nested(own):
        return can_hold_nested(own, kind)
    if is_a.is_integer(own) or is_a.is_floating(own) or is_a.is_decimal(own):
        return can_hold_number(own, kind)
    if is_a.is_timestamp(own) or is_a.is_duration(own):
        return own.id == kind.id and kind.unit != "ns"  # nanoseconds end in 2262
    wider = (is_a.is_string, is_a.is_large_string), (is_a.is_time32, is_a.is_time64), (is_a.is_date32, is_a.is_date64)
    wider += ((is_a.is_binary, is_a.is_large_binary),)
    return any(narrow(own) and wide(kind) for narrow, wide in wider)


def can_hold_nested(own: pa.DataType, kind: pa.DataType) -> bool:
    """Says what can_hold() says, of lists, objects and maps."""
    is_a = pa.types
    if is_a.is_struct(own):
        return is_a.is_struct(kind) and all(can_hold(child.type, kind.field(child.name).type) for child in own)
    if is_a.is_map(own):
        return is_a.is_map(kind) and can_hold(own.key_type, kind.key_type) and can_hold(own.item_type, kind.item_type)
    return hasattr(own, "value_type") and hasattr(kind, "value_type") and can_hold(own.value_type, kind.value_type)


def can_hold_number(own: pa.DataType, kind: pa.DataType) -> bool:
    """Says what can_hold() says, of numbers."""
    is_a = pa.types
    if is_a.is_decimal(own):
        whole_digits = own.precision - own.scale
        return is_a.is_decimal(kind) and kind.scale >= own.scale and kind.precision - kind.scale >= whole_digits
    if is_a.is_floating(own):
        return is_a.is_floating(kind) and kind.bit_width > own.bit_width
    if is_a.is_floating(kind):
        return own.bit_width <= WHOLE_BITS[kind]
    if not is_a.is_integer(kind):
        return False
    signs = is_a.is_signed_integer(own), is_a.is_signed_integer(kind)
    wide_enough = own.bit_width < kind.bit_width if signs == (False, True) else own.bit_width <= kind.bit_width
    return wide_enough and signs != (True, False)


def castable_to_text(kind: pa.DataType) -> bool:
    """Says whether values of a type can be written as text: not lists, objects, bytes, and numbers without a unit."""
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return not pa.types.is_duration(kind) and "binary" not in str(kind)


def left_out(tables: list[Table]) -> list[str]:
    """Returns the names of the columns that are not copied since they hold lists or objects in JSON."""
    names = [name for table in tables for name in json.loads((table.schema.metadata or {}).get(LEFT_OUT, b"[]"))]
    return list(dict.fromkeys(names))
