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
    """Yields the rows; row groups among the first `skip` rows are not read, they have nulls."""
    with open_parquet(path) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if rows <= skip:
                yield Rows(pa.table([pa.nulls(rows, kind) for kind in schema.types], schema=schema))
                skip -= rows
                continue
            skip = 0
            for batch in parquet.iter_batches(N_ROWS, row_groups=[group], columns=schema.names):
                batch.validate(full=True)  # whether its text is UTF-8
                yield Rows(pa.Table.from_batches([batch]).select(schema.names))


def estimate_rows(path: Path) -> int:
    return pq.read_metadata(path).num_rows
