"""The output folder: parts of labelled rows, what each says of itself, and its bad rows."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bench.label.rows import BAD_ROWS, Counts, OutputSpec
from bench.label.splits import InputPart, InputSplit, part_name
from bench.tables.storage import CONCURRENT_FILES, Location, saving
from utils import RunError, UserError, first_line

PART = re.compile(r"part-[\d-]+\.parquet")
COUNTS, LAST, JOB = b"classify_texts", b"last of its split", b"job"  # keys in a part's metadata
BAD_FILE = "_bad_rows.jsonl"
RECEIPT_FILE = "_receipt.json"
END_BYTES = 2**16  # of a Parquet file, in which its metadata mostly fits


@dataclass(frozen=True)
class Footer:
    """What a part says of itself: its rows, its Counts, whether it ends its split, and the digest of its job.

    bad: what is known of its bad rows: `row`, `reason`, and perhaps `file` and `line`.
    """

    rows: int
    counts: Counts
    last: bool
    job: str
    bad: list[dict]


def part_files(folder: Location) -> list[Location]:
    return [file for file in folder.files() if PART.fullmatch(file.name)]


def read_footer(part: Location) -> Footer | None:
    """Reads what a part says of itself; None for one that is damaged, or that no run of this version made.

    Raises OSError where it can't be read.
    """
    with part.open_seekable() as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - END_BYTES, 0))
        length = int.from_bytes(file.read()[-8:-4], "little")  # of the metadata, which ends there
        file.seek(max(size - length - END_BYTES, 0))
        end = file.read()
    try:
        parquet = pq.ParquetFile(pa.BufferReader(end))
        metadata = parquet.schema_arrow.metadata or {}
        found = {key: json.loads(metadata.get(key, b"null")) for key in (COUNTS, LAST, JOB, BAD_ROWS)}
        counts = Counts(**found[COUNTS])
        return Footer(parquet.metadata.num_rows, counts, bool(found[LAST]), str(found[JOB]), found[BAD_ROWS] or [])
    except (OSError, pa.ArrowException, ValueError, TypeError):
        return None


def read_footers(folder: Location, job: str, splits: list[InputSplit]) -> dict[str, Footer]:
    """Reads what the parts of the splits' files say of themselves, by name; damaged ones are left out.

    Raises UserError for parts of another job than the one of this digest: two runs that began together in a bucket,
    which has no locks, may have planned otherwise. Raises RunError where they can't be read.
    """
    try:
        starts = tuple({part_name(split.file, 0).rpartition("-")[0] for split in splits})
        parts = [part for part in part_files(folder) if part.name.startswith(starts)]
        with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
            footers = list(pool.map(read_footer, parts))
    except OSError as error:
        raise RunError(f"{folder} can't be read: {first_line(error)}") from error
    for part, footer in zip(parts, footers, strict=True):
        if footer and footer.job != job:
            raise UserError(f"{part} was made otherwise, by a run with other options: name another folder")
    return {part.name: footer for part, footer in zip(parts, footers, strict=True) if footer}


def whole_parts(footers: dict[str, Footer], output: OutputSpec) -> dict[str, Footer]:
    """Returns the parts that need not be made again: those of as many rows as asked for, and ends of splits."""
    return {name: one for name, one in footers.items() if one.rows == output.rows or one.last}


def parts_there(split: InputSplit, footers: dict[str, Footer]) -> tuple[list[str], int, bool]:
    """Returns (the parts of a split from its first on without a gap, their rows, whether these are all)."""
    names, done = [], 0
    while footer := footers.get(name := part_name(split.file, split.first + done)):
        names.append(name)
        done += footer.rows
        if footer.last or not footer.rows:
            return names, done, footer.last
    return names, done, False


def parts_of(splits: list[InputSplit], footers: dict[str, Footer]) -> dict[str, Footer]:
    """Returns the parts of some splits alone, as far as each is there without a gap."""
    return {name: footers[name] for split in splits for name in parts_there(split, footers)[0]}


def check_complete(folder: Location, splits: list[InputSplit], footers: dict[str, Footer]) -> None:
    """Raises UserError where a part of the splits is missing, or not whole."""
    for split in splits:
        _, done, complete = parts_there(split, footers)
        if not complete:
            missing = folder / part_name(split.file, split.first + done)
            raise UserError(f"{missing} is not there, or not whole: the same command, without --shard, makes it")


def check_nothing_else(folder: Location, own: dict[str, Footer]) -> None:
    """Raises UserError where a folder holds other parts than the run's own, or these have no row at all."""
    if others := [file for file in part_files(folder) if file.name not in own]:
        raise UserError(f"{others[0]} is behind the last row of its file: it is not of this run")
    if not sum(footer.rows for footer in own.values()):
        raise UserError("the input has no rows")


def write_part(folder: Location, part: InputPart, labelled: pa.Table, counts: Counts, job: str) -> None:
    """Writes a part; in the file's metadata are its counts, its job, and whether it is the last of its split."""
    metadata = {COUNTS: json.dumps(asdict(counts)), LAST: json.dumps(part.last), JOB: json.dumps(job)}
    metadata |= labelled.schema.metadata or {}
    with saving(folder), (folder / part.name).new_file() as file:
        write_rows(labelled.replace_schema_metadata(metadata), file)


def write_rows(table: pa.Table, file: BinaryIO) -> None:
    """Writes rows as Parquet, with zstandard and without dictionaries of floats: scores hardly ever occur twice.

    100,000 rows of 28 labels take 10 MB, against 17 MB as pyarrow would write them.
    """
    repeated = [column.name for column in table.schema if not pa.types.is_floating(column.type)]
    pq.write_table(table, file, use_dictionary=repeated or False, compression="zstd")


def with_shard(name: str, shard: str) -> str:
    """Returns the name of a shard's own file: `_receipt-3-of-16.json`."""
    stem, dot, suffix = name.partition(".")
    return stem + shard + dot + suffix


def first_bad(bad: dict[str, list[dict]]) -> str:
    """Says where the first bad row of some parts is, and why it is bad; nothing without one.

    `bad`: name of a part -> what is known of its bad rows, see Footer.
    """
    for name in sorted(bad):
        for one in bad[name][:1]:
            place = f"{one['file']}, line {one['line']}" if "file" in one else f"{name}, row {one['row']}"
            return f"{place}: {one['reason']}"
    return ""


def write_bad_rows(folder: Location, footers: dict[str, Footer], shard: str = "") -> None:
    """Writes BAD_FILE: for each bad row its part, its row there, the file and the line if known, and the reason.

    Without a bad row there is no such file.
    """
    lines = [json.dumps({"part": name} | place) + "\n" for name in sorted(footers) for place in footers[name].bad]
    place = folder / with_shard(BAD_FILE, shard)
    if not lines:
        place.delete()
        return
    with saving(place), place.new_file() as file:
        file.write("".join(lines).encode())
