"""JSON Lines such as Pushshift's dumps: one object per line, whose scalars become columns. Also arrays of objects."""

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import Annotated

import msgspec
import pyarrow as pa

from bench.naming import listed
from bench.tables.blocks import CHUNK_BYTES, CHUNK_ROWS, MAX_LINE, NOTE, Rows, read_head, read_lines, undecoded
from bench.tables.storage import Location

SCHEMA_LINES = 1000  # lines from which the columns are inferred
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Exact = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]  # integers that a double holds without rounding
TYPES = {pa.string(): str | int | float | bool, pa.int64(): Int64, pa.float64(): Exact | float, pa.bool_(): bool}
NESTED = b"nested"  # key in a schema's metadata: names of the columns that hold lists or objects, or are UNREADABLE
KNOWN = b"known"  # likewise in that of a schema to read: names of columns that need no note if they are not read
MAX_KNOWN = 2000  # columns; more take long to check
UNREADABLE = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')  # in names of columns: msgspec and pyarrow refuse them
BETWEEN = re.compile(r"[\s,\[\]]*")  # objects that are not one per line
TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)  # a string, an unclosed one, or a bracket
DECODER, LENIENT = json.JSONDecoder(), json.JSONDecoder(strict=False)  # the latter takes control characters in text
NOT_JSON, NOT_AN_OBJECT = "not JSON", "not a JSON object"


def read_schema(file: Location) -> pa.Schema:
    """Return the columns of the first lines: text, numbers, booleans, or always null (pa.null()).

    The names of columns that hold lists or objects are in the metadata, under NESTED.
    """
    kinds, blocks = {}, (block for block, _ in read_records(file) if block.strip())
    lines = (line for block in blocks for line in block.split(b"\n") if line.strip())
    for line in (head := list(islice(lines, SCHEMA_LINES))):
        record = parse_json(line)
        for name, value in record.items() if isinstance(record, dict) else ():
            kinds.setdefault(name, set()).update({kind_of(value)} - {type(None)})
    types = {name: None if UNREADABLE.search(name) else column_type(values) for name, values in kinds.items()}
    nested = [name for name, kind in types.items() if not kind]
    if head and len(nested) == len(types):
        raise ValueError(f"no JSON objects with text or numbers; keys that hold lists or objects: {listed(nested)}")
    metadata = {NESTED: json.dumps(nested)} if nested else None
    return pa.schema([(name, kind) for name, kind in types.items() if kind], metadata)


def can_read(column: pa.Field) -> bool:
    """True if read_rows takes a column of this name and type."""
    return column.type in TYPES and not UNREADABLE.search(column.name)


def read_records(file: Location) -> Iterator[tuple[bytes, int]]:
    """Yield blocks of lines, see read_lines; objects in arrays, or not on a line each, become one per line."""
    blocks = read_lines(file)
    for block in blocks:
        if block[0].strip():
            blocks = chain([block], blocks)
            yield from blocks if is_json_lines(block[0]) else split_records(blocks)
            return
        yield block


def is_json_lines(block: bytes) -> bool:
    """False if the text that this block begins is an array, or has objects that are not one per line."""
    text = block.lstrip()
    if isinstance(parse_json(text.partition(b"\n")[0]), dict):
        return True
    text = text.decode(errors="surrogateescape")
    if text[0] == "[":
        return False
    try:
        end = BETWEEN.match(text, LENIENT.raw_decode(text)[1]).end()
    except (ValueError, RecursionError):
        return True
    return text[end : end + 1] not in ("{", "")


def split_records(blocks: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """Put each value on a line. Raises ValueError after the last one if more follows, or an array is not closed."""
    text, depth, count, enough = "", 0, 0, 0
    for block, position in blocks:
        text += block.decode(errors="surrogateescape")
        if len(text) < enough and block.endswith(b"\n"):  # the last block does not
            continue
        lines, start = [], 0
        with contextlib.suppress(ValueError):  # the value may end in a later block
            while gap := BETWEEN.match(text, start):
                start, depth = gap.end(), depth + gap[0].count("[") - gap[0].count("]")
                line, start = next_value(text, start)
                lines.append(line + "\n")
        text, count, enough = text[start:], count + len(lines), 2 * (len(text) - start)
        yield "".join(lines).encode(errors="surrogateescape"), position
        if len(text) > MAX_LINE:
            break
    if text or depth:
        raise ValueError(f"truncated, or not JSON, after its first {count:,} objects")


def next_value(text: str, start: int) -> tuple[str, int]:
    """Return (the value that starts here on one line, its end: by brackets if it is not JSON). Raises ValueError."""
    for decoder in (DECODER, LENIENT):
        with contextlib.suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(text, start)
            line = text[start:end].replace("\n", " ")
            return line if decoder is DECODER else json.dumps(value, ensure_ascii=False), end
    depth = 0
    for token in TOKEN.finditer(text, start if text[start : start + 1] == "{" else len(text)):
        if token[0] == '"':
            break
        depth += (token[0] in "{[") - (token[0] in "}]")
        if not depth:
            return text[start : token.end()].replace("\n", " "), token.end()
    raise ValueError


def kind_of(value: object) -> object:
    """Return a value's type; for an integer the narrowest that holds it: Exact, Int64 or text."""
    if type(value) is not int:
        return type(None) if is_nan(value) else type(value)
    return Exact if abs(value) <= 2**53 else Int64 if -(2**63) <= value < 2**63 else str


def is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


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
    known = set(json.loads((schema.metadata or {}).get(KNOWN, b"[]")))
    decoder = make_decoder(nullable, schema.names, known)
    fields = msgspec.structs.fields(decoder.type)[: len(schema)]  # slow
    records, bad, line, size = [], {}, 0, 0

    def chunk(bytes_read: int) -> Rows:
        columns = [list(map(attrgetter(name), records)) for name in names]
        arrays = [to_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        return Rows(pa.table(arrays, schema=schema), bad, bytes_read)

    for block, bytes_read in read_records(file):
        try:
            records += decoder.decode_lines(block)
        except (ValueError, RecursionError):
            for number, text in enumerate(block.split(b"\n"), line + 1):
                if text.strip():
                    record, reason = parse_line(text, decoder, fields, known)
                    if reason:
                        bad[len(records)] = number, reason
                    records.append(record)
            if known:
                decoder = make_decoder(nullable, schema.names, known)
        line, size = line + block.count(b"\n"), size + len(block)
        if len(records) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk(bytes_read)
            records, bad, size = [], {}, 0
    yield chunk(file.info().size)


def make_decoder(fields: list[tuple], names: list[str], known: Collection[str]) -> msgspec.json.Decoder:
    """Return a decoder of fields with these names in JSON; if names are `known`, it raises ValueError at others."""
    others = {f"other_{i}": name for i, name in enumerate(sorted({*known} - {*names}))}
    strict = 0 < len(known) < MAX_KNOWN and not any(map(UNREADABLE.search, known))
    if strict:
        fields = [*fields, *((name, msgspec.Raw, None) for name in others)]
    rename = dict(zip((name for name, *_ in fields), [*names, *others.values()], strict=False))
    return msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=rename, gc=False, forbid_unknown_fields=strict))


def to_array(values: Iterable, kind: pa.DataType) -> pa.Array:
    """Return a column; in a text column, numbers and booleans are written as in JSON."""
    try:
        return pa.array(values, kind)
    except pa.ArrowTypeError:
        values = [None if is_nan(value) else value for value in values]
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, kind)


def parse_line(line: bytes, decoder: msgspec.json.Decoder, fields: tuple, known: set) -> tuple[msgspec.Struct, str]:
    """Decode a line that may be bad; return (the row, why it is bad, a NOTE on names that are not `known`, or "")."""
    with contextlib.suppress(ValueError, RecursionError):
        return decoder.decode(line), ""
    record, row, reasons = parse_json(line), decoder.type(), []
    if not isinstance(record, dict):
        return row, undecoded(line) or (NOT_JSON if record is NOT_JSON else NOT_AN_OBJECT)
    for field in fields:
        value = record.get(field.encode_name)
        if isinstance(value, str):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half surrogate pairs
        try:
            setattr(row, field.name, to_type(value, field.type))
        except ValueError:
            shown = re.sub('".*', "text", json.dumps(value))[:40]  # texts are private
            reasons.append(f"{listed([field.encode_name])} is {shown}, unlike the first rows")
    if late := [name for name in record if known and name not in known]:
        known.update(late)
        note = f"columns that are missing from the first {SCHEMA_LINES:,} rows are not copied: {listed(late)}"
        reasons.append(note if reasons else NOTE + note)
    return row, "; ".join(reasons)


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
        return json.loads(line.decode("utf-8-sig"), strict=False)
    except (ValueError, RecursionError):
        return NOT_JSON


def estimate_rows(file: Location) -> int:
    head, ratio = read_head(file, read_records(file))
    return round(head.count(b"\n") * ratio)
