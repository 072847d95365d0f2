"""Parquet files."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.inputs.blocks import N_ROWS, Rows


def read_schema(path: Path) -> pa.Schema:
    with open_parquet(path) as parquet:
        return parquet.schema_arrow.remove_metadata()


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a file; the old dates of Hive, Impala and Spark (int96) get microseconds: nanoseconds end in 2262."""
    return pq.ParquetFile(path, coerce_int96_timestamp_unit="us")


def read_rows(path: Path, schema: pa.Schema, skip: int) -> Iterator[Rows]:
    """Yields the rows; row groups among the first `skip` rows are not read, they have nulls.

    A row with a text that is no UTF-8 is bad, and that text is null; its line is its number in the file, from 1.
    """
    before = 0
    with open_parquet(path) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if rows <= skip:
                yield Rows(pa.table([pa.nulls(rows, kind) for kind in schema.types], schema=schema))
                skip, before = skip - rows, before + rows
                continue
            skip = 0
            for batch in parquet.iter_batches(N_ROWS, row_groups=[group], columns=schema.names):
                read, bad = without_bad_text(batch)
                lines = {i: (before + i + 1, why) for i, why in bad.items()}
                yield Rows(pa.Table.from_batches([read]).select(schema.names), lines)
                before += len(batch)


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


def estimate_rows(path: Path) -> int:
    return pq.read_metadata(path).num_rows
