"""Rows of the input -> rows of the output: what is added, and what is counted."""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from bench.tables.items import has_text, removal
from bench.tables.readers import BAD

BAD_ROWS = b"bad_rows"  # the key, in a schema's metadata, of what is known of the bad rows
DEAD = "a worker failed on it"  # how the reason of such a text begins


@dataclass(frozen=True)
class OutputSpec:
    """What is in the parts.

    schema: of the columns that are read, in all files; columns: which are copied; text_column; labels: the model's;
    written: those that get a column; top_label: whether the best of all is written instead; half: whether scores are
    float16; min_score: below which a score is null, None for never; prefix: what the names of the new columns begin
    with; rows: of a part; limit: of the rows in all, None for no limit; long: what becomes of texts that are longer
    than the model takes, see LONG_TEXTS; token_count: whether each text's number of tokens is written, too;
    job: the digest of the job that they are of.
    """

    schema: pa.Schema
    columns: list[str]
    text_column: str
    labels: list[str]
    written: list[str]
    top_label: bool
    half: bool
    min_score: float | None
    prefix: str
    rows: int
    limit: int | None
    long: str = "cut"
    token_count: bool = False
    job: str = ""

    @property
    def scored(self) -> list[str]:
        """The names of the new columns that say what the model says."""
        return [self.prefix + name for name in (["label", "score"] if self.top_label else self.written)]

    @property
    def added(self) -> list[str]:
        """The names of all new columns."""
        return self.scored + [self.prefix + "tokens"] * self.token_count

    @property
    def places(self) -> list[int]:
        """Which of the model's labels are written."""
        return [self.labels.index(name) for name in self.written]


@dataclass(frozen=True)
class Counts:
    """What is counted of a part, and kept in its file.

    rows; texts: rows that have a text; removed: rows that only say that a comment is gone; no_answer: texts that have
    nulls all the same; tokens: that the model got; truncated: texts that are longer than it takes, lost: their tokens
    that were cut off; bad: rows that could not be read or answered.
    """

    rows: int = 0
    texts: int = 0
    no_answer: int = 0
    tokens: int = 0
    truncated: int = 0
    lost: int = 0
    bad: int = 0
    removed: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Answers:
    """What the model says of texts: `probs` [texts, labels], nan without an answer; their `lengths` in tokens.

    tokens: the Counts of tokens; dead: number of a text -> why it has no answer, if a worker failed on it.
    """

    probs: np.ndarray
    lengths: np.ndarray
    tokens: dict[str, int] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)


def texts_of(table: pa.Table, output: OutputSpec) -> list[str]:
    """Returns the texts of the rows that have one."""
    return [value for value in table[output.text_column].to_pylist() if has_text(value)]


def label_table(table: pa.Table, answers: Answers, output: OutputSpec) -> tuple[pa.Table, Counts]:
    """Returns (the `columns` of a table and what the model says of its texts, what is counted).

    `answers`: of texts_of(table). That is a column for each label that is written, or with `top_label` the best `label`
    and its `score`, float32 or float16; nulls where there is no text. Without an answer are texts that have no token,
    and those of which the model says something that is not finite; they have nulls, too. These and the rows that can't
    be read are named in the metadata of the schema, under BAD_ROWS.
    """
    values = table[output.text_column].to_pylist()
    full = np.array([i for i, value in enumerate(values) if has_text(value)], dtype=int)
    probs = np.full((len(table), len(output.labels)), np.nan, dtype=np.float32)
    lengths = np.zeros(len(table), np.int32)
    probs[full], lengths[full] = answers.probs, answers.lengths
    unread = table[BAD].to_pylist() if BAD in table.schema.names else []
    bad = {i: json.loads(why) for i, why in enumerate(unread) if why}
    bad |= {int(full[i]): {"reason": why} for i, why in answers.dead.items()}
    missing = ~np.isfinite(probs).all(axis=1)
    for i in full[missing[full]]:
        bad.setdefault(int(i), {"reason": "the text has no token that the model knows, or a score that is not finite"})
    removed = sum(value is not None and removal(value) is not None for value in values)
    counts = Counts(len(table), len(full), int(missing[full].sum()), bad=len(bad), removed=removed, **answers.tokens)
    found = table.select(output.columns)
    columns = new_columns(probs, missing, output)
    if output.token_count:
        columns.append(pa.array(lengths, mask=lengths == 0))
    for name, values in zip(output.added, columns, strict=True):
        found = found.append_column(name, values)
    places = json.dumps([{"row": i} | bad[i] for i in sorted(bad)])
    return found.replace_schema_metadata({BAD_ROWS: places} if bad else None), counts


def new_columns(probs: np.ndarray, missing: np.ndarray, output: OutputSpec) -> list[pa.Array]:
    """Returns what is added for probabilities [rows, labels]; nulls where they are `missing`."""
    kind = np.float16 if output.half else np.float32
    if not output.top_label:
        least = -np.inf if output.min_score is None else output.min_score
        columns = [probs[:, i] for i in output.places]
        return [pa.array(column.astype(kind), mask=missing | (column < least)) for column in columns]
    best = np.where(missing, 0, probs.argmax(axis=1))
    names = pa.array([output.labels[i] for i in best], pa.string(), mask=missing)
    return [names, pa.array(probs[np.arange(len(probs)), best].astype(kind), mask=missing)]
