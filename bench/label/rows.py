"""Rows of the input -> rows of the output and back: which columns come out, and what is counted."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from bench.model.task import Task
from bench.naming import listed
from bench.tables.blocks import NOTE
from bench.tables.folders import nested_columns
from bench.tables.items import Item, removal
from bench.tables.readers import BAD, Table
from utils import UserError, say

BAD_ROWS = b"bad_rows"  # key of the bad rows in a schema's metadata
WORKER_FAILED = "a worker failed on this text"  # how the reason begins then


@dataclass(frozen=True)
class OutputSpec:
    """What the parts contain."""

    done_word = "labelled"  # in messages
    schema: pa.Schema  # of the columns to read, the same for all files
    text_columns: list[str]
    keep_columns: list[str]  # to copy
    model_labels: list[str]
    labels: list[str]  # that get a column
    top_label: bool = False  # write the most probable label and its score instead
    float16: bool = False  # instead of float32
    min_score: float | None = None  # lower scores become null
    prefix: str = ""  # of the new columns' names
    rows_per_file: int = 100_000  # at most, see splits.PART_BYTES
    limit: int | None = None  # of the rows in total
    long: str = "cut"  # one of LONG_TEXTS
    token_count: bool = False  # add a column of token counts

    @property
    def answer_columns(self) -> list[str]:
        names = ["label", "score"] if self.top_label else self.labels
        return [self.prefix + name for name in names]

    @property
    def new_columns(self) -> list[str]:
        return [*self.answer_columns, self.prefix + "tokens"] if self.token_count else self.answer_columns

    @property
    def indices(self) -> list[int]:
        """Return the indices of the written labels in the model's answers."""
        return [self.model_labels.index(name) for name in self.labels]

    @property
    def tolerates_rounding(self) -> bool:
        """True if rounding the stored values changes no decision: the label was chosen before its score was rounded."""
        return self.top_label

    def to_columns(self, values: np.ndarray, missing: np.ndarray) -> list[pa.Array]:
        """Return the columns for answers [rows, labels], null where they are `missing`."""
        dtype = np.float16 if self.float16 else np.float32
        if self.top_label:
            best = np.where(missing, 0, values.argmax(axis=1))
            names = pa.array([self.model_labels[i] for i in best], pa.string(), mask=missing)
            return [names, pa.array(values[np.arange(len(values)), best].astype(dtype), mask=missing)]
        least = -np.inf if self.min_score is None else self.min_score
        columns = [values[:, i] for i in self.indices]
        return [pa.array(column.astype(dtype), mask=missing | (column < least)) for column in columns]

    def to_answers(self, table: pa.Table, reference: np.ndarray) -> np.ndarray:
        """Return the answers that a part's columns hold, float64 [rows, labels]; nan if a row has none.

        Values that were not written are taken from the `reference`, within what the columns allow: below the score of
        the top label, or not above the minimum score.
        """
        columns = [table[name].to_pylist() for name in self.answer_columns]
        if not self.top_label:
            answers = np.array(columns, dtype=float).T
            if self.min_score is None:
                return answers
            return np.where(np.isnan(answers), np.minimum(reference, self.min_score), answers)
        names, scores = columns
        scores = np.array(scores, dtype=float)
        answers = np.minimum(reference, np.nextafter(scores, -np.inf)[:, None])  # nan without a score
        for i, name in enumerate(names):
            if name is not None:
                answers[i, self.model_labels.index(name)] = scores[i]
        return answers

    def decisions(self, task: Task) -> Task:
        """Return the task whose decisions follow from the written columns."""
        if self.top_label:
            return task.top_label()
        return task if list(task.labels) == self.labels else task.of_labels(self.labels)

    def check(self, tables: list[Table]) -> None:
        """Raise UserError if the model lacks a label or two columns share a name; report incomplete columns."""
        if unknown := [name for name in self.labels if name not in self.model_labels]:
            known = ", ".join(self.model_labels)
            raise UserError(f"--labels: the model has no label {unknown[0]!r}; its labels: {known}")
        names = [*self.keep_columns, *self.new_columns]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            message = f"two columns would be named {repeated[0]!r}: rename the new ones with --prefix"
            raise UserError(f"{message}, or leave out others with --keep-columns")
        complete = set.intersection(*(set(table.schema.names) for table in tables))
        if incomplete := [name for name in self.keep_columns if name not in complete]:
            say(f"columns missing from some files are null there: {listed(incomplete)}")


class VectorSpec(OutputSpec):
    """What the parts contain: a fixed-size list of float32 or float16 for each row, null if there is no vector."""

    done_word = "embedded"
    tolerates_rounding = True  # it moves vectors by far less than the margin between two anchors

    @property
    def answer_columns(self) -> list[str]:
        return [f"{self.prefix}embedding"]

    def to_columns(self, values: np.ndarray, missing: np.ndarray) -> list[pa.Array]:
        values[missing] = 0  # else a null would have bytes that no other row has
        numbers = values.astype(np.float16 if self.float16 else np.float32, copy=False)
        mask = pa.array(missing)
        return [pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1], mask=mask)]

    def to_answers(self, table: pa.Table, reference: np.ndarray) -> np.ndarray:
        column = table[self.answer_columns[0]].combine_chunks()
        answers = np.full(reference.shape, np.nan)
        vectors = column.flatten().to_numpy().reshape(-1, reference.shape[1])
        answers[column.is_valid().to_numpy(zero_copy_only=False)] = vectors
        return answers


@dataclass(frozen=True)
class Counts:
    """What is counted in a part, stored in its file, and added up for the receipt."""

    rows: int = 0
    texts: int = 0  # rows with a text
    rows_removed: int = 0  # rows with a placeholder for a removed comment
    texts_without_answer: int = 0
    tokens: int = 0  # given to the model
    texts_truncated: int = 0  # longer than the model takes
    tokens_lost: int = 0  # cut off from these
    bad_rows: int = 0  # that cannot be parsed or answered

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Answers:
    """The model's answers for the items of a part."""

    values: np.ndarray  # [items, labels], nan if there is no answer
    lengths: np.ndarray  # [items], tokens; 0 if unknown
    token_counts: dict[str, int] = field(default_factory=dict)  # for Counts
    failed: dict[int, str] = field(default_factory=dict)  # item -> reason, if a worker failed on it


def choose_columns(tables: list[Table], text_columns: list[str], keep: list[str] | None, keep_text: bool) -> list[str]:
    """Return the columns to copy: `keep`, or all except the text. Raises UserError if one cannot be copied."""
    nested = nested_columns(tables)
    if "" not in nested and any(table.has("") for table in tables):
        nested.append("")
    if keep is None:
        if nested:
            say(f"columns with lists or objects, without or with unsupported names are not copied: {listed(nested)}")
        left_out = {*text_columns, *nested}
        keep = [name for table in tables for name in table.schema.names if name not in left_out]
    elif uncopyable := [name for name in keep if name and name in nested]:
        raise UserError(f"--keep-columns: {uncopyable[0]!r} holds lists or objects, which cannot be copied")
    if keep_text:
        keep = [*keep, *text_columns]
    return [name for name in dict.fromkeys(keep) if name]


def label_table(
    table: pa.Table, items: list[Item | None], answers: Answers, output: OutputSpec
) -> tuple[pa.Table, Counts]:
    """Return (a part's output rows, their counts), from the `answers` for those of its items that are not None.

    Rows without an item or a finite answer have nulls. Bad rows are listed in the schema's metadata, under BAD_ROWS.
    """
    has_item = np.array([item is not None for item in items], bool)
    rows = np.flatnonzero(has_item)
    values = np.full((len(table), len(output.model_labels)), np.nan, dtype=np.float32)
    lengths = np.zeros(len(table), np.int32)
    values[rows], lengths[rows] = answers.values, answers.lengths
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        written = values.astype(np.float16) if output.float16 else values
    missing = ~np.isfinite(written).all(axis=1)
    faults = table[BAD].to_pylist() if BAD in table.schema.names else []
    bad = {i: json.loads(fault) for i, fault in enumerate(faults) if fault}
    bad |= {int(rows[i]): {"reason": reason} for i, reason in answers.failed.items()}
    for i in rows[missing[rows]]:
        reason = "the text has no tokens or contains one that the model does not know, or its answer is not finite"
        bad.setdefault(int(i), {"reason": reason})
    without_item = table.select(output.text_columns).filter(pa.array(~has_item)).to_pydict().values()
    counts = Counts(
        rows=len(table),
        texts=len(rows),
        texts_without_answer=int(missing[rows].sum()),
        bad_rows=sum(not fault["reason"].startswith(NOTE) for fault in bad.values()),
        rows_removed=sum(any(text and removal(text) for text in texts) for texts in zip(*without_item, strict=True)),
        **answers.token_counts,
    )
    labelled = table.select(output.keep_columns)
    columns = output.to_columns(values, missing)
    if output.token_count:
        columns.append(pa.array(lengths, mask=lengths == 0))
    for name, column in zip(output.new_columns, columns, strict=True):
        labelled = labelled.append_column(name, column)
    listed = json.dumps([{"row": i} | bad[i] for i in sorted(bad)])
    return labelled.replace_schema_metadata({BAD_ROWS: listed} if bad else None), counts
