"""The record of a job and its receipt: JSON files in the output folder."""

import json

from bench.files import digest, parse_object
from bench.tables.storage import Location, saving
from utils import RunError, first_line

JOB_FILE = "_job.json"
# what JOB_FILE and RECEIPT_FILE must have
JOB_TYPES = dict.fromkeys(("input", "model", "columns", "export"), str)
JOB_TYPES |= dict.fromkeys(("options", "plan", "versions"), dict)
RECEIPT_TYPES = dict.fromkeys(("verdict", "reason", "decisions_are"), str) | {"rows": int}


def read_object(file: Location, types: dict) -> dict:
    """Return the object in a JSON file with keys of these `types`; empty if the file is missing or damaged.

    Raises RunError if it cannot be read.
    """
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


def job_digest(record: dict) -> str:
    return digest([json.dumps(record, sort_keys=True).encode()])


def describe_difference(before: dict, record: dict) -> str:
    """Name what two records differ in: the keys, and the options with their earlier values."""
    if not before:
        return f"{JOB_FILE} is damaged or from an earlier version"
    keys = (before.keys() | record.keys()) - {"options"}
    names = [key for key in sorted(keys) if before.get(key) != record.get(key)]
    for option, value in record["options"].items():
        if before["options"].get(option) != value:
            names.append(f"{option} was {before['options'].get(option) or 'not set'}")
    return ", ".join(names)
