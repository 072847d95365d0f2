"""JSON Lines such as Pushshift's dumps: one object per line, whose scalars become columns."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated

import msgspec
import pyarrow as pa

from bench.tables.blocks import CHUNK_ROWS, Rows, read_head, read_lines
from bench.tables.storage import Location

SCHEMA_LINES = 1000  # lines from which the columns are inferred
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Exact = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]  # integers that a double holds without rounding
TYPES = {pa.string(): str | int | float | bool, pa.int64(): Int64, pa.float64(): Exact | float, pa.bool_(): bool}
NESTED = b"nested"  # key in a schema's metadata: names of the columns that hold lists or objects
NOT_JSON, NOT_AN_OBJECT = "not JSON", "not a JSON object"


def read_schema(file: Location) -> pa.Schema:
    """Return the columns of the first lines: text, numbers, booleans, or always null (pa.null()).

    The names of columns that hold lists or objects are in the metadata, under NESTED.
    """
    kinds = {}
    lines = (line for block, _ in read_lines(file) for line in block.split(b"\n") if line.strip())
    for line in islice(lines, SCHEMA_LINES):
        record = parse_json(line)
        for name, value in record.items() if isinstance(record, dict) else ():
            kinds.setdefault(name, set()).update({kind_of(value)} - {type(None)})
    types = {name: column_type(values) for name, values in kinds.items()}
    nested = [name for name, kind in types.items() if not kind]
    metadata = {NESTED: json.dumps(nested)} if nested else None
    return pa.schema([(name, kind) for name, kind in types.items() if kind], metadata)


def kind_of(value: object) -> object:
    """Return a value's type; for an integer the narrowest that holds it: Exact, Int64 or text."""
    if type(value) is not int:
        return type(value)
    return Exact if abs(value) <= 2**53 else Int64 if -(2**63) <= value < 2**63 else str


def column_type(kinds: set) -> pa.DataType | None:
    """Return the type of a column with values of these kinds: text for a mixture, None for lists and objects."""
    if kinds & {list, dict}:
        return None
    if not kinds:
        return pa.null()
    for column, allowed in ((pa.int64(), {Exact, Int64}), (pa.float64(), {Exact, float}), (pa.bool_(), {bool})):
        if kinds <= allowed:
            return column
    return pa.string()


def read_rows(file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    """Yield the rows without blank lines.

    Text columns accept any scalar. Numbers and booleans may be quoted if the content is written as in JSON. A line that
    is not an object becomes a row of nulls; in an object, only values of another type become null.
    """
    names = [f"column_{i}" for i in range(len(schema))]  # JSON names need not be valid in Python
    types = [TYPES.get(kind, TYPES[pa.string()]) for kind in schema.types]
    nullable = [(name, kind | None, None) for name, kind in zip(names, types, strict=True)]
    row_type = msgspec.defstruct("Row", nullable, rename=dict(zip(names, schema.names, strict=True)), gc=False)
    decoder, fields = msgspec.json.Decoder(row_type), msgspec.structs.fields(row_type)  # fields() is slow
    records, bad, line = [], {}, 0

    def chunk(bytes_read: int) -> Rows:
        columns = zip(*map(msgspec.structs.astuple, records), strict=True) if records else [[]] * len(schema)
        arrays = [to_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        return Rows(pa.table(arrays, schema=schema), bad, bytes_read)

    for block, bytes_read in read_lines(file):
        try:
            records += decoder.decode_lines(block)
        except (ValueError, RecursionError):
            for number, text in enumerate(block.split(b"\n"), line + 1):
                if text.strip():
                    record, reason = parse_line(text, decoder, fields)
                    if reason:
                        bad[len(records)] = number, reason
                    records.append(record)
        line += block.count(b"\n")
        if len(records) >= CHUNK_ROWS:
            yield chunk(bytes_read)
            records, bad = [], {}
    yield chunk(file.info().size)


def to_array(values: Iterable, kind: pa.DataType) -> pa.Array:
    """Return a column; in a text column, numbers and booleans are written as in JSON."""
    try:
        return pa.array(values, kind)
    except pa.ArrowTypeError:
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, kind)


def parse_line(line: bytes, decoder: msgspec.json.Decoder, fields: tuple) -> tuple[msgspec.Struct, str]:
    """Decode a line that may be bad; return (the row, why it is bad or ""). Half surrogate pairs are replaced."""
    try:
        return decoder.decode(line), ""
    except (ValueError, RecursionError):
        pass
    record, row, misfits = parse_json(line), decoder.type(), []
    if not isinstance(record, dict):
        return row, NOT_JSON if record is NOT_JSON else NOT_AN_OBJECT
    for field in fields:
        value = record.get(field.encode_name)
        if isinstance(value, str):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            setattr(row, field.name, to_type(value, field.type))
        except ValueError:
            misfits.append(f"{field.encode_name} is {json.dumps(value)[:40]}, unlike the first rows")
    return row, "; ".join(misfits)


def to_type(value: object, kind: object) -> object:
    """Return a value as this type; quoted numbers and booleans are unquoted. Raises ValueError."""
    try:
        return msgspec.convert(value, kind)
    except ValueError:
        if not isinstance(value, str) or value != value.strip() or value == "null":
            raise
        return msgspec.json.decode(value.encode(), type=kind)


def parse_json(line: bytes) -> object:
    """Return the value in a line, or NOT_JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return NOT_JSON


def estimate_rows(file: Location) -> int:
    head, ratio = read_head(file)
    return round(head.count(b"\n") * ratio)
