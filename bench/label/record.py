"""The record of a job and its receipt: JSON files in the output folder."""

import json

from bench.files import digest, parse_object
from bench.tables.storage import Location, saving
from utils import RunError, first_line

JOB_FILE = "_job.json"
MAX_NAMES = 5  # of differences in a message
# what JOB_FILE and RECEIPT_FILE must have
JOB_TYPES = dict.fromkeys(("model", "columns", "export"), str)
JOB_TYPES |= dict.fromkeys(("input", "options", "versions"), dict)
RECEIPT_TYPES = dict.fromkeys(("verdict", "reason", "decisions_are"), str) | {"rows": int}


def read_object(file: Location, types: dict) -> dict:
    """Return the object in a JSON file with keys of these `types`; empty if missing or damaged. Raises RunError."""
    try:
        return parse_object(file.read(), types) if file.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    except OSError as error:
        raise RunError(f"{file} can't be read: {first_line(error)}") from error


def write_object(file: Location, content: dict) -> None:
    with saving(file), file.new_file() as opened:
        opened.write(json.dumps(content, indent=2, allow_nan=False).encode())


def read_record(folder: Location) -> dict:
    """Return the record of the job whose parts are in a folder; empty if it is missing, damaged or outdated."""
    record = read_object(folder / JOB_FILE, JOB_TYPES)
    options = record.get("options", {})
    counts = options.get("--rows-per-file"), options.get("--limit") or 1
    return record if all(type(count) is int and count > 0 for count in counts) else {}


def job_digest(record: dict, path: str) -> str:
    """Return 16 hexadecimal digits for a job's record, without files other than the one at this path."""
    input_file = {path: record["input"][path]}
    return digest([json.dumps(record | {"input": input_file}, sort_keys=True).encode()])


def describe_difference(before: dict, record: dict, may_grow: bool = False) -> str:
    """Name what two records differ in, or some of it: input files, options with their earlier values, and other keys.

    Files that were added to the input make no difference if it `may_grow`. Return "" if there is none.
    """
    if not before:
        return f"{JOB_FILE} is damaged or from an earlier version"
    old, new = before["input"], record["input"]
    names = [f"{path} is no longer in the input" for path in old if path not in new]
    names += [f"{path} has changed" for path in old if path in new and old[path] != new[path]]
    names += [f"{path} was added" for path in new if path not in old and not may_grow]
    for option, value in record["options"].items():
        if before["options"].get(option) != value:
            names.append(f"{option} was {before['options'].get(option) or 'not set'}")
    keys = (before.keys() | record.keys()) - {"options", "input"}
    names += [key for key in sorted(keys) if before.get(key) != record.get(key)]
    return ", ".join(names[:MAX_NAMES])
