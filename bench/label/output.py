"""The output folder: parts of labelled rows, part-00000.parquet and on, and the job that they belong to."""

import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.files import check_writable, new_file, read_json
from bench.inputs.datasets import has_text
from bench.inputs.readers import Table, read_all
from utils import UserError, say

PART = re.compile(r"part-\d{5,}\.parquet")
COUNTS = b"classify_texts"  # the key of a part's counts in its metadata
RECEIPT_FILE = "_receipt.json"
JOB_FILE = "_job.json"  # what the parts are made of; pandas and Spark pass over names with an underscore
LOCK_FILE = "_lock"
TEMPORARY = ".tmp"


@dataclass(frozen=True)
class OutputSpec:
    """What is in the parts.

    schema: of the columns that are read, in all files; columns: which are copied; text_column; labels: their names;
    top_label: whether only the best of them is written; prefix: what the names of the new columns begin with; rows: of
    a part; limit: of the rows in all, None for no limit.
    """

    schema: pa.Schema
    columns: list[str]
    text_column: str
    labels: list[str]
    top_label: bool
    prefix: str
    rows: int
    limit: int | None

    @property
    def added(self) -> list[str]:
        """The names of the new columns."""
        return [self.prefix + name for name in (["label", "score"] if self.top_label else self.labels)]


@dataclass(frozen=True)
class Counts:
    """What is counted of a part, and kept in its file.

    rows; texts: rows that have a text; no_answer: texts that have nulls all the same; tokens: that the model got;
    truncated: texts that were cut, lost: their tokens that were cut off.
    """

    rows: int = 0
    texts: int = 0
    no_answer: int = 0
    tokens: int = 0
    truncated: int = 0
    lost: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


# ------------------------------------------------------------------------------------------------- rows and columns


def read_parts(tables: list[Table], output: OutputSpec, skip: int) -> Iterator[pa.Table]:
    """Yields the rows of all files behind the first `skip`, a part's at once. Raises UserError as read_all."""
    waiting, left = [], float("inf") if output.limit is None else max(output.limit - skip, 0)
    for rows in read_all(tables, output.schema, skip):
        table = rows.slice(0, int(min(left, len(rows))))
        left -= len(table)
        waiting += [table] if len(table) else []
        while sum(map(len, waiting)) >= output.rows:
            joined = pa.concat_tables(waiting).combine_chunks()
            yield joined.slice(0, output.rows)
            waiting = [joined.slice(output.rows)] if len(joined) > output.rows else []
        if not left:
            break
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def label_table(table: pa.Table, classify: Callable, output: OutputSpec) -> tuple[pa.Table, Counts]:
    """Returns (the `columns` of a table and what the model says of its texts, what is counted).

    classify(texts) -> (probabilities [texts, labels], a dict of the Counts of tokens). That is a float32 column for
    each label, or with `top_label` the best `label` and its `score`; nulls where there is no text. Without an answer
    are texts that have no token, and those of which the model says something that is not finite; they have nulls, too.
    """
    values = table[output.text_column].to_pylist()
    full = np.array([i for i, value in enumerate(values) if has_text(value)], dtype=int)
    probs, of_tokens = np.full((len(table), len(output.labels)), np.nan, dtype=np.float32), {}
    if len(full):
        probs[full], of_tokens = classify([values[i] for i in full])
    missing = ~np.isfinite(probs).all(axis=1)
    counts = Counts(rows=len(table), texts=len(full), no_answer=int(missing[full].sum()), **of_tokens)
    found = table.select(output.columns)
    if output.top_label:
        best = np.where(missing, 0, probs.argmax(axis=1))
        names = pa.array([output.labels[i] for i in best], pa.string(), mask=missing)
        scores = pa.array(probs[np.arange(len(probs)), best], mask=missing)
        label, score = output.added
        return found.append_column(label, names).append_column(score, scores), counts
    for i, label in enumerate(output.added):
        found = found.append_column(label, pa.array(np.ascontiguousarray(probs[:, i]), mask=missing))
    return found, counts


# ----------------------------------------------------------------------------------------------------- the folder


def part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


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
        pq.write_table(table.replace_schema_metadata(metadata), file)


def read_counts(part: Path) -> Counts | None:
    """Returns what was counted of a part; None for one of a version of ours that kept no counts."""
    found = (pq.read_schema(part).metadata or {}).get(COUNTS)
    return Counts(**json.loads(found)) if found else None


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
    ours = {JOB_FILE, LOCK_FILE, RECEIPT_FILE, *(path.name for path in (*done, *temporary))}
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
        (folder / RECEIPT_FILE).unlink(missing_ok=True)
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
