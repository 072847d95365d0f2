"""A folder of files -> tables with common columns."""

import contextlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileType

from bench.tables import format_json_lines
from bench.tables.format_csv import Csv
from bench.tables.readers import DEFAULT_CSV, FORMAT_WORDS, EmptyFile, Table, decoded, format_of, open_table, reading
from bench.tables.storage import CONCURRENT_FILES, Location, locate
from utils import UserError, clean, say

TEXT_TYPES = ("string", "large_string", "string_view", "null")
WIDENING = (  # in each row, a type holds all values of the types before it
    (pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    (pa.float16(), pa.float32(), pa.float64()),
    (pa.string(), pa.large_string()),
    (pa.binary(), pa.large_binary()),
    (pa.date32(), pa.date64()),
    (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
)
TIMESTAMP_UNITS = ("s", "ms", "us")  # likewise for timestamps; nanoseconds only reach 2262
TABLE_LOG = re.compile(r"/_delta_log/|/\.hoodie/|\.metadata\.json$")  # of Delta, Hudi and Iceberg


def find_files(path: Path | Location) -> list[Location]:
    """Return a file, or the readable files in a folder and its sub-folders, sorted by path.

    Other files are skipped and reported: unreadable ones, further links to a file, names that begin with a dot or an
    underscore, and `.json` files beside files of other formats: there they describe the data, such as dataset_info.json
    of datasets. Raises UserError if nothing is readable.
    """
    root = locate(path)
    with reading(root):
        kind = root.info().type
        if kind == FileType.NotFound:
            raise UserError(f"input not found: {root}")
        if kind != FileType.Directory:
            if kind != FileType.File or not format_of(root.name):
                raise UserError(f"unsupported file type: {root}. Supported: {FORMAT_WORDS}")
            return [root]
        files = root.files(recursive=True)
        hidden = {file for file in files if any(name.startswith((".", "_")) for name in file.parts_below(root))}
        supported = [file for file in files if file not in hidden and format_of(file.name)]
        supported = without_links([file for file in supported if not file.local or file.is_file()])
    if not supported:
        raise UserError(f"no supported files in {root}. Supported: {FORMAT_WORDS}")
    supported = [file for file in supported if not is_json(file)] or supported
    others = {file for file in files if file not in hidden or (format_of(file.name) and not is_json(file))}
    if others := sorted(others - {*supported}, key=str):
        say(f"{root}: skipping other files: {len(others)}, such as {'/'.join(others[0].parts_below(root))}")
    if log := next((file for file in files if TABLE_LOG.search(file.path)), None):
        say(f"{log} is the log of a table: rows that it has deleted or replaced are read, too")
    return supported


def is_json(file: Location) -> bool:
    return file.name.lower().endswith(".json")


def without_links(files: list[Location]) -> list[Location]:
    """Return each local file once, under its own name if others are symbolic links to it."""
    by_identity = {}
    for file in sorted(files, key=lambda file: bool(file.local) and file.local.is_symlink()):
        by_identity.setdefault(file.identity(), file)
    return [file for file in files if by_identity[file.identity()] is file]


def open_tables(files: list[Location], csv: Csv = DEFAULT_CSV, root: Location | None = None) -> list[Table]:
    """Open several files, see open_table; empty ones are skipped and reported.

    Raises UserError if all are empty, or if two differ only in suffixes such as `.csv` and `.csv.gz`: they are copies.
    """

    def table_or_none(file: Location) -> Table | None:
        try:
            return open_table(file, csv, root)
        except EmptyFile:
            return None

    with ThreadPoolExecutor(1 if files[0].local else CONCURRENT_FILES) as pool:  # a bucket takes about 100 ms per file
        tables = list(pool.map(table_or_none, files))
    if empty := [file for file, table in zip(files, tables, strict=True) if not table]:
        if len(empty) == len(files):
            raise EmptyFile(f"the input is empty: {empty[0]} has no columns")
        say(f"skipping empty files: {len(empty)}, such as {clean(empty[0].name)}")
    if unstamped := [table.file for table in tables if table and not table.stamp[1]]:
        say(f"{unstamped[0]} has neither a modification time nor an ETag: an edit of the same size goes unnoticed")
    tables, names = [table for table in tables if table], {}
    for table in tables:
        other = names.setdefault(table.stem, table)
        message = f"{other.file} and {table.file} may hold the same rows"
        if other is not table and other.format is table.format:
            raise UserError(f"{message}: their names differ only in the suffix; move one away")
        if other is not table:
            say(f"{message}: both are read")
    return tables


def common_schema(tables: list[Table], columns: list[str], text_columns: Sequence[str]) -> pa.Schema:
    """Return each column with a type that holds its values in all files.

    Raises UserError if a file lacks a text column or it is not text, if all files lack another column, or if the
    types of a column are incompatible.
    """
    fields = []
    options = dict.fromkeys(text_columns, "--column or --pair-column") | dict.fromkeys(text_columns[:1], "--column")
    for name in columns:
        sources = [table for table in tables if table.has(name)]
        if name in text_columns or not sources:
            sources = tables
        option = options.get(name, "")
        types = [decoded(table.field(name, option)).type for table in sources]
        kind = common_type(name, list(dict.fromkeys(types)))
        if pa.types.is_null(kind) and any(table.format is format_json_lines for table in sources):
            kind = pa.string()  # later lines may have values
        fields.append(pa.field(name, kind))
    schema = pa.schema(fields)
    for name in text_columns:
        if str(schema.field(name).type) not in TEXT_TYPES:
            kind = schema.field(name).type
            raise UserError(f"column {name!r} is not text but {kind}; choose another one with {options[name]}")
    return schema


def noting_others(schema: pa.Schema, tables: list[Table]) -> pa.Schema:
    """Return a schema that makes the readers note columns that none of the tables had when it was opened."""
    names = [name for table in tables for name in table.schema.names]
    return schema.with_metadata({format_json_lines.KNOWN: json.dumps([*dict.fromkeys(names), *nested_columns(tables)])})


def common_type(name: str, types: list[pa.DataType]) -> pa.DataType:
    """Return a type that holds all values of a column with several types: one of these, or text.

    Raises UserError if some values cannot become text (lists, objects, bytes).
    """
    with contextlib.suppress(pa.ArrowException):
        schemas = [pa.schema([(name, kind)]) for kind in types]
        return pa.unify_schemas(schemas).field(name).type  # they differ at most in nulls
    types = [kind for kind in types if not pa.types.is_null(kind)]
    timestamps = [pa.timestamp(unit, getattr(types[0], "tz", None)) for unit in TIMESTAMP_UNITS]
    for wider in (*WIDENING, timestamps):
        if all(kind in wider for kind in types):
            return max(types, key=wider.index)
    listed = " and ".join(map(str, types))
    if not all(map(castable_to_text, types)):
        raise UserError(f"column {name!r} is {listed}: no common type; leave it out with --keep-columns")
    say(f"column {name!r} is {listed}: copying it as text")
    return pa.string()


def castable_to_text(kind: pa.DataType) -> bool:
    """True unless values are lists, objects, bytes, or durations, whose text would lack the unit."""
    try:
        pa.array([], kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return not pa.types.is_duration(kind) and "binary" not in str(kind)


def nested_columns(tables: list[Table]) -> list[str]:
    """Return the names of columns that are not copied: of JSON with lists or objects, and of CSV without a name."""
    metadata = [table.schema.metadata or {} for table in tables]
    names = [name for entry in metadata for name in json.loads(entry.get(format_json_lines.NESTED, b"[]"))]
    return list(dict.fromkeys(names))
