"""The job's input, cut into splits: a file, or some row groups of a Parquet file, that one worker reads alone."""

import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from bench.files import digest
from bench.label.rows import OutputSpec
from bench.model.model import Model
from bench.tables.readers import Table, read_all, reading
from bench.tables.storage import CONCURRENT_FILES, FINGERPRINT_BYTES, Location


@dataclass(frozen=True)
class InputPart:
    """Rows of the input that become one file of the output."""

    file: int  # number of the input file
    first: int  # number of the first row in that file
    table: pa.Table  # the columns of OutputSpec.schema, and BAD
    last: bool  # True for the last part of a split

    @property
    def name(self) -> str:
        return part_name(self.file, self.first)

    def __str__(self) -> str:
        return f"{self.name}, rows {self.first:,} to {self.first + len(self.table) - 1:,} of file {self.file + 1}"


def part_name(file: int, first: int) -> str:
    return f"part-{file:06}-{first:010}.parquet"


@dataclass(frozen=True)
class InputSplit:
    """Consecutive rows of one input file."""

    file: int  # number of the input file
    table: Table
    first: int = 0  # number of the first row
    rows: int | None = None  # at most; None for all that follow
    is_exact: bool = False  # the file has exactly these `rows`

    def read(self, output: OutputSpec, done: int = 0, existing: Collection[str] = ()) -> Iterator[InputPart]:
        """Yield the parts after the first `done` rows, except for `existing` ones. A split has at least one part."""
        first, end = self.first + done, math.inf if self.rows is None else self.first + self.rows
        waiting, position = output.schema.empty_table(), first
        size = output.rows_per_file
        try:
            for chunk in read_all([self.table], output.schema, first, keep_bad_rows=True):
                rows = chunk.slice(0, min(end - position, len(chunk)))
                waiting, position = pa.concat_tables([waiting, rows], promote_options="default"), position + len(rows)
                while len(waiting) > size:
                    if part_name(self.file, first) not in existing:
                        yield InputPart(self.file, first, waiting.slice(0, size).combine_chunks(), last=False)
                    first, waiting = first + size, waiting.slice(size)
                if position >= end:
                    break
        except Exception:
            self.table.check_unchanged()  # a file that is replaced while it is read fails in many ways
            raise
        self.table.check_unchanged()
        if part_name(self.file, first) not in existing:
            yield InputPart(self.file, first, waiting.combine_chunks(), last=True)

    def estimate_rows(self) -> int:
        if self.is_exact:
            return self.rows
        remaining = self.table.estimate_rows() - self.first
        return remaining if self.rows is None else min(self.rows, remaining)


@dataclass(frozen=True)
class LabelJob:
    """What is labelled, with which model, and where the labels go."""

    model: Model
    source: Location
    folder: Location  # of the output
    splits: list[InputSplit]  # of the whole input
    output: OutputSpec
    options: dict[str, object]  # those that determine the output -> their values
    shard: tuple[int, int] | None = None  # (3, 16) for the third of sixteen runs
    overwrite: bool = False
    strict: bool = False  # stop at the first bad row
    no_check: bool = False  # continue if rows are wrong

    @property
    def own_splits(self) -> list[InputSplit]:
        """Return the splits of this shard, or all."""
        number, count = self.shard or (1, 1)
        return self.splits[number - 1 :: count]

    def own_file(self, name: str) -> Location:
        """Return a file in the output folder; a shard has its own, such as `_receipt-3-of-16.json`."""
        stem, dot, extension = name.partition(".")
        if self.shard:
            stem += "-{}-of-{}".format(*self.shard)
        return self.folder / f"{stem}{dot}{extension}"

    @property
    def tables(self) -> list[Table]:
        return tables_of(self.splits)

    def check_input(self) -> None:
        """Raise RunError if a file of this shard has changed since it was opened."""
        self.source.forget_listings()
        with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
            list(pool.map(lambda table: table.check_unchanged(refresh=False), tables_of(self.own_splits)))

    def estimate_rows(self) -> int:
        return sum(split.estimate_rows() for split in self.splits)


def tables_of(splits: list[InputSplit]) -> list[Table]:
    return list({split.file: split.table for split in splits}.values())


def cut_splits(tables: list[Table], output: OutputSpec) -> list[InputSplit]:
    """Cut the input into splits, in order: as many row groups as fill a part, or a whole file."""
    splits, left = [], math.inf if output.limit is None else output.limit
    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        row_groups = list(pool.map(Table.row_groups, tables))
    for number, (table, groups) in enumerate(zip(tables, row_groups, strict=True)):
        if left <= 0:
            break
        if groups is None:
            splits.append(InputSplit(number, table, 0, None if left == math.inf else left))
            if left < math.inf and number + 1 < len(tables):
                left -= count_rows(table, output, left)
            continue
        first = rows = 0
        for i, size in enumerate(groups or [0]):
            rows += size
            if rows >= min(output.rows_per_file, left) or i + 1 >= len(groups):
                splits.append(InputSplit(number, table, first, min(rows, left), is_exact=True))
                first, left, rows = first + rows, left - rows, 0
                if left <= 0:
                    break
    return splits


def count_rows(table: Table, output: OutputSpec, most: int) -> int:
    """Count the rows of a file, up to `most`."""
    count = 0
    schema = pa.schema([output.schema.field(output.text_columns[0])])
    for chunk in read_all([table], schema, keep_bad_rows=True):
        count += len(chunk)
        if count >= most:
            break
    return min(count, most)


def digest_input(tables: list[Table]) -> str:
    """Return 16 hexadecimal digits for the files' names, sizes, first and last bytes, and folder columns.

    If there are other bytes between, the time of the last modification counts, too.
    """

    def fingerprint(table: Table) -> list[bytes]:
        with reading(table.file):
            size, modified = table.stamp
            time = str(modified).encode() if modified and size > 2 * FINGERPRINT_BYTES else b""
            names = [os.fsencode(table.file.name), os.fsencode(str(table.folder_columns)), time]
            return [*names, *table.file.fingerprint()]

    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        return digest(part for parts in pool.map(fingerprint, tables) for part in parts)
