"""Parquet files."""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, groupby

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.tables.blocks import BLOCK_BYTES, CHUNK_BYTES, CHUNK_ROWS, MAX_LINE, Rows, undecoded
from bench.tables.storage import Location

FIRST_ROWS, MOST_ROWS = 16, 5000  # decoded at once: a long text may be stored once and appear in many rows
LONG_GROUP = 2**29  # bytes; a page of it, which is decompressed whole, may take much memory
MAX_RATIO = 1000  # of such a row group's size to its compressed size; that of text is about 10


@contextlib.contextmanager
def open_parquet(file: Location) -> Iterator[pq.ParquetFile]:
    """Open a file. Old timestamps of Hive, Impala and Spark (int96) become microseconds: nanoseconds end in 2262."""
    with file.open_seekable() as opened:
        remote = not file.local
        yield pq.ParquetFile(opened, buffer_size=BLOCK_BYTES, pre_buffer=remote, coerce_int96_timestamp_unit="us")


def read_metadata(file: Location) -> pq.FileMetaData:
    """Return the metadata of a file, reading only its end. Raises OSError, or ValueError if it is damaged."""
    with file.open_seekable() as opened:
        try:
            return pq.read_metadata(opened)
        except OSError as error:
            if "deserialize" in str(error):  # damaged metadata is an OSError for pyarrow
                raise ValueError(f"damaged Parquet metadata: {error}") from error
            raise


def read_schema(file: Location) -> pa.Schema:
    with open_parquet(file) as parquet:
        return parquet.schema_arrow.remove_metadata()


def estimate_rows(file: Location) -> int:
    return read_metadata(file).num_rows


def row_groups(file: Location) -> list[int]:
    metadata = read_metadata(file)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_rows(file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    """Yield the rows, except for row groups that lie entirely within the first `skip` rows.

    A row with text that is not UTF-8 is bad, and that text becomes null; its line is its row number, from 1.
    """
    with open_parquet(file) as parquet:
        groups = list(map(parquet.metadata.row_group, range(parquet.num_row_groups)))
        for group in filter(is_bomb, groups):
            raise ValueError(f"a row group takes {group.total_byte_size >> 20} MiB for {group.num_rows} rows")
        ends = list(accumulate(group.num_rows for group in groups))
        sizes = list(accumulate(group.total_byte_size for group in groups))
        first = bisect_right(ends, skip)
        position = skipped = ends[first - 1] if first else 0
        step = FIRST_ROWS
        # each of small row groups would take a while
        for _, chunk in groupby(range(first, len(ends)), lambda i: (ends[i] // CHUNK_ROWS, sizes[i] // CHUNK_BYTES)):
            for batch in parquet.iter_batches(step, row_groups=list(chunk), columns=schema.names):
                if batch.nbytes > MAX_LINE and max(map(longest_text, batch.columns)) > MAX_LINE:
                    raise ValueError(f"a text of more than {MAX_LINE >> 20} MiB")
                valid, reasons = without_bad_text(batch)
                bad = {i: (position + i + 1, reason) for i, reason in reasons.items()}
                yield Rows(pa.Table.from_batches([valid]).select(schema.names), bad, skipped=skipped)
                position, skipped = position + len(batch), 0
                step = max(min(8 * step, MOST_ROWS, CHUNK_BYTES * len(batch) // max(batch.nbytes, 1)), 1)
                parquet.reader.set_batch_size(step)
    yield Rows(schema.empty_table(), skipped=skipped)


def is_bomb(group: pq.RowGroupMetaData) -> bool:
    size = group.total_byte_size
    if size < LONG_GROUP:
        return size > MAX_LINE * max(group.num_rows, 1)
    compressed = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return size > min(MAX_LINE * group.num_rows, MAX_RATIO * compressed)


def longest_text(column: pa.Array) -> int:
    return pc.max(pc.binary_length(column)).as_py() or 0 if is_text(column) else 0


def is_text(column: pa.Array) -> bool:
    return str(column.type) in ("string", "large_string", "string_view")


def without_bad_text(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Return (the rows, with null for values with text that is not UTF-8; number of each such row -> reason).

    Pyarrow itself refuses a row group with such text in a column of categories.
    """
    if is_valid(batch):
        return batch, {}
    columns, bad = batch.columns, {}
    for number, column in enumerate(columns):
        if is_valid(column):
            continue
        if is_text(column):
            binary = column.cast(pa.large_binary())
            column = binary.view(pa.large_string())  # noqa: PLW2901 (for string views, which have no take)
            reasons = [undecoded(value or b"") for value in binary.to_pylist()]
        else:  # a list or an object
            reasons = ["" if is_valid(column.take([i])) else "text that is not UTF-8" for i in range(len(column))]
        rows = [None if reason else i for i, reason in enumerate(reasons)]
        columns[number] = column.take(pa.array(rows, pa.int64()))
        name = batch.schema.names[number]
        bad = {i: f"{reason}, in column {name!r}" for i, reason in enumerate(reasons) if reason} | bad
    valid = pa.RecordBatch.from_arrays(columns, batch.schema.names)
    valid.validate(full=True)
    return valid, bad


def is_valid(column: pa.Array | pa.RecordBatch) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
