"""The job that the parts in a folder belong to, and who may write there."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator

from xxhash import xxh3_64

from bench.label.output import PART
from bench.tables.storage import Location, saving
from utils import UserError, first_line, say

JOB_FILE = "_job.json"  # what the parts are made of; pandas and Spark pass over names with an underscore
LOCK_FILE = "_lock"
OURS = re.compile(r"_lock.*|_job\.json|_receipt.*\.json|_bad_rows.*\.jsonl|\..*\.tmp|" + PART.pattern)
OF_THE_SYSTEM = re.compile(r"\.DS_Store|\.nfs.*")  # what macOS and NFS leave anywhere
# what a job is made of, where it isn't called as its option
SETTINGS = {"input": "the input", "model": "the model", "plan": "how it ran", "export": "the export"}
SETTINGS |= {"versions": "versions of packages", "options": "options of the device or variant", "schema": "the columns"}
SETTINGS |= {"labels": "the labels", "columns": "--keep-columns", "text_column": "--column", "written": "--labels"}
SETTINGS |= {"half": "--float16", "rows": "--rows-per-file", "csv": "--delimiter or --encoding"}
SETTINGS |= {"job": "a version of before November 28, 2026"}


def read_job(folder: Location) -> dict:
    """Returns the job of the parts in a folder; nothing where it is not known."""
    return read_object(folder / JOB_FILE)


def job_digest(job: dict) -> str:
    """Returns 16 hexadecimal digits for a job, which each of its parts has in its metadata."""
    return xxh3_64(json.dumps(job, sort_keys=True).encode()).hexdigest()


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


def refuse_foreign_files(folder: Location) -> None:
    """Makes a folder if need be; raises UserError if it holds other things than parts and what belongs to them."""
    folder.check_writable()
    for file in folder.files():
        if not (OURS.fullmatch(file.name) or OF_THE_SYSTEM.fullmatch(file.name)):
            raise UserError(f"{folder} holds {file.name}, which is not a part: name another folder")


def prepare_output(folder: Location, job: dict, overwrite: bool, alone: bool = True) -> None:
    """Deletes what is half-made in the output folder, or to `overwrite` it all parts, and writes the job there.

    Where a run is not `alone`, what is half-made is another's. Raises UserError if the folder holds parts of another
    job, or if another run that is not alone began with another.
    """
    before, there = read_job(folder), folder.files()
    done = [file for file in there if PART.fullmatch(file.name)]
    if done and not any(file.name == JOB_FILE for file in there):
        raise UserError(f"{folder} holds {done[0].name}, which no run of this script made: name another folder")
    if before and before != job and not alone:
        words = f"another run began in {folder} with another job ({what_differs(before, job)})"
        raise UserError(f"{words}: give all shards the same options, or name another folder")
    if done and before != job and not overwrite:
        words = f"{folder} holds parts that were made otherwise ({what_differs(before, job)})"
        raise UserError(f"{words}: name another folder, or start anew with --overwrite")
    for file in there:
        half_made = alone and file.name.endswith(".tmp")
        if OURS.fullmatch(file.name) and (half_made or (overwrite and file.name not in (JOB_FILE, LOCK_FILE))):
            file.delete()
    if before != job:
        write_object(folder / JOB_FILE, job)


def what_differs(before: dict, job: dict) -> str:
    """Says in what two jobs differ, by the options of the command line."""
    words = []
    for key in sorted(key for key in job | before if before.get(key) != job.get(key)):
        option, old = SETTINGS.get(key, f"--{key.replace('_', '-')}"), before.get(key)
        if option.startswith("--") and not isinstance(old, list):
            given = " was given" if old is True else f" was {old}"
            option += " was not given" if old is None or old is False or old == "" else given
        words.append(option)
    return ", ".join(words)


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
