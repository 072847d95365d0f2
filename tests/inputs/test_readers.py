"""Files in every format: their rows in order, how many there are, and what is refused."""

import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from bench.inputs.readers import common_schema, find_files, open_table, read_all

ROWS = 23
SCHEMA = pa.schema([("id", pa.string()), ("body", pa.string())])


@pytest.fixture
def tables(tmp_path):
    """A file of each format, an empty CSV, and Parquet of several row groups: rows 0 to 137 in order."""
    rows = pd.DataFrame({"id": map(str, range(6 * ROWS)), "body": ["two\nlines, and a comma"] * (6 * ROWS)})
    rows[:ROWS].to_csv(tmp_path / "a.csv", index=False)
    rows[:0].to_csv(tmp_path / "b.csv", index=False)
    rows[ROWS : 2 * ROWS].to_csv(tmp_path / "c.CSV.gz", index=False, compression="gzip")
    rows[2 * ROWS : 4 * ROWS].to_parquet(tmp_path / "d.parquet", index=False, row_group_size=5)
    rows[4 * ROWS : 5 * ROWS].to_parquet(tmp_path / "e.PARQUET", index=False)
    rows[5 * ROWS :].to_json(tmp_path / "f.zst", orient="records", lines=True, compression="zstd")
    (tmp_path / "notes.txt").write_text("no table")
    return [open_table(file) for file in find_files(tmp_path)]


@given(skip=st.integers(0, 150))
def test_rows_come_in_their_order_behind_what_is_skipped(tables, skip):
    ids = [int(name) for rows in read_all(tables, SCHEMA, skip) for name in rows["id"].to_pylist()]
    assert ids == list(range(6 * ROWS))[skip:]


def test_rows_are_counted_or_estimated(tables, tmp_path):
    assert [table.estimate_rows() for table in tables] == [ROWS, 0, ROWS, 2 * ROWS, ROWS, ROWS]
    large = pd.DataFrame({"body": ["a text of some words " * 5] * 60_000})
    large.to_csv(tmp_path / "large.csv", index=False)
    with gzip.open(tmp_path / "large.csv.gz", "wb", compresslevel=0) as file:
        file.write((tmp_path / "large.csv").read_bytes())
    large.to_json(tmp_path / "large.zst", orient="records", lines=True, compression="zstd")
    for name in ("large.csv", "large.csv.gz", "large.zst"):
        assert open_table(tmp_path / name).estimate_rows() == pytest.approx(60_000, rel=0.02)


def test_files_that_are_no_tables_are_refused(tmp_path):
    contents = {"a.csv": b"id,id\n1,2\n", "a.parquet": b"PAR1", "a.csv.gz": b"no gzip", "b.csv": b"", "a.txt": b"body"}
    for name, content in (contents | {"a.zst": b"no zstandard", "b.zst": b""}).items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(open_table, tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "nor a folder" in refused(find_files, tmp_path / "empty")
    assert "nor a folder" in refused(find_files, tmp_path / "none.csv")


def test_the_types_of_all_files_are_made_one_before_anything_is_read(tmp_path):
    columns = {"a": ([1, 2], ["x", "y"]), "b": ([0.5, 1.5], [None, None]), "c": (["one", "two"], ["x", "y"])}
    for name, (ids, bodies) in columns.items():
        pq.write_table(pa.table({"id": ids, "body": bodies}), tmp_path / f"{name}.parquet")
    tables = [open_table(tmp_path / f"{name}.parquet") for name in columns]
    schema = common_schema(tables[:2], ["id", "body"], "body")
    assert schema.types == [pa.float64(), pa.string()]
    found = list(read_all(tables[:2], schema))
    assert [rows.schema for rows in found] == [schema] * 2 and found[0]["id"].to_pylist() == [1.0, 2.0]
    assert "c.parquet: a column is of another type" in refused(common_schema, tables, ["id", "body"], "body")
    assert "column 'id' is not text, it is int64" in refused(common_schema, tables[:1], ["id", "body"], "id")


def test_text_that_is_not_utf_8_is_refused_with_its_file(tmp_path):
    pq.write_table(pa.table({"body": pa.array([b"\xff"]).view(pa.string())}), tmp_path / "a.parquet")
    tables = [open_table(tmp_path / "a.parquet")]
    assert "a.parquet can't be read" in refused(list, read_all(tables, tables[0].schema))


def write_json_lines(path, lines: list[bytes]):
    path.write_bytes(zstandard.compress(b"\n".join(lines)))
    return open_table(path)


def test_scalars_of_json_lines_are_columns_of_their_type(tmp_path):
    first = {"id": "a", "score": 1, "gilded": True, "ratio": 1, "awards": [1], "flair": None}
    lines = [json.dumps(row).encode() for row in (first, {"id": "b", "ratio": 0.5})]
    table = write_json_lines(tmp_path / "a.zst", lines)
    kinds = {"id": "string", "score": "int64", "gilded": "bool", "ratio": "double", "flair": "string"}
    assert dict(zip(table.schema.names, map(str, table.schema.types), strict=True)) == kinds
    [found] = read_all([table], table.schema)
    assert found.to_pylist() == [
        {"id": "a", "score": 1, "gilded": True, "ratio": 1.0, "flair": None},
        {"id": "b", "score": None, "gilded": None, "ratio": 0.5, "flair": None},
    ]


def test_a_bad_line_of_json_is_named_with_its_number(tmp_path):
    good, only_id = b'{"id": "a"}', SCHEMA.remove(1)
    for bad, words in ((b'{"id": ', "not JSON"), (b"[1]", "no object with"), (b'{"id": 7}', "no object with")):
        table = write_json_lines(tmp_path / "a.zst", [good, b"", good, bad, good])
        [rows] = table.rows(only_id)
        assert rows.table["id"].to_pylist() == ["a", "a", None, "a"] and list(rows.bad) == [2]
        assert f"a.zst can't be read: line 4: {words}" in refused(list, read_all([table], only_id))
        assert len(list(read_all([table], only_id, skip=3))) == 1
