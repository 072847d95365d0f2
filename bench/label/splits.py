"""The job's input, cut into splits: a file, or some row groups of a Parquet file, that one worker reads alone."""

import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.files import digest
from bench.label.rows import Counts, OutputSpec
from bench.model.model import Model
from bench.naming import slug
from bench.tables.readers import Table, read_all, reading
from bench.tables.storage import CONCURRENT_FILES, FINGERPRINT_BYTES, Location
from utils import UserError

PART_BYTES = 2**27  # at most in a part: several parts are in memory at the same time
TEXT_COPIES = 4  # of the texts to label, which are also Python strings, and pickled for the workers
LONGEST_NAME = 50  # characters of a file's path in the names of its parts: at most 200 bytes


@dataclass(frozen=True)
class InputPart:
    """Rows of the input that become one file of the output."""

    file: str  # the input file in the part's name, see file_key
    first: int  # number of the first row in that file
    table: pa.Table  # the columns of OutputSpec.schema, and BAD
    last: bool  # True for the last part of a split
    number: int = 0  # of the part in its split
    job: str = ""  # see InputSplit

    @property
    def name(self) -> str:
        return part_name(self.file, self.first)

    def __str__(self) -> str:
        return f"{self.name}, rows {self.first:,} to {self.first + len(self.table) - 1:,}"


@dataclass(frozen=True)
class Footer:
    """The metadata of a part."""

    first: int  # number of the first row in the input file
    rows: int
    counts: Counts
    last: bool  # True for the last part of a split
    number: int  # of the part in its split
    job: str  # see InputSplit
    bad: list[dict]  # its bad rows: `row`, `reason`, and perhaps `file` and `line`

    @property
    def end(self) -> int:
        return self.first + self.rows


def file_key(path: str) -> str:
    """Return the name of an input file in the names of its parts, given its path below the input.

    It does not depend on other files. The digest tells apart paths that look alike, or differ only in case.
    """
    name = slug(path)
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME // 2] + name[-LONGEST_NAME // 2 :]
    return f"{name}-{digest([os.fsencode(path)])[:8]}"


def path_below(file: Location, source: Location) -> str:
    return "/".join(file.parts_below(source)) or file.name


def part_name(file: str, first: int) -> str:
    return f"part-{file}-{first:010}.parquet"


@dataclass(frozen=True)
class InputSplit:
    """Consecutive rows of one input file."""

    file: str  # see file_key
    table: Table
    first: int = 0  # number of the first row
    rows: int | None = None  # at most; None for all that follow
    is_exact: bool = False  # the file has exactly these `rows`
    share: tuple[int, int] = (0, 1)  # (2, 16) for only the parts 2, 18, ...: a shard's
    job: str = ""  # digest of the job's record and of this file

    def read(self, output: OutputSpec, existing: Collection[str] = ()) -> Iterator[InputPart]:
        """Yield the parts of this share, except for `existing` ones. A whole split has at least one part."""
        for number, (first, rows, last) in enumerate(self.cut(output)):
            if number % self.share[1] == self.share[0] and part_name(self.file, first) not in existing:
                yield InputPart(self.file, first, rows.combine_chunks(), last, number, self.job)

    def cut(self, output: OutputSpec) -> Iterator[tuple[int, pa.Table, bool]]:
        """Yield (number of the first row, the rows, whether they are the last ones) of each part.

        All runs cut a split at the same rows, whichever parts they need, since they read it from its beginning.
        """
        first = self.first
        waiting, sizes = output.schema.empty_table(), np.empty(0, np.int64)
        try:
            for chunk in read_all([self.table], output.schema, first, keep_bad_rows=True):
                rows = chunk.slice(0, min(self.end - first - len(waiting), len(chunk)))
                waiting = pa.concat_tables([waiting, rows], promote_options="default")
                sizes = np.concatenate([sizes, row_bytes(rows, output.text_columns)])
                while (count := rows_that_fit(sizes[: output.rows_per_file])) < len(waiting):
                    yield first, waiting.slice(0, count), False
                    first, waiting, sizes = first + count, waiting.slice(count), sizes[count:]
                if first + len(waiting) >= self.end:
                    break
        except Exception:
            self.table.check_unchanged()  # a file that is replaced while it is read fails in many ways
            raise
        self.table.check_unchanged()
        yield first, waiting, True

    def has(self, part: Footer) -> bool:
        """True for a part of this share."""
        is_inside = part.job == self.job and self.first <= part.first < self.end
        return is_inside and part.number % self.share[1] == self.share[0]

    @property
    def end(self) -> float:
        return math.inf if self.rows is None else self.first + self.rows

    def estimate_rows(self) -> int:
        end = self.end if self.is_exact else min(self.end, self.table.estimate_rows())
        return (end - self.first) // self.share[1]


def row_bytes(table: pa.Table, text_columns: list[str]) -> np.ndarray:
    """Return about how many bytes each row takes in memory, int64 [rows]."""
    total = np.full(len(table), 8 * table.num_columns)
    for name, column in zip(table.schema.names, table.columns, strict=True):
        kind, sizes = str(column.type), pa.nulls(len(column), pa.int64())
        if "list" in kind:
            sizes = pc.multiply(pc.list_value_length(column), 8)
        elif kind in ("string", "large_string", "binary", "large_binary"):
            sizes = pc.binary_length(column)
        total += pc.fill_null(sizes, 0).to_numpy() * (TEXT_COPIES if name in text_columns else 1)
    return total


def rows_that_fit(sizes: np.ndarray) -> int:
    """Return how many of these rows, with `sizes` in bytes, fit into a part; at least one."""
    return max(1, int(np.searchsorted(sizes.cumsum(), PART_BYTES, side="right")))


@dataclass(frozen=True)
class LabelJob:
    """What is labelled, with which model, and where the labels go."""

    model: Model
    source: Location
    folder: Location  # of the output
    splits: list[InputSplit]  # of the whole input, in the order of the parts' names
    output: OutputSpec
    options: dict[str, object]  # those that determine the output -> their values
    shard: tuple[int, int] | None = None  # (3, 16) for the third of sixteen runs
    overwrite: bool = False
    strict: bool = False  # stop at the first bad row
    no_check: bool = False  # continue if rows are wrong
    footers: dict[str, Footer] = field(default_factory=dict)  # of the parts that this run has read or written, by name

    @property
    def own_splits(self) -> list[InputSplit]:
        """Return the splits of this shard, or all. Shards share the parts of each split if there are too few splits."""
        number, count = self.shard or (1, 1)
        if len(self.splits) >= count:
            return self.splits[number - 1 :: count]
        return [replace(split, share=((number - 1 - i) % count, count)) for i, split in enumerate(self.splits)]

    def own_file(self, name: str) -> Location:
        """Return a file in the output folder; a shard has its own, such as `_receipt-3-of-16.json`."""
        stem, dot, extension = name.partition(".")
        if self.shard:
            stem += "-{}-of-{}".format(*self.shard)
        return self.folder / f"{stem}{dot}{extension}"

    def check_input(self) -> None:
        """Raise RunError if a file of this shard has changed since it was opened."""
        self.source.forget_listings()
        with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
            list(pool.map(lambda table: table.check_unchanged(refresh=False), tables_of(self.own_splits)))

    def estimate_rows(self) -> int:
        """Estimate the rows of this shard."""
        return sum(split.estimate_rows() for split in self.own_splits)


def tables_of(splits: list[InputSplit]) -> list[Table]:
    return list({split.file: split.table for split in splits}.values())


def cut_splits(tables: list[Table], output: OutputSpec, source: Location) -> list[InputSplit]:
    """Cut the input into splits, in the order of their parts' names: some row groups that fill a part, or a file."""
    named = {file_key(path_below(table.file, source)): table for table in tables}
    if len(named) < len(tables):
        raise UserError(f"{source} has two files whose parts would have the same names; rename one of them")
    splits, left = [], math.inf if output.limit is None else output.limit
    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        row_groups = dict(zip(named, pool.map(Table.row_groups, named.values()), strict=True))
    for file, table in sorted(named.items()):
        if left <= 0:
            break
        groups = row_groups[file]
        if groups is None:
            splits.append(InputSplit(file, table, 0, None if left == math.inf else left))
            if left < math.inf:
                left -= sum(len(rows) for _, rows, _ in splits[-1].cut(output))
            continue
        first = rows = 0
        for i, size in enumerate(groups or [0]):
            rows += size
            if rows >= min(output.rows_per_file, left) or i + 1 >= len(groups):
                splits.append(InputSplit(file, table, first, min(rows, left), is_exact=True))
                first, left, rows = first + rows, left - rows, 0
                if left <= 0:
                    break
    return splits


def digest_input(job: LabelJob) -> dict[str, str]:
    """Return path below the input -> 16 hexadecimal digits for the file's size, first and last bytes, folder columns.

    If there are other bytes between, the time of the last modification counts, too.
    """

    def fingerprint(table: Table) -> str:
        with reading(table.file):
            size, modified = table.stamp
            time = str(modified).encode() if modified and size > 2 * FINGERPRINT_BYTES else b""
            return digest([os.fsencode(str(table.folder_columns)), time, *table.file.fingerprint()])

    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        tables = tables_of(job.splits)
        paths = (path_below(table.file, job.source) for table in tables)
        return dict(zip(paths, pool.map(fingerprint, tables), strict=True))
