"""JSON Lines, such as Pushshift's dumps: an object a line, of which scalars are columns."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated

import msgspec
import pyarrow as pa

from bench.tables.blocks import N_ROWS, Rows, read_head, read_lines
from bench.tables.storage import Location

N_LINES = 1000  # that say which columns there are
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Exact = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]  # what a double holds without rounding it
TYPES = {pa.string(): str | int | float | bool, pa.int64(): Int64, pa.float64(): Exact | float, pa.bool_(): bool}
LEFT_OUT = b"left out"  # the key, in a schema's metadata, of the names of columns that hold lists or objects
NOT_JSON, NO_OBJECT = "not JSON", "no object"


def read_schema(file: Location) -> pa.Schema:
    """Returns the columns of the first lines: those that are texts, numbers or booleans, or always null (pa.null()).

    The names of the others are in the metadata, under LEFT_OUT.
    """
    kinds = {}
    lines = (line for block, _ in read_lines(file) for line in block.split(b"\n") if line.strip())
    for line in islice(lines, N_LINES):
        record = parse_json(line)
        for name, value in record.items() if isinstance(record, dict) else ():
            kinds.setdefault(name, set()).update({kind_of(value)} - {type(None)})
    columns = {name: column_type(found) for name, found in kinds.items()}
    left_out = [name for name, kind in columns.items() if not kind]
    metadata = {LEFT_OUT: json.dumps(left_out)} if left_out else None
    return pa.schema([(name, kind) for name, kind in columns.items() if kind], metadata)


def kind_of(value: object) -> object:
    """Returns a value's type; of a whole number the narrowest that holds it: Exact, Int64 or text."""
    if type(value) is not int:
        return type(value)
    return Exact if abs(value) <= 2**53 else Int64 if -(2**63) <= value < 2**63 else str


def column_type(found: set) -> pa.DataType | None:
    """Returns the type of a column whose values are of these kinds: text for a mixture; None for lists and objects."""
    if found & {list, dict}:
        return None
    if not found:
        return pa.null()
    for kind, held in ((pa.int64(), {Exact, Int64}), (pa.float64(), {Exact, float}), (pa.bool_(), {bool})):
        if found <= held:
            return kind
    return pa.string()


def read_rows(file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    """Yields the rows, blank lines left out.

    In quotes a number or boolean is one, if the schema says so and JSON would write it like that; any scalar is a text.
    Of a line that is no object all values are null; of another one those that are of another type.
    """
    names = [f"column_{i}" for i in range(len(schema))]  # any text can be a name in JSON, but not in Python
    types = [TYPES.get(kind, TYPES[pa.string()]) for kind in schema.types]
    nullable = [(name, kind | None, None) for name, kind in zip(names, types, strict=True)]
    row_type = msgspec.defstruct("Row", nullable, rename=dict(zip(names, schema.names, strict=True)), gc=False)
    decoder, fields = msgspec.json.Decoder(row_type), msgspec.structs.fields(row_type)
    found, bad, line = [], {}, 0

    def rows(bytes_read: int) -> Rows:
        columns = zip(*map(msgspec.structs.astuple, found), strict=True) if found else [[]] * len(schema)
        arrays = [to_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        return Rows(pa.table(arrays, schema=schema), bad, bytes_read)

    for block, bytes_read in read_lines(file):
        try:
            found += decoder.decode_lines(block)
        except (ValueError, RecursionError):
            for number, text in enumerate(block.split(b"\n"), line + 1):
                if text.strip():
                    row, why = parse_line(text, decoder, fields)
                    if why:
                        bad[len(found)] = number, why
                    found.append(row)
        line += block.count(b"\n")
        if len(found) >= N_ROWS:
            yield rows(bytes_read)
            found, bad = [], {}
    yield rows(file.size())


def to_array(values: Iterable, kind: pa.DataType) -> pa.Array:
    """Returns a column of a type; numbers and booleans in one of text are written as in JSON."""
    try:
        return pa.array(values, kind)
    except pa.ArrowTypeError:
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, kind)


def parse_line(line: bytes, decoder: msgspec.json.Decoder, fields: tuple) -> tuple[msgspec.Struct, str]:
    """Decodes a line that may be at fault; returns (the row, what is wrong). Half surrogate pairs are replaced.

    fields: of the decoder's type, as msgspec.structs.fields gives them: too slow for each line.
    """
    try:
        return decoder.decode(line), ""
    except (ValueError, RecursionError):
        pass
    record, row, wrong = parse_json(line), decoder.type(), []
    if not isinstance(record, dict):
        return row, NOT_JSON if record is NOT_JSON else NO_OBJECT
    for field in fields:
        value = record.get(field.encode_name)
        if isinstance(value, str):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            setattr(row, field.name, to_type(value, field.type))
        except ValueError:
            wrong.append(f"{field.encode_name} is {json.dumps(value)[:40]}, unlike before")
    return row, "; ".join(wrong)


def to_type(value: object, kind: object) -> object:
    """Returns a value that is of a type, or what of that type stands in quotes. Raises ValueError."""
    try:
        return msgspec.convert(value, kind)
    except ValueError:
        if not isinstance(value, str) or value != value.strip() or value == "null":
            raise
        return msgspec.json.decode(value.encode(), type=kind)


def parse_json(line: bytes) -> object:
    """Returns the value that a line holds, or NOT_JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return NOT_JSON


def estimate_rows(file: Location) -> int:
    head, times = read_head(file)
    return round(head.count(b"\n") * times)


def row_groups(file: Location) -> None:
    """Says that a file can only be read from its beginning."""
