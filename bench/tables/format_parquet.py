"""Parquet files."""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, groupby

import pyarrow as pa
import pyarrow.parquet as pq

from bench.tables.blocks import CHUNK_BYTES, CHUNK_ROWS, Rows
from bench.tables.storage import Location


@contextlib.contextmanager
def open_parquet(file: Location) -> Iterator[pq.ParquetFile]:
    """Open a file. Old timestamps of Hive, Impala and Spark (int96) become microseconds: nanoseconds end in 2262."""
    with file.open_seekable() as opened:
        yield pq.ParquetFile(opened, coerce_int96_timestamp_unit="us", pre_buffer=not file.local)


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
        ends = list(accumulate(group.num_rows for group in groups))
        sizes = list(accumulate(group.total_byte_size for group in groups))
        rows = min(CHUNK_ROWS, 1 + CHUNK_BYTES * sum(ends[-1:]) // (1 + sum(sizes[-1:])))  # fewer if they are long
        first = bisect_right(ends, skip)
        position = skipped = ends[first - 1] if first else 0
        chunks = groupby(range(first, len(ends)), lambda i: (ends[i] // CHUNK_ROWS, sizes[i] // CHUNK_BYTES))
        for numbers in (list(numbers) for _, numbers in chunks):  # each of small row groups takes a while
            batches = parquet.iter_batches(rows, row_groups=numbers, columns=schema.names)
            if len(numbers) > 1 and (joined := list(batches)):
                batches = pa.Table.from_batches(joined).combine_chunks().to_batches()
            for batch in batches:
                valid, reasons = without_bad_text(batch)
                bad = {i: (position + i + 1, reason) for i, reason in reasons.items()}
                yield Rows(pa.Table.from_batches([valid]).select(schema.names), bad, skipped=skipped)
                position, skipped = position + len(batch), 0
    yield Rows(schema.empty_table(), skipped=skipped)


def without_bad_text(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Return (the rows, with null for text that is not UTF-8; number of each such row -> reason).

    Raises ArrowInvalid for such text within a list, an object or a category.
    """
    try:
        batch.validate(full=True)
        return batch, {}
    except pa.ArrowInvalid:
        columns, bad = batch.columns, {}
    for number, column in enumerate(columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = column.cast(pa.large_binary()).to_pylist()
            for i, value in enumerate(values):
                try:
                    values[i] = value if value is None else value.decode()
                except UnicodeDecodeError as error:
                    values[i] = None
                    byte = f"0x{value[error.start]:02x}"
                    bad[i] = f"column {batch.schema.names[number]!r} has byte {byte}, which is not valid UTF-8"
            columns[number] = pa.array(values, column.type)
    valid = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    valid.validate(full=True)
    return valid, bad
