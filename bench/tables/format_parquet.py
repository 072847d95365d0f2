"""Parquet files."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bench.tables.blocks import N_ROWS, Rows
from bench.tables.storage import Location


def read_schema(file: Location) -> pa.Schema:
    with open_parquet(file) as parquet:
        return parquet.schema_arrow.remove_metadata()


@contextlib.contextmanager
def open_parquet(file: Location) -> Iterator[pq.ParquetFile]:
    """Opens a file; the old dates of Hive, Impala and Spark (int96) get microseconds: nanoseconds end in 2262."""
    with file.open_anywhere() as opened:
        yield pq.ParquetFile(opened, coerce_int96_timestamp_unit="us", pre_buffer=not file.local)


def read_rows(file: Location, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    """Yields the rows, without row groups that lie among the first `skip` rows.

    A row with a text that is no UTF-8 is bad, and that text is null; its line is its number in the file, from 1.
    """
    before = passed_over = 0
    with open_parquet(file) as parquet:
        for group, rows in enumerate(sizes_of_groups(parquet)):
            if before + rows <= skip:
                before, passed_over = before + rows, passed_over + rows
                continue
            for batch in parquet.iter_batches(N_ROWS, row_groups=[group], columns=schema.names):
                read, bad = without_bad_text(batch)
                lines = {i: (before + i + 1, why) for i, why in bad.items()}
                yield Rows(pa.Table.from_batches([read]).select(schema.names), lines, passed_over=passed_over)
                before, passed_over = before + len(batch), 0
    yield Rows(schema.empty_table(), passed_over=passed_over)


def sizes_of_groups(parquet: pq.ParquetFile) -> list[int]:
    return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def without_bad_text(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Returns (rows with null for each text that is no UTF-8, number of such a row -> why it is bad).

    Raises ArrowInvalid for such a text within a list, an object or a category.
    """
    try:
        batch.validate(full=True)
        return batch, {}
    except pa.ArrowInvalid:
        columns, bad = batch.columns, {}
    for place, column in enumerate(columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            binary = pa.binary() if pa.types.is_string(column.type) else pa.large_binary()
            values = column.view(binary).to_pylist()
            for i, value in enumerate(values):
                try:
                    values[i] = value if value is None else value.decode()
                except UnicodeDecodeError as error:
                    values[i] = None
                    bad[i] = f"{batch.schema.names[place]} has the byte 0x{value[error.start]:02x}, which is no UTF-8"
            columns[place] = pa.array(values, column.type)
    read = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    read.validate(full=True)
    return read, bad


def estimate_rows(file: Location) -> int:
    with open_parquet(file) as parquet:
        return parquet.metadata.num_rows


def row_groups(file: Location) -> list[int]:
    """Returns how many rows there are in each of the pieces that can be read by themselves."""
    with open_parquet(file) as parquet:
        return sizes_of_groups(parquet)
