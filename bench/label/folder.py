"""The output folder: which job its parts belong to, who may write there, its parts and its bad rows."""

import contextlib
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType
from xxhash import xxh3_64

from bench.files import TEMPORARY
from bench.label.record import JOB_FILE, describe_difference, read_record, write_object
from bench.label.rows import BAD_ROWS, Counts
from bench.label.splits import InputPart, InputSplit, LabelJob, part_name
from bench.tables.format_parquet import read_metadata
from bench.tables.storage import CONCURRENT_FILES, READ_AHEAD, Location, saving
from utils import RunError, UserError, first_line, say

# pandas and Spark skip names with an underscore
LOCK_FILE, BAD_FILE, RECEIPT_FILE = "_lock", "_bad_rows.jsonl", "_receipt.json"
PART = re.compile(r"part-\d{6,}-\d{10,}\.parquet")
SHARD = r"(-\d+-of-\d+)?"
OWN_FILES = (rf"_lock({SHARD}|-plan)", r"_job\.json", rf"_receipt{SHARD}\.json", rf"_bad_rows{SHARD}\.jsonl")
OWN_FILES = re.compile("|".join((*OWN_FILES, PART.pattern, TEMPORARY.pattern)))
SYSTEM_FILES = re.compile(r"\.DS_Store|\.nfs.*")  # of macOS and NFS
# keys in a part's metadata
COUNTS, LAST, JOB, CONTENT = b"classify_texts", b"last of its split", b"job", b"digest of name and content"
NO_DIGEST = b"xxh3:" + b"0" * 16  # stands for the digest while it is computed


def refuse_foreign_files(folder: Location) -> None:
    """Create a folder if needed. Raise UserError if it contains other files than those of a run."""
    folder.check_writable()
    for file in folder.files():
        is_special = file.local and file.info().type == FileType.Unknown  # such as a FIFO
        if is_special or not (OWN_FILES.fullmatch(file.name) or SYSTEM_FILES.fullmatch(file.name)):
            raise UserError(f"{folder} contains {file.name}, which no run has written; choose another --output")


def prepare_folder(job: LabelJob, record: dict) -> None:
    """Delete leftovers, or with --overwrite all parts, and write the job's record.

    Raises UserError if the folder has parts of another job, or if another shard has started another job there.
    """
    folder = job.folder
    before, files = read_record(folder), folder.files()
    parts = [file for file in files if PART.fullmatch(file.name)]
    if parts and not any(file.name == JOB_FILE for file in files):
        raise UserError(f"{folder} contains {parts[0].name} but no {JOB_FILE}; choose another --output")
    if before != record and not job.overwrite and (parts or (before and job.shard)):
        message = f"{folder} belongs to a different job ({describe_difference(before, record)}); give the same options"
        raise UserError(f"{message}, choose another --output, or replace its parts with --overwrite")
    for file in files:
        unfinished = TEMPORARY.fullmatch(file.name) and not job.shard  # otherwise it may be another shard's
        outdated = job.overwrite and file.name not in (JOB_FILE, LOCK_FILE)
        if OWN_FILES.fullmatch(file.name) and (unfinished or outdated):
            file.delete()
    if before != record:
        write_object(folder / JOB_FILE, record)


@contextlib.contextmanager
def locked(folder: Location, name: str = LOCK_FILE, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder for the block; `shared` keeps out only runs that are not.

    Raises UserError if another run holds the lock, unless it should `wait`. The lock is on a file open for writing, as
    NFS requires. A bucket has no locks: there the file only shows that it can be written.
    """
    folder.check_writable()
    lock = folder / name
    if not folder.local:
        with saving(lock), lock.new_file():
            pass
        yield
        return
    with open(os.open(lock.local, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666), "ab") as file:  # a FIFO fails
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(f"another run is writing to {folder}; choose another --output") from error
            say(f"waiting    for another run to plan or to finish in {folder}")
            fcntl.flock(file, kind)
        except OSError as error:
            say(f"{folder} cannot be locked ({first_line(error)}): make sure that no other run writes to it")
        yield


@dataclass(frozen=True)
class Footer:
    """The metadata of a part."""

    rows: int
    counts: Counts
    last: bool  # True for the last part of a split
    job: str  # the job's digest
    bad: list[dict]  # its bad rows: `row`, `reason`, and perhaps `file` and `line`


def part_files(folder: Location) -> list[Location]:
    return [file for file in folder.files() if PART.fullmatch(file.name)]


def read_footer(part: Location) -> Footer | None:
    """Read a part's metadata; None if the part is not as it was written. Raises OSError if it cannot be read."""
    if part.local and not part.is_file():
        return None
    try:
        parquet = read_metadata(part)
        metadata = parquet.metadata or {}
        if digest_part(part, metadata.get(CONTENT, b"missing"), parquet.serialized_size) != metadata.get(CONTENT):
            return None
        values = {key: json.loads(metadata.get(key, b"null")) for key in (COUNTS, LAST, JOB, BAD_ROWS)}
        counts = Counts(**values[COUNTS])
        return Footer(parquet.num_rows, counts, bool(values[LAST]), str(values[JOB]), values[BAD_ROWS] or [])
    except (ValueError, TypeError):
        return None


def digest_part(part: Location, written: bytes, metadata_bytes: int) -> bytes:
    """Return the digest of a part's name and content; NO_DIGEST replaces the one `written` in its metadata."""
    total = xxh3_64(part.name.encode())
    with part.open_seekable() as file:
        for _ in range((file.size() - metadata_bytes - 8) // READ_AHEAD):  # 8 bytes follow the metadata
            total.update(file.read(READ_AHEAD))
        total.update(NO_DIGEST.join(file.read().rsplit(written, 1)))
    return b"xxh3:" + total.hexdigest().encode()


def read_footers(job: LabelJob) -> dict[str, Footer]:
    """Read the metadata of the parts of this run's files, by name; damaged parts are left out.

    Raises UserError for parts of another job: two runs that started at the same time in a bucket, which has no locks,
    may have planned differently.
    """
    prefixes = tuple({part_name(split.file, 0).rpartition("-")[0] for split in job.own_splits})
    try:
        parts = [part for part in part_files(job.folder) if part.name.startswith(prefixes)]
        with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
            footers = dict(zip(parts, pool.map(read_footer, parts), strict=True))
    except OSError as error:
        raise RunError(f"{job.folder} cannot be read: {first_line(error)}") from error
    for part, footer in footers.items():
        if footer and footer.job != job.output.job:
            raise UserError(f"{part} was written by a run with other options; choose another --output")
    return {part.name: footer for part, footer in footers.items() if footer}


def find_parts(split: InputSplit, footers: dict[str, Footer]) -> tuple[list[str], int, bool]:
    """Return (a split's parts up to the first gap, their number of rows, whether these are all of its parts)."""
    names, done = [], 0
    while footer := footers.get(name := part_name(split.file, split.first + done)):
        names.append(name)
        done += footer.rows
        if footer.last or not footer.rows:
            return names, done, footer.last
    return names, done, False


def own_parts(job: LabelJob) -> dict[str, Footer]:
    """Return the parts of this run, for each split up to the first gap."""
    footers = read_footers(job)
    return {name: footers[name] for split in job.own_splits for name in find_parts(split, footers)[0]}


def check_complete(job: LabelJob) -> dict[str, Footer]:
    """Return the parts of this run. Raise UserError if one is missing, or unless it is a shard, if there are others."""
    footers = own_parts(job)
    for split in job.own_splits:
        _, done, complete = find_parts(split, footers)
        if not complete:
            missing = job.folder / part_name(split.file, split.first + done)
            raise UserError(f"{missing} is missing or damaged; rerun the same command without --shard to write it")
    others = [] if job.shard else [file for file in part_files(job.folder) if file.name not in footers]
    if others:
        raise UserError(f"{others[0]} lies past the end of its input file; delete it, or choose another --output")
    if not job.shard and not sum(footer.rows for footer in footers.values()):
        raise UserError(f"the input has no rows: {job.source}")
    return footers


def write_part(folder: Location, part: InputPart, labelled: pa.Table, counts: Counts, job: str) -> None:
    """Write a part, with its footer and the digest of its name and content in the file's metadata."""
    metadata = {COUNTS: json.dumps(asdict(counts)), LAST: json.dumps(part.last), JOB: json.dumps(job)}
    metadata |= (labelled.schema.metadata or {}) | {CONTENT: NO_DIGEST}
    content = io.BytesIO()
    write_rows(labelled.replace_schema_metadata(metadata), content)
    total = xxh3_64(part.name.encode())
    total.update(content.getbuffer())
    content.seek(content.getvalue().rindex(NO_DIGEST))
    content.write(b"xxh3:" + total.hexdigest().encode())
    with saving(folder), (folder / part.name).new_file() as file:
        file.write(content.getbuffer())


def write_rows(table: pa.Table, file: BinaryIO) -> None:
    """Write Parquet with zstandard, and without dictionaries of floats, since scores hardly ever repeat.

    100,000 rows of 28 labels take 10 MB, and 17 MB with pyarrow's defaults. The bytes of vectors are split by their
    place in the number, which saves 9%.
    """
    vectors = [column.name for column in table.schema if pa.types.is_fixed_size_list(column.type)]
    floats = [column.name for column in table.schema if pa.types.is_floating(column.type)]
    repeated = [name for name in table.schema.names if name not in (*floats, *vectors)]
    split = [f"{name}.list.element" for name in vectors]
    options = {"use_byte_stream_split": split} if split else {}
    pq.write_table(table, file, use_dictionary=repeated or False, compression="zstd", **options)


def first_bad(bad: dict[str, list[dict]]) -> str:
    """Return where the first bad row is and why it is bad, given the bad rows of each part; empty if there is none."""
    for name in sorted(bad):
        for row in bad[name][:1]:
            place = f"{row['file']}, line {row['line']}" if "file" in row else f"{name}, row {row['row']}"
            return f"{place}: {row['reason']}"
    return ""


def write_bad_rows(job: LabelJob, footers: dict[str, Footer]) -> None:
    """Write BAD_FILE: the part, row, reason, and if known the file and line of each bad row. Delete it if none."""
    lines = [json.dumps({"part": name} | bad) + "\n" for name in sorted(footers) for bad in footers[name].bad]
    file = job.own_file(BAD_FILE)
    if not lines:
        file.delete()
        return
    with saving(file), file.new_file() as opened:
        opened.write("".join(lines).encode())
