"""The output folder: which job its parts belong to, who may write there, its parts and its bad rows."""

import contextlib
import fcntl
import io
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType
from xxhash import xxh3_64

from bench.files import TEMPORARY
from bench.label.record import JOB_FILE, describe_difference, read_record, write_object
from bench.label.rows import BAD_ROWS, Counts
from bench.label.splits import Footer, InputPart, InputSplit, LabelJob, part_name
from bench.tables.storage import Location, saving
from utils import RunError, UserError, first_line, say

# pandas and Spark skip names with an underscore
LOCK_FILE, BAD_FILE, RECEIPT_FILE = "_lock", "_bad_rows.jsonl", "_receipt.json"
PART = re.compile(r"part-(?P<file>[\w.-]+-[0-9a-f]{8})-[0-9]{10,}\.parquet")
SHARD = r"(-\d+-of-\d+)?"
OWN_FILES = (rf"_lock({SHARD}|-plan)", r"_job\.json", rf"_receipt{SHARD}\.json", rf"_bad_rows{SHARD}\.jsonl")
OWN_FILES = re.compile("|".join((*OWN_FILES, PART.pattern, TEMPORARY.pattern)))
SYSTEM_FILES = re.compile(r"\.DS_Store|\.nfs.*")  # of macOS and NFS
FOOTER, CONTENT = b"classify_texts", b"digest of name and content"  # keys in a part's metadata
NO_DIGEST = b"xxh3:" + b"0" * 16  # stands for the digest while it is computed
CONCURRENT_PARTS = 4  # read as a whole at the same time


def refuse_foreign_files(folder: Location) -> None:
    """Create a folder if needed. Raise UserError if it contains other files than those of a run."""
    folder.check_writable()
    for file in folder.files():
        is_special = file.local and file.info().type == FileType.Unknown  # such as a FIFO
        if is_special or not (OWN_FILES.fullmatch(file.name) or SYSTEM_FILES.fullmatch(file.name)):
            reason = f"contains {file.name}, so it is not an output folder of this script"
            raise UserError(f"{folder} {reason}; choose another --output")


def prepare_folder(job: LabelJob, record: dict) -> None:
    """Delete leftovers, or with --overwrite all parts, and write the job's record.

    Raises UserError if the folder has parts of another job, or if another shard has started another job there. Files
    may have been added to the input, unless the number of rows is limited.
    """
    folder = job.folder
    before, files = read_record(folder), folder.files()
    parts = [file for file in files if PART.fullmatch(file.name)]
    if parts and not any(file.name == JOB_FILE for file in files):
        raise UserError(f"{folder} contains {parts[0].name} but no {JOB_FILE}; choose another --output")
    difference = describe_difference(before, record, may_grow=job.output.limit is None)
    if difference and not job.overwrite and (parts or (before and job.shard)):
        message = f"{folder} belongs to a different job ({difference}); give the same options"
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
    NFS requires. A bucket has no locks: there the file only shows that it can be written. If the block fails, and
    the folder had no files of ours before, see delete_traces.
    """
    folder.check_writable()
    lock = folder / name
    with saving(lock):
        is_new = name == LOCK_FILE and not any(OWN_FILES.fullmatch(file.name) for file in folder.files())
    with contextlib.ExitStack() as stack:
        file = None
        if folder.local:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW  # a FIFO or a link fails
            file = stack.enter_context(open(os.open(lock.local, flags, 0o666), "ab"))
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
        else:
            with saving(lock), lock.new_file():
                pass
        try:
            yield
        except BaseException:
            if is_new and (file or not shared):
                delete_traces(folder, file)
            raise


def delete_traces(folder: Location, lock: BinaryIO | None) -> None:
    """Delete the files of a run that failed before it wrote a part, unless others hold the `lock`, too."""
    with contextlib.suppress(OSError):
        if lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in folder.files() if not part_files(folder) else ():
            if OWN_FILES.fullmatch(file.name):
                file.delete()


def part_files(folder: Location) -> list[Location]:
    return [file for file in folder.files() if PART.fullmatch(file.name)]


def read_footer(part: Location) -> Footer | None:
    """Read a part's metadata; None if the part is not as it was written. Raises OSError if it cannot be read."""
    if part.local and not part.is_file():
        return None
    content = part.read()
    try:
        metadata = pq.read_metadata(io.BytesIO(content)).metadata or {}
        written = metadata[CONTENT]
        if digest_part(part.name, NO_DIGEST.join(content.rsplit(written, 1))) != written:
            return None
        values = json.loads(metadata[FOOTER])
        return Footer(**values | {"counts": Counts(**values["counts"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def digest_part(name: str, content: bytes) -> bytes:
    """Return the digest of a part's name and content, with NO_DIGEST in it."""
    total = xxh3_64(name.encode())
    total.update(content)
    return b"xxh3:" + total.hexdigest().encode()


def read_footers(job: LabelJob) -> None:
    """Read the metadata of the parts of this run's files into `job.footers`; damaged parts are left out.

    Raises UserError for parts of another job: two runs that started at the same time in a bucket, which has no locks,
    may have planned differently.
    """
    ids = {split.file: split.job for split in job.own_splits}
    try:
        parts = {file: PART.fullmatch(file.name)["file"] for file in part_files(job.folder)}
        parts = {file: ids[key] for file, key in parts.items() if key in ids}
        with ThreadPoolExecutor(CONCURRENT_PARTS) as pool:
            footers = dict(zip(parts, pool.map(read_footer, parts), strict=True))
    except OSError as error:
        raise RunError(f"{job.folder} cannot be read: {first_line(error)}") from error
    for part, footer in footers.items():
        if footer and footer.job != parts[part]:
            raise UserError(f"{part} was written by a run with other options; choose another --output")
    job.footers.update({part.name: footer for part, footer in footers.items() if footer})


def find_parts(split: InputSplit, footers: dict[str, Footer]) -> tuple[list[str], bool]:
    """Return (a split's parts up to the first gap, whether these are all its parts)."""
    if split.share[1] > 1:  # how many parts a share has is known only once the file is read
        return sorted(name for name, footer in footers.items() if split.has(footer)), False
    names, first = [], split.first
    while footer := footers.get(name := part_name(split.file, first)):
        names.append(name)
        first += footer.rows
        if footer.last or not footer.rows:
            return names, footer.last
    return names, False


def own_parts(job: LabelJob) -> dict[str, Footer]:
    """Return the parts of this run, for each split up to the first gap."""
    return {name: job.footers[name] for split in job.own_splits for name in find_parts(split, job.footers)[0]}


def check_complete(job: LabelJob, remedy: str = "rerun the same command") -> dict[str, Footer]:
    """Return the parts of this run. Raise UserError if one is missing, or unless it is a shard, if there are others."""
    files = part_files(job.folder)
    for name in job.footers.keys() - {file.name for file in files}:
        del job.footers[name]
    footers = own_parts(job)
    for split in job.own_splits:
        names, complete = find_parts(split, footers)
        if not complete and split.share[1] == 1:
            missing = job.folder / part_name(split.file, split.first + sum(footers[name].rows for name in names))
            raise UserError(f"{missing} is missing or damaged; {remedy} to write it")
    others = [] if job.shard else [file for file in files if file.name not in footers]
    if others:
        raise UserError(f"{others[0]} lies past the end of its input file; delete it, or choose another --output")
    if not job.shard and not sum(footer.rows for footer in footers.values()):
        raise UserError(f"the input has no rows: {job.source}")
    return footers


def write_part(folder: Location, part: InputPart, labelled: pa.Table, counts: Counts) -> Footer:
    """Write a part, with its footer and the digest of its name and content in the file's metadata."""
    bad = json.loads((labelled.schema.metadata or {}).get(BAD_ROWS, b"[]"))
    footer = Footer(part.first, len(labelled), counts, part.last, part.number, part.job, bad)
    content = io.BytesIO()
    metadata = {FOOTER: json.dumps(asdict(footer)), CONTENT: NO_DIGEST}
    write_rows(labelled.replace_schema_metadata(metadata), content)
    total = digest_part(part.name, content.getvalue())
    content.seek(content.getvalue().rindex(NO_DIGEST))
    content.write(total)
    with saving(folder), (folder / part.name).new_file() as file:
        file.write(content.getbuffer())
    return footer


def write_rows(table: pa.Table, file: BinaryIO) -> None:
    """Write Parquet with zstandard, and without dictionaries of floats, since scores hardly ever repeat.

    100,000 rows of 28 labels take 10 MB, and 17 MB with pyarrow's defaults. Splitting vectors by byte saves 9%.
    """
    vectors = [column.name for column in table.schema if pa.types.is_fixed_size_list(column.type)]
    floats = [column.name for column in table.schema if pa.types.is_floating(column.type)]
    repeated = [name for name in table.schema.names if name not in (*vectors, *floats)] or False
    split = [f"{name}.list.element" for name in vectors] or False
    pq.write_table(table, file, use_dictionary=repeated, use_byte_stream_split=split, compression="zstd")


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
