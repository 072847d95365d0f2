"""Stretches: what a worker reads by itself, a file or some row groups of a Parquet file, and cuts into parts."""

import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from bench.files import digest
from bench.label.rows import OutputSpec
from bench.tables.readers import Table, read_all, reading
from bench.tables.storage import CONCURRENT_FILES


@dataclass(frozen=True)
class InputPart:
    """The rows of a part: those of file number `file` from number `first` on; whether it is the `last` of its split.

    table: the columns of OutputSpec.schema, and BAD.
    """

    file: int
    first: int
    table: pa.Table
    last: bool

    @property
    def name(self) -> str:
        return part_name(self.file, self.first)

    @property
    def words(self) -> str:
        return f"{self.name}, rows {self.first:,} to {self.first + len(self.table) - 1:,} of file {self.file + 1}"


def part_name(file: int, first: int) -> str:
    return f"part-{file:06}-{first:010}.parquet"


@dataclass(frozen=True)
class InputSplit:
    """Rows of the table of file number `file`, from number `first` on: at most so many `rows`, or all that are left.

    counted: whether there are exactly so many.
    """

    file: int
    table: Table
    first: int = 0
    rows: int | None = None
    counted: bool = False

    def read(self, output: OutputSpec, done: int = 0, there: Collection[str] = ()) -> Iterator[InputPart]:
        """Yields the parts behind the first `done` rows, but for those that are `there`. A split has at least one.

        Raises UserError as read_all.
        """
        first, end = self.first + done, math.inf if self.rows is None else self.first + self.rows
        waiting, read = output.schema.empty_table(), first
        for rows in read_all([self.table], output.schema, first, set_aside=True):
            found = rows.slice(0, min(end - read, len(rows)))
            waiting, read = pa.concat_tables([waiting, found], promote_options="default"), read + len(found)
            while len(waiting) > output.rows:
                yield from self.part(first, waiting.slice(0, output.rows), False, there)
                first, waiting = first + output.rows, waiting.slice(output.rows)
            if read >= end:
                break
        yield from self.part(first, waiting, True, there)

    def part(self, first: int, table: pa.Table, last: bool, there: Collection[str]) -> Iterator[InputPart]:
        if part_name(self.file, first) not in there:
            yield InputPart(self.file, first, table.combine_chunks(), last)

    def estimate_rows(self) -> int:
        """Returns how many rows there are, exactly or about."""
        if self.counted:
            return self.rows
        left = self.table.estimate_rows() - self.first
        return left if self.rows is None else min(self.rows, left)


def cut_splits(tables: list[Table], output: OutputSpec) -> list[InputSplit]:
    """Cuts the input into splits, in its order: as many row groups as a part has rows, or a whole file.

    With a limit of rows, files are counted until it is reached, but for the last.
    """
    splits, left = [], math.inf if output.limit is None else output.limit
    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        groups_of_all = list(pool.map(Table.row_groups, tables))
    for number, (table, groups) in enumerate(zip(tables, groups_of_all, strict=True)):
        if left <= 0:
            break
        if groups is None:
            rows = None if left == math.inf else left
            splits.append(InputSplit(number, table, 0, rows))
            if left < math.inf and number + 1 < len(tables):
                left -= count_rows(table, output, left)
            continue
        first = rows = 0
        for place, size in enumerate(groups or [0]):
            rows += size
            if rows >= min(output.rows, left) or place + 1 >= len(groups):
                splits.append(InputSplit(number, table, first, min(rows, left), counted=True))
                first, left, rows = first + rows, left - rows, 0
                if left <= 0:
                    break
    return splits


def count_rows(table: Table, output: OutputSpec, most: int) -> int:
    """Counts the rows of a file, as far as `most`."""
    counted = 0
    for rows in read_all([table], pa.schema([output.schema.field(output.text_column)]), set_aside=True):
        counted += len(rows)
        if counted >= most:
            break
    return min(counted, most)


def digest_input(splits: list[InputSplit]) -> str:
    """Returns 16 hexadecimal digits for the files' names, sizes, beginnings and ends, and what their folders say."""
    tables = list({split.file: split.table for split in splits}.values())

    def ends(table: Table) -> list[bytes]:
        with reading(table.file):
            return [os.fsencode(table.file.name), os.fsencode(str(table.folder_columns)), *table.file.fingerprint()]

    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        return digest(part for parts in pool.map(ends, tables) for part in parts)
