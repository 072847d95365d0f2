"""What a job will take, before it runs: rows, hours and gigabytes."""

import io
import json
from dataclasses import replace

import numpy as np

from bench.label.output import first_bad, write_rows
from bench.label.plan import LabelPlan
from bench.label.rows import BAD_ROWS, Answers, Counts, OutputSpec, label_table, texts_of
from bench.label.splits import InputSplit
from bench.timing import time_words
from utils import UserError, say

SAMPLE_ROWS = 10_000  # the first of the job, that stand for all


def say_estimate(splits: list[InputSplit], output: OutputSpec, plan: LabelPlan, measuring: str) -> None:
    """Says how many rows and texts there are, how long they take as planned, and how large the output will be.

    Numbers of rows are exact for Parquet, and estimated from the heads of other files. Sizes are those of the first
    rows with scores drawn evenly from 0 to 1: real ones take as much, but where --min-score leaves many out.
    `measuring`: the command that would tell how long it takes, if there is one.
    """
    rows, files = sum(split.estimate_rows() for split in splits), len({one.file for one in splits})
    counts, bytes_of_sample, bad = label_sample(splits, output)
    if not counts.rows:
        raise UserError("the input has no rows")
    texts, size = rows * counts.texts / counts.rows, rows * bytes_of_sample / counts.rows
    say(f"rows       about {rows:,} in {files:,} files, about {texts:,.0f} of them with text")
    if bad:
        say(f"bad rows   {counts.bad:,} of the first {counts.rows:,}, such as {bad}")
    say(f"columns    {', '.join([*output.columns, *output.added])}")
    say(f"output     about {size_words(size)}, in parts of {output.rows:,} rows")
    if plan.speed:
        words = f"about {time_words(texts / plan.speed)}, and a minute or two to load and to compare"
        say(f"time       {words}: {plan.speed:,.1f} messages/s by {plan}")
        return
    say(f"time       not known: nothing was measured of {plan}" + "; this measures it:" * bool(measuring))
    if measuring:
        say(f"           {measuring}")


def size_words(size: float) -> str:
    """Says how many bytes there are, in GB, MB or kB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.3g} {name}"


def label_sample(splits: list[InputSplit], output: OutputSpec) -> tuple[Counts, int, str]:
    """Returns (what is counted of the first rows, the bytes of a part with made-up scores of them, a bad row)."""
    parts = (next(split.read(replace(output, rows=SAMPLE_ROWS))) for split in splits)
    table = next((part.table for part in parts if len(part.table)), output.schema.empty_table())
    random, file = np.random.default_rng(0), io.BytesIO()
    texts = texts_of(table, output)
    scores = random.random((len(texts), len(output.labels)), np.float32)
    answers = Answers(scores, np.array([len(text) for text in texts], int))
    labelled, counts = label_table(table, answers, output)
    write_rows(labelled, file)
    bad = json.loads((labelled.schema.metadata or {}).get(BAD_ROWS, b"[]"))
    return counts, file.tell(), first_bad({"": bad})
