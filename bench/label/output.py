"""The output folder: parts of labelled rows, part-0000000.parquet and on, and the job that they belong to."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bench.files import check_writable, new_file, read_json
from bench.label.rows import BAD_ROWS, Counts, OutputSpec
from utils import RunError, UserError, say

PART = re.compile(r"part-\d{5,}\.parquet")
COUNTS = b"classify_texts"  # the key of a part's counts in its metadata
BAD_FILE = "_bad_rows.jsonl"
RECEIPT_FILE = "_receipt.json"
JOB_FILE = "_job.json"  # what the parts are made of; pandas and Spark pass over names with an underscore
LOCK_FILE = "_lock"
TEMPORARY = ".tmp"


def part_name(number: int) -> str:
    return f"part-{number:07}.parquet"


def part_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("part-*") if PART.fullmatch(path.name))


def is_whole(part: Path, rows: int) -> bool:
    """Says whether a part is there, can be read, and has so many rows."""
    try:
        return part.is_file() and pq.read_metadata(part).num_rows == rows
    except (OSError, ValueError):
        return False


def rows_of(part: Path) -> int:
    return pq.read_metadata(part).num_rows


def check_part(folder: Path, number: int, rows: int, output: OutputSpec) -> None:
    """Raises UserError if a part is not there, has not so many rows, or lacks the columns that are added."""
    part = folder / part_name(number)
    if not is_whole(part, rows):
        raise UserError(f"{part} is not there, or has not the {rows:,} rows of the input: is it of this input?")
    if missing := [name for name in output.added if name not in pq.read_schema(part).names]:
        raise UserError(f"{part} has no column {missing[0]!r}: see --top-label and --prefix")


def count_rows(folder: Path) -> int:
    """Counts the rows of all parts. Raises UserError where one is left behind the last row of the input, or none."""
    parts = part_files(folder)
    if not parts:
        raise UserError("the input has no rows")
    if parts[-1].name != part_name(len(parts) - 1):
        raise UserError(f"{parts[-1]} is behind the last row of the input: it is not of this run")
    return sum(pq.read_metadata(part).num_rows for part in parts)


def write_part(folder: Path, number: int, table: pa.Table, counts: Counts) -> None:
    """Writes a part, with its counts in the file's metadata."""
    metadata = (table.schema.metadata or {}) | {COUNTS: json.dumps(asdict(counts)).encode()}
    with new_file(folder / part_name(number)) as file:
        write_rows(table.replace_schema_metadata(metadata), file)


def write_rows(table: pa.Table, file: BinaryIO) -> None:
    """Writes rows as Parquet, with zstandard and without dictionaries of floats: scores hardly ever occur twice.

    100,000 rows of 28 labels take 10 MB, against 17 MB as pyarrow would write them.
    """
    repeated = [column.name for column in table.schema if not pa.types.is_floating(column.type)]
    pq.write_table(table, file, use_dictionary=repeated or False, compression="zstd")


def read_counts(part: Path) -> Counts | None:
    """Returns what was counted of a part; None for one of a version of ours that kept no counts."""
    found = read_metadata(part, COUNTS)
    return Counts(**found) if found else None


def read_bad_rows(part: Path) -> list[dict]:
    """Returns what is known of the bad rows of a part: `row`, `reason`, and perhaps `file` and `line`."""
    return read_metadata(part, BAD_ROWS) or []


def read_metadata(part: Path, key: bytes) -> list | dict | None:
    """Returns what is kept under a key in the metadata of a part; None without it."""
    found = (pq.read_schema(part).metadata or {}).get(key)
    return json.loads(found) if found else None


def write_bad_rows(folder: Path) -> None:
    """Writes BAD_FILE: for each bad row its part, its row there, the file and the line if known, and the reason.

    Without a bad row there is no such file.
    """
    with new_file(folder / BAD_FILE) as file:
        for part in part_files(folder):
            for place in read_bad_rows(part):
                file.write(json.dumps({"part": part.name} | place).encode() + b"\n")
    if not (folder / BAD_FILE).stat().st_size:
        (folder / BAD_FILE).unlink()


def stop_at_bad_row(folder: Path, why: str) -> None:
    """Raises RunError with the first bad row of the parts, of which there is one, and why the job stops."""
    write_bad_rows(folder)
    with (folder / BAD_FILE).open() as file:
        first = json.loads(next(file))
    place = f"{first['file']}, line {first['line']}" if "file" in first else f"{first['part']}, row {first['row']}"
    raise RunError(f"{place}: {first['reason']} ({why}); {BAD_FILE} names all")


def read_job(folder: Path) -> dict:
    """Returns the job of the parts in a folder; nothing where it is not known."""
    try:
        return read_json(folder / JOB_FILE)
    except UserError:
        return {}


def prepare_output(folder: Path, job: dict, overwrite: bool) -> None:
    """Checks the output folder and clears it of what is half-made, to `overwrite` it of all parts.

    Raises UserError if it holds other things, or parts of another job.
    """
    before, done, temporary = read_job(folder), part_files(folder), [*folder.glob(f".*{TEMPORARY}")]
    ours = {JOB_FILE, LOCK_FILE, RECEIPT_FILE, BAD_FILE, *(path.name for path in (*done, *temporary))}
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in ours):
        raise UserError(f"{folder} holds {foreign[0]}, which is not a part: name another folder")
    if done and not (folder / JOB_FILE).is_file():
        raise UserError(f"{folder} holds {done[0].name}, which no run of this script made: name another folder")
    if done and before != job and not overwrite:
        other = [key for key in job | before if before.get(key) != job.get(key)]
        raise UserError(f"{folder} holds parts that were made otherwise ({', '.join(other)}); --overwrite starts anew")
    for path in [*temporary, *(done if overwrite else [])]:
        path.unlink()
    if overwrite:
        for name in (RECEIPT_FILE, BAD_FILE):
            (folder / name).unlink(missing_ok=True)
    if before != job:
        with new_file(folder / JOB_FILE) as file:
            file.write(json.dumps(job, indent=2).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder until this one ends or dies; says so where the file system has no locks.

    Raises UserError if another run is in it. A file is locked, since NFS locks only what is open for writing.
    """
    check_writable(folder)
    if (folder / LOCK_FILE).exists() and not (folder / LOCK_FILE).is_file():
        raise UserError(f"{folder / LOCK_FILE} is not a file: name another folder")
    with (folder / LOCK_FILE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is writing into {folder}") from error
        except OSError as error:
            say(f"{folder} can't be locked ({error.strerror}): see to it that no other run writes into it")
        yield
