"""Input files in chunks, and what is added to them."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from bench.parts import Layout, common_schema, estimate_rows, find_files, label_table, read_parts, schema_of

ROWS = 23


def layout(**changes) -> Layout:
    schema = pa.schema([("id", pa.string()), ("body", pa.string())])
    same = {"schema": schema, "columns": ["id"], "column": "body", "labels": ["a", "b"]}
    same |= {"top": False, "rows": 7, "limit": None}
    return Layout(**same | changes)


@pytest.fixture
def files(tmp_path):
    """A CSV, an empty CSV, a CSV.gz and two Parquet files, one of several row groups: rows 0 to 114 in order."""
    rows = pd.DataFrame({"id": map(str, range(5 * ROWS)), "body": ["two\nlines, and a comma"] * (5 * ROWS)})
    rows[:ROWS].to_csv(tmp_path / "a.csv", index=False)
    rows[:0].to_csv(tmp_path / "b.csv", index=False)
    rows[ROWS : 2 * ROWS].to_csv(tmp_path / "c.CSV.gz", index=False, compression="gzip")
    rows[2 * ROWS : 4 * ROWS].to_parquet(tmp_path / "d.parquet", index=False, row_group_size=5)
    rows[4 * ROWS :].to_parquet(tmp_path / "e.PARQUET", index=False)
    (tmp_path / "notes.txt").write_text("no table")
    return find_files(tmp_path)


def ids(tables) -> list[int]:
    return [int(name) for table in tables for name in table["id"].to_pylist()]


@given(skip=st.integers(0, 120), rows=st.integers(1, 130), limit=st.none() | st.integers(1, 130))
def test_parts_are_the_rows_behind_what_is_done_in_their_order(files, skip, rows, limit):
    made = list(read_parts(files, layout(rows=rows, limit=limit), skip))
    assert ids(made) == list(range(min(limit or 5 * ROWS, 5 * ROWS)))[skip:]
    assert all(len(table) == rows for table in made[:-1])


def test_rows_are_counted_or_estimated(files, tmp_path):
    assert [estimate_rows(file) for file in files] == [ROWS, 0, ROWS, 2 * ROWS, ROWS]
    large = pd.DataFrame({"body": ["a text of some words " * 5] * 60_000})
    large.to_csv(tmp_path / "large.csv", index=False)
    with gzip.open(tmp_path / "large.csv.gz", "wb", compresslevel=0) as file:
        file.write((tmp_path / "large.csv").read_bytes())
    for name in ("large.csv", "large.csv.gz"):
        assert estimate_rows(tmp_path / name) == pytest.approx(60_000, rel=0.02)


def test_files_that_are_no_tables_are_refused(tmp_path):
    for name, content in {"a.csv": b"id,id\n1,2\n", "a.parquet": b"PAR1", "a.csv.gz": b"no gzip", "b.csv": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(schema_of, tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "nor a folder" in refused(find_files, tmp_path / "empty")
    assert "nor a folder" in refused(find_files, tmp_path / "none.csv")


def test_the_types_of_all_files_are_made_one_before_anything_is_read(tmp_path):
    tables = {"a": ([1, 2], ["x", "y"]), "b": ([0.5, 1.5], [None, None]), "c": (["one", "two"], ["x", "y"])}
    files = [tmp_path / f"{name}.parquet" for name in tables]
    for file, (ids, bodies) in zip(files, tables.values(), strict=True):
        pq.write_table(pa.table({"id": ids, "body": bodies}), file)
    schema = common_schema(files[:2], ["id", "body"], "body")
    assert schema.types == [pa.float64(), pa.string()]
    made = list(read_parts(files[:2], layout(schema=schema, rows=2), 0))
    assert [table.schema for table in made] == [schema] * 2 and made[0]["id"].to_pylist() == [1.0, 2.0]
    assert "c.parquet: a column is of another type" in refused(common_schema, files, ["id", "body"], "body")
    assert "column 'id' is not text, it is int64" in refused(common_schema, files[:1], ["id", "body"], "id")


def test_text_that_is_not_utf_8_is_refused_with_its_file(tmp_path):
    broken = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"id": ["1"], "body": broken}), tmp_path / "a.parquet")
    assert "a.parquet can't be read" in refused(list, read_parts([tmp_path / "a.parquet"], layout(), 0))


def test_a_row_without_text_or_answer_has_nulls():
    table = pa.table({"id": [1, 2, 3, 4], "body": ["x", None, " ", "y"]})
    answers = np.array([[0.25, 0.75], [np.nan, 0.5]], dtype=np.float32)
    found, counts = label_table(table, lambda texts: (answers, len(texts)), layout())
    assert list(counts) == [2, 2, 1]
    assert found.schema.names == ["id", "a", "b"] and found.schema.types[1:] == [pa.float32()] * 2
    assert found.to_pylist()[0] == {"id": 1, "a": 0.25, "b": 0.75}
    assert found["a"].to_pylist()[1:] == found["b"].to_pylist()[1:] == [None] * 3
    top, _ = label_table(table, lambda texts: (answers, len(texts)), layout(top=True, columns=[]))
    assert top.to_pylist() == [{"label": "b", "score": 0.75}] + [{"label": None, "score": None}] * 3
