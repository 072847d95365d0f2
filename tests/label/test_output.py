"""Parts: which rows are in them, and which columns are added."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.label.rows import Answers, Counts, OutputSpec, label_table
from bench.label.run import advance, progress_bar
from bench.label.splits import cut_splits, file_key
from bench.tables.items import items_of
from bench.tables.readers import open_table
from bench.tables.storage import locate

ROWS = 23


def output(**changes) -> OutputSpec:
    schema = pa.schema([("id", pa.string()), ("body", pa.string())])
    options = {"schema": schema, "text_columns": ["body"], "keep_columns": ["id"], "rows_per_file": 7}
    return OutputSpec(**options | {"model_labels": ["a", "b"], "labels": ["a", "b"]} | changes)


@pytest.fixture
def tables(tmp_path):
    """A CSV and a Parquet file of several row groups: rows 0 to 68 in order."""
    rows = pd.DataFrame({"id": map(str, range(3 * ROWS)), "body": ["two\nlines, and a comma"] * (3 * ROWS)})
    rows[:ROWS].to_csv(tmp_path / "a.csv", index=False)
    rows[ROWS:].to_parquet(tmp_path / "b.parquet", index=False, row_group_size=5)
    return [open_table(tmp_path / name) for name in ("a.csv", "b.parquet")]


@given(rows=st.integers(1, 80), limit=st.none() | st.integers(1, 80), there=st.sets(st.integers(0, 30)))
def test_splits_cover_all_rows_in_order_and_read_only_the_missing_parts(tables, rows, limit, there, tmp_path):
    spec = output(rows_per_file=rows, limit=limit)
    splits = cut_splits(tables, spec, locate(tmp_path))
    made = [part for split in splits for part in split.read(spec)]
    wanted = min(limit or 3 * ROWS, 3 * ROWS)
    assert [int(name) for part in made for name in part.table["id"].to_pylist()] == list(range(wanted))
    assert all(len(part.table) == rows for part in made if not part.last)
    assert sum(part.last for part in made) == len(splits)
    assert sorted(part.name for part in made) == [part.name for part in made]
    assert sum(split.estimate_rows() for split in splits) == pytest.approx(wanted, abs=1)
    names = {made[i].name for i in there if i < len(made)}
    again = [part for split in splits for part in split.read(spec, existing=names)]
    assert [(part.name, part.table) for part in again] == [
        (part.name, part.table) for part in made if part.name not in names
    ]


def test_a_split_of_parquet_is_whole_row_groups_and_reads_no_others(tables, tmp_path):
    """Row groups have 5 rows, so two of them fill a part of 7."""
    spec = output(rows_per_file=7)
    splits = cut_splits(tables, spec, locate(tmp_path))
    a, b = file_key("a.csv"), file_key("b.parquet")
    assert [(one.file, one.first, one.rows) for one in splits] == [
        (a, 0, None),
        *[(b, first, 10) for first in range(0, 40, 10)],
        (b, 40, 6),
    ]
    assert [rows.skipped for rows in tables[1].rows(spec.schema, skip=12)][:2] == [10, 0]
    sizes = [[len(part.table) for part in split.read(spec)] for split in splits]
    assert sizes == [[7, 7, 7, 2], *[[7, 3]] * 4, [6]]


def test_without_a_terminal_there_is_a_line_per_minute(monkeypatch, capfd):
    seconds = iter([0.0, 30.0, 61.0, 100.0, 122.0])
    now = next(seconds)
    with progress_bar(total=10_000, done=1000) as bar:
        monkeypatch.setattr(bar, "_time", lambda: now)
        bar.start_t = bar.last_print_t = now
        for done, now in zip((1000, 1610, 2000, 2220), seconds, strict=True):  # noqa: B007
            bar.update(done - bar.n)
        lines = capfd.readouterr().err.splitlines()
    assert [re.findall(r"\d[\d,.:]*\d", line) for line in lines] == [
        ["1,610", "10,000", "10.00", "13:59"],  # rows done, rows in total, rows/s of this run, time left
        ["2,220", "10,000", "10.00", "12:58"],
    ]


def test_more_rows_than_estimated_are_shown(monkeypatch, capfd):
    seconds = iter([0.0, 61.0, 122.0, 183.0])
    now = next(seconds)
    with progress_bar(total=0, done=0) as bar:
        monkeypatch.setattr(bar, "_time", lambda: now)
        bar.start_t = bar.last_print_t = now
        for done, now in zip((20, 30, 40), seconds, strict=True):  # noqa: B007
            advance(bar, done)
    assert [line.split(",")[0].split()[1:5] for line in capfd.readouterr().err.splitlines()][-1][0] == "40"


def test_a_row_without_text_or_answer_has_nulls():
    table = pa.table({"id": [1, 2, 3, 4], "body": ["x", None, " ", "y"]})
    answers = np.array([[0.25, 0.75], [np.nan, 0.5]], dtype=np.float32)
    items = ["x", None, None, "y"]
    given = Answers(answers, np.array([4, 5]), {"tokens": 9, "texts_truncated": 1, "tokens_lost": 4})
    found, counts = label_table(table, items, given, output())
    assert counts == Counts(4, 2, texts_without_answer=1, tokens=9, texts_truncated=1, tokens_lost=4, bad_rows=1)
    assert counts + counts == Counts(8, 4, 0, 2, 18, 2, 8, 2)
    assert found.schema.names == ["id", "a", "b"] and found.schema.types[1:] == [pa.float32()] * 2
    assert found.to_pylist()[0] == {"id": 1, "a": 0.25, "b": 0.75}
    assert found["a"].to_pylist()[1:] == found["b"].to_pylist()[1:] == [None] * 3
    top, _ = label_table(table, items, Answers(answers, np.array([4, 5])), output(top_label=True, keep_columns=[]))
    assert top.to_pylist() == [{"label": "b", "score": 0.75}] + [{"label": None, "score": None}] * 3


def test_columns_become_answers_again_as_far_as_they_allow():
    """What was not written is taken from the reference: below the top label's score, or not above the minimum."""
    reference = np.array([[0.2, 0.7], [0.6, 0.4], [0.3, 0.1]])
    top = pa.table({"label": ["b", "b", None], "score": [0.75, 0.5, None]})
    answers = output(top_label=True).to_answers(top, reference)
    assert answers[0].tolist() == [0.2, 0.75] and list(answers[:2].argmax(axis=1)) == [1, 1]
    assert answers[1, 1] == 0.5 and answers[1, 0] == pytest.approx(0.5) and np.isnan(answers[2]).all()
    high = pa.table({"a": [None, 0.6, None], "b": [0.7, None, None]})
    answers = output(min_score=0.25).to_answers(high, reference)
    assert answers.tolist() == [[0.2, 0.7], [0.6, 0.25], [0.25, 0.1]]


def test_an_item_may_be_the_texts_of_several_columns():
    table = pa.table({"id": [1, 2, 3], "body": ["x", "y", "z"], "title": ["a", None, "[deleted]"]})
    spec = output(text_columns=["title", "body"])
    items = items_of(table, spec.text_columns)
    assert items == [("a", "x"), None, None]
    labelled, counts = label_table(table, items, Answers(np.array([[0.25, 0.75]]), np.array([2])), spec)
    assert labelled["b"].to_pylist() == [0.75, None, None]
    assert counts == Counts(rows=3, texts=1, rows_removed=1)
