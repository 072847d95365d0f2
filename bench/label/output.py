"""The output folder: parts of labelled rows, and the job that they belong to."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bench.label.rows import BAD_ROWS, Counts, OutputSpec
from bench.label.stretches import PartRows, Stretch, part_name
from bench.storage import AT_ONCE, Location, saving
from utils import RunError, UserError, first_line, say

PART = re.compile(r"part-[\d-]+\.parquet")
COUNTS, LAST = b"classify_texts", b"last of its stretch"  # keys in a part's metadata
BAD_FILE = "_bad_rows.jsonl"
RECEIPT_FILE = "_receipt.json"
JOB_FILE = "_job.json"  # what the parts are made of; pandas and Spark pass over names with an underscore
LOCK_FILE = "_lock"
FEW_BAD = 3  # bad rows of a part, which stop no run even where the part has hardly any others
OURS = re.compile(r"_lock.*|_job\.json|_receipt.*\.json|_bad_rows.*\.jsonl|\..*\.tmp|" + PART.pattern)


@dataclass(frozen=True)
class Footer:
    """What a part says of itself: its rows, the names of its columns, its Counts, and whether it ends its stretch.

    bad: what is known of its bad rows: `row`, `reason`, and perhaps `file` and `line`.
    """

    rows: int
    columns: list[str]
    counts: Counts
    last: bool
    bad: list[dict]


def part_files(folder: Location) -> list[Location]:
    return [file for file in folder.files() if PART.fullmatch(file.name)]


def read_footer(part: Location) -> Footer | None:
    """Reads what a part says of itself; None for one that is damaged, or that no run of this version made."""
    try:
        with part.open_anywhere() as file:
            parquet = pq.ParquetFile(file)
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (OSError, pa.ArrowException):
        return None
    try:
        found = {key: json.loads((schema.metadata or {}).get(key, b"null")) for key in (COUNTS, LAST, BAD_ROWS)}
        return Footer(rows, schema.names, Counts(**found[COUNTS]), bool(found[LAST]), found[BAD_ROWS] or [])
    except (ValueError, TypeError):
        return None


def read_footers(folder: Location) -> dict[str, Footer]:
    """Reads what the parts in a folder say of themselves, by name; damaged ones are left out."""
    parts = part_files(folder)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        footers = pool.map(read_footer, parts)
    return {part.name: footer for part, footer in zip(parts, footers, strict=True) if footer}


def whole_parts(footers: dict[str, Footer], output: OutputSpec) -> dict[str, Footer]:
    """Returns the parts that need not be made again: those of as many rows as asked for, and ends of stretches."""
    return {name: one for name, one in footers.items() if one.rows == output.rows or one.last}


def parts_there(stretch: Stretch, footers: dict[str, Footer]) -> tuple[list[str], int, bool]:
    """Returns (the parts of a stretch from its first on without a gap, their rows, whether these are all)."""
    names, done = [], 0
    while footer := footers.get(name := part_name(stretch.file, stretch.first + done)):
        names.append(name)
        done += footer.rows
        if footer.last or not footer.rows:
            return names, done, footer.last
    return names, done, False


def check_complete(folder: Location, stretches: list[Stretch], footers: dict[str, Footer]) -> None:
    """Raises UserError where the parts in a folder are not exactly those of the stretches, or have no row at all."""
    expected = set()
    for stretch in stretches:
        names, done, complete = parts_there(stretch, footers)
        if not complete:
            missing = folder / part_name(stretch.file, stretch.first + done)
            raise UserError(f"{missing} is not there, or not whole: the same command without --shard makes it")
        expected |= set(names)
    if others := [file for file in part_files(folder) if file.name not in expected]:
        raise UserError(f"{others[0]} is behind the last row of its file: it is not of this run")
    if not sum(footers[name].rows for name in expected):
        raise UserError("the input has no rows")


def write_part(folder: Location, part: PartRows, labelled: pa.Table, counts: Counts) -> None:
    """Writes a part; in the file's metadata are its counts, and whether it is the last of its stretch."""
    metadata = {COUNTS: json.dumps(asdict(counts)).encode(), LAST: json.dumps(part.last).encode()}
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


def stop_at_bad_rows(folder: Location, parts: list[Counts], strict: bool) -> None:
    """Raises RunError, with the first bad row in the folder, where one of the parts has too many.

    That is any if `strict`, else more than half of the rows and more than FEW_BAD.
    """
    if not any(one.bad > (0 if strict else max(FEW_BAD, one.rows / 2)) for one in parts):
        return
    why = "--strict" if strict else "so is more than half of a part"
    footers = read_footers(folder)
    write_bad_rows(folder, footers)
    name = next(name for name in sorted(footers) if footers[name].bad)
    first = footers[name].bad[0]
    place = f"{first['file']}, line {first['line']}" if "file" in first else f"{name}, row {first['row']}"
    raise RunError(f"{place}: {first['reason']} ({why}); {BAD_FILE} names all")


# -------------------------------------------------------------------------------------------------------- the job


def read_job(folder: Location) -> dict:
    """Returns the job of the parts in a folder; nothing where it is not known."""
    return read_object(folder / JOB_FILE)


def read_object(file: Location) -> dict:
    """Returns the object in a JSON file; nothing where there is none, or a damaged one."""
    try:
        found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_object(file: Location, content: dict) -> None:
    with saving(file), file.new_file() as opened:
        opened.write(json.dumps(content, indent=2).encode())


def prepare_output(folder: Location, job: dict, overwrite: bool, alone: bool = True) -> None:
    """Checks the output folder and clears it of what is half-made, to `overwrite` it of all parts.

    Where a run is not `alone`, what is half-made is another's. Raises UserError if the folder holds other things, or
    parts of another job.
    """
    with saving(folder):
        before, there = read_job(folder), folder.files()
    done = [file for file in there if PART.fullmatch(file.name)]
    if foreign := [file.name for file in there if not OURS.fullmatch(file.name)]:
        raise UserError(f"{folder} holds {foreign[0]}, which is not a part: name another folder")
    if done and not any(file.name == JOB_FILE for file in there):
        raise UserError(f"{folder} holds {done[0].name}, which no run of this script made: name another folder")
    if done and before != job and not overwrite:
        other = [key for key in job | before if before.get(key) != job.get(key)]
        raise UserError(f"{folder} holds parts that were made otherwise ({', '.join(other)}); --overwrite starts anew")
    for file in there:
        if (alone and file.name.endswith(".tmp")) or (overwrite and file.name not in (JOB_FILE, LOCK_FILE)):
            file.delete()
    if before != job:
        write_object(folder / JOB_FILE, job)


@contextlib.contextmanager
def locked(folder: Location, name: str = LOCK_FILE, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Keeps other runs out of a folder until this one ends or dies; says so where there are no locks.

    `shared` keeps out those that are alone. Raises UserError if another run is in it, unless it is to `wait`. A file is
    locked, since NFS locks only what is open for writing. In a bucket the file shows only that it can be written.
    """
    folder.check_writable()
    place = folder / name
    if not folder.local:
        with saving(place), place.new_file():
            pass
        yield
        return
    if place.local.exists() and not place.is_file():
        raise UserError(f"{place} is not a file: name another folder")
    with place.local.open("ab") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(f"another run is writing into {folder}") from error
            say(f"waiting    for another run to begin or to end in {folder}")
            fcntl.flock(file, kind)
        except OSError as error:
            say(f"{folder} can't be locked ({first_line(error)}): see to it that no other run writes into it")
        yield
