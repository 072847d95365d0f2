"""Files of every format: the order and number of their rows, their types, and files that are refused."""

import gzip
import json
import os
from dataclasses import replace
from datetime import date, datetime, time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from bench.tables.folders import TIMESTAMP_UNITS, WIDENING, common_schema, find_files, nested_columns, open_tables
from bench.tables.format_csv import Csv
from bench.tables.format_json_lines import NOT_AN_OBJECT, NOT_JSON
from bench.tables.format_parquet import read_metadata
from bench.tables.readers import BAD, open_table, read_all
from bench.tables.storage import locate
from utils import RunError

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
def test_rows_are_in_order_after_the_skipped_ones(tables, skip):
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


def test_invalid_files_are_refused(tmp_path):
    contents = {"a.csv": b"id,id\n1,2\n", "a.parquet": b"PAR1", "a.csv.gz": b"no gzip", "b.csv": b"", "a.txt": b"body"}
    for name, content in (contents | {"a.zst": b"no zstandard", "b.zst": b""}).items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(open_table, tmp_path / name)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none.csv", "a.txt"):
        assert str(tmp_path / name) in refused(find_files, tmp_path / name)


def test_files_with_different_types_get_a_common_schema(tmp_path):
    columns = {"a": ([1, 2], ["x", "y"]), "b": ([0.5, 1.5], [None, None]), "c": (["one", "two"], ["x", "y"])}
    for name, (ids, bodies) in columns.items():
        pq.write_table(pa.table({"id": ids, "body": bodies}), tmp_path / f"{name}.parquet")
    tables = [open_table(tmp_path / f"{name}.parquet") for name in columns]
    schema = common_schema(tables[:2], ["id", "body"], ["body"])
    assert schema.types == [pa.string(), pa.string()]  # a double holds no whole number above 2**53
    result = list(read_all(tables[:2], schema))
    assert [rows.schema for rows in result] == [schema] * 2 and result[0]["id"].to_pylist() == ["1", "2"]
    assert common_schema(tables, ["id", "body"], ["body"]).types == [pa.string(), pa.string()]
    pq.write_table(pa.table({"id": [["a"]], "body": ["x"]}), tmp_path / "d.parquet")
    tables.append(open_table(tmp_path / "d.parquet"))
    message = refused(common_schema, tables, ["id", "body"], ["body"])
    for named in ("column 'id'", "int64", "double", "string", "list<element: string>", "--keep-columns"):
        assert named in message
    message = refused(common_schema, tables[:1], ["id", "body"], ["id"])
    assert "column 'id'" in message and "int64" in message and "--column" in message


def test_every_format_gives_the_same_rows(tmp_path):
    rows = pd.DataFrame({"id": ["1", "2"], "body": ["two\nlines, a comma", "a\ttab"]})
    for end in ("csv", "tsv", "TSV", "jsonl", "ndjson"):
        for packed, compression in (("", None), (".gz", "gzip"), (".zst", "zstd")):
            file = tmp_path / f"a.{end}{packed}"
            if end in ("csv", "tsv", "TSV"):
                rows.to_csv(file, index=False, sep="," if end == "csv" else "\t", compression=compression)
            else:
                rows.to_json(file, orient="records", lines=True, compression=compression)
            table = open_table(file, Csv(quoting="standard"))  # pandas quotes in TSV files, too
            [result] = read_all([table], common_schema([table], ["id", "body"], ["body"]))
            assert result.to_pydict() == rows.to_dict("list"), file
            assert table.estimate_rows() == 2


def test_delimiters_and_encodings(tmp_path):
    rows = pd.DataFrame({"id": ["1", "2"], "body": ["caf\u00e9; half", "na\u00efve"]})
    for encoding in ("cp1252", "utf-16", "utf-8-sig", "utf-8"):
        file = tmp_path / f"{encoding}.csv"
        rows.to_csv(file, index=False, sep=";", encoding=encoding)
        table = open_table(file, Csv(";", "utf-8" if encoding == "utf-8-sig" else encoding))
        [result] = read_all([table], table.schema)
        assert result.to_pydict() == rows.to_dict("list"), encoding
        assert table.estimate_rows() == 2


def test_bad_rows_can_be_set_aside_with_their_lines(tmp_path):
    """Unlike on_bad_lines='skip' in pandas and ignore_errors in polars, which drop the row."""
    (tmp_path / "a.csv").write_bytes(b'id,body\n1,one\n2,a,b\n3,caf\xe9\n4,"a"b\n5,\n6,six\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"id": "7", "body": "x"}\n{"id"\n[1]\n{"id": "\xff"}\n{"id": "8"}\n')
    tables = [open_table(file) for file in find_files(tmp_path)]
    result = pa.concat_tables(read_all(tables, SCHEMA, keep_bad_rows=True)).to_pylist()
    assert [row["id"] for row in result] == ["1", None, None, None, "5", "6", "7", None, None, None, "8"]
    bad = {i: json.loads(row[BAD]) for i, row in enumerate(result) if row[BAD]}
    assert {i: fault["line"] for i, fault in bad.items()} == {1: 3, 2: 4, 3: 5, 7: 2, 8: 3, 9: 4}
    assert "3 fields" in bad[1]["reason"] and bad[7]["reason"] == NOT_JSON
    assert bad[7]["file"] == str(tmp_path / "b.jsonl")


def test_blank_lines_are_rows_if_there_is_one_column(tmp_path):
    pd.DataFrame({"body": ["one", None, "two"]}).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "b.csv").write_text("body\none\n\ntwo\n")
    for name in ("a.csv", "b.csv"):
        table = open_table(tmp_path / name)
        [result] = read_all([table], table.schema)
        assert result["body"].to_pylist() == ["one", "", "two"]


def test_missing_columns_are_null_and_empty_files_are_skipped(tmp_path, capfd):
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    (tmp_path / "b.csv").write_text("body,flair\ny,z\n")
    late = [{"body": "w"}] * 1500 + [{"body": "w", "flair": True}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, late)))
    pq.write_table(pa.table({"body": ["v"], "score": [3]}), tmp_path / "d.parquet")
    for name in ("e.csv", "e.parquet", "e.zst"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(b""))
    tables = open_tables(find_files(tmp_path))
    assert [table.file.name for table in tables] == ["a.csv", "b.csv", "c.jsonl", "d.parquet"]
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and " 4," in err and "e.csv" in err
    schema = common_schema(tables, ["id", "body", "flair", "score"], ["body"])
    result = pa.concat_tables(read_all(tables, schema)).to_pylist()
    nulls = {"id": None, "body": "w", "flair": None, "score": None}
    assert result[:3] == [nulls | {"id": "1", "body": "x"}, nulls | {"body": "y", "flair": "z"}, nulls]
    assert result[-2:] == [nulls | {"flair": "true"}, nulls | {"body": "v", "score": 3}]
    message = refused(common_schema, tables, ["text"], ["text"])
    assert "column 'text'" in message and "--column" in message
    for empty in (["e.csv"], ["e.csv", "e.zst"]):
        assert "e.csv" in refused(open_tables, [locate(tmp_path / name) for name in empty])


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ((pa.int32(), pa.int64()), "int64"),
        ((pa.uint32(), pa.null(), pa.uint8()), "uint32"),
        ((pa.float64(), pa.float32()), "double"),
        ((pa.string(), pa.large_string()), "large_string"),
        ((pa.time32("s"), pa.time64("us")), "time64[us]"),
        ((pa.null(), pa.list_(pa.int8())), "list<element: int8>"),
        ((pa.list_(pa.null()), pa.list_(pa.string())), "list<element: string>"),
        ((pa.struct([("a", pa.int64())]), pa.struct([("b", pa.int8())])), "struct<a: int64, b: int8>"),
        ((pa.timestamp("s"), pa.timestamp("us")), "timestamp[us]"),
        ((pa.timestamp("s", "UTC"), pa.timestamp("ms", "UTC")), "timestamp[ms, tz=UTC]"),
        ((pa.timestamp("us", "UTC"), pa.timestamp("us")), "string"),
        ((pa.decimal128(5, 2), pa.decimal128(8, 4)), "string"),
        ((pa.int32(), pa.float32()), "string"),
        ((pa.uint32(), pa.int32()), "string"),
        *(((pa.int64(), other), "string") for other in (pa.float64(), pa.uint64(), pa.bool_(), pa.decimal128(5, 2))),
        *(((pa.decimal128(25, 2), other), "string") for other in (pa.float64(), pa.float32(), pa.string())),
        ((pa.timestamp("us"), pa.timestamp("ns")), "string"),
        ((pa.date32(), pa.timestamp("us")), "string"),
        ((pa.list_(pa.int64()), pa.list_(pa.float64())), None),
        ((pa.list_(pa.uint64()), pa.list_(pa.int64())), None),
        ((pa.struct([("a", pa.int64())]), pa.struct([("a", pa.float64())])), None),
        ((pa.binary(), pa.string()), None),
        ((pa.binary(), pa.int64()), None),
        ((pa.duration("s"), pa.duration("ns")), None),
    ],
)
def test_a_column_with_several_types_gets_a_common_type_or_is_refused(kinds, common, tmp_path):
    """Before anything is read, so that no value is rounded and none stops a job halfway."""
    for number, kind in enumerate(kinds):
        empty = pa.table({"x": pa.array([], kind), "body": pa.array([], pa.string())})
        pq.write_table(empty, tmp_path / f"{number}.parquet")
    tables = open_tables(find_files(tmp_path))
    if common:
        assert str(common_schema(tables, ["x", "body"], ["body"]).field("x").type) == common
    else:
        message = refused(common_schema, tables, ["x", "body"], ["body"])
        assert "column 'x'" in message and "--keep-columns" in message


@pytest.mark.parametrize("types", [*WIDENING, [pa.timestamp(unit) for unit in TIMESTAMP_UNITS]], ids=str)
def test_wider_types_hold_the_extremes_of_narrower_ones(types):
    for i, narrow in enumerate(types):
        for wide in types[i:]:
            values = pa.array(extremes(narrow), narrow)
            assert values.cast(wide).cast(narrow).equals(values), (narrow, wide)


def extremes(kind: pa.DataType) -> list:
    if pa.types.is_floating(kind):
        limits = np.finfo(kind.to_pandas_dtype())
        return [limits.max, -limits.max, limits.smallest_subnormal, 1 - limits.epsneg, np.inf]
    if pa.types.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        return [int(limits.min), int(limits.max)]
    if pa.types.is_time(kind):
        return [time.min, time.max.replace(microsecond=999_000 if "ms" in str(kind) else 0)]
    if pa.types.is_temporal(kind):
        return [datetime.min, datetime.max.replace(microsecond=0)] if "timestamp" in str(kind) else [date.min, date.max]
    return [b"\xff\x00", b""] if "binary" in str(kind) else ["\U0010ffff", ""]


def test_json_is_parsed_as_the_common_type(tmp_path):
    late = [{"body": "w", "x": 1, "y": None}] * 1000 + [{"body": "w", "x": "007", "y": 5}, {"body": "w", "x": "1.0"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, late)))
    (tmp_path / "b.csv").write_text("x,body\n1e3,v\n")
    pq.write_table(pa.table({"body": ["u"], "when": [pd.Timestamp("2024-01-02")], "y": [2.5]}), tmp_path / "c.parquet")
    tables = open_tables(find_files(tmp_path))
    schema = common_schema(tables, ["body", "x", "y", "when"], ["body"])
    result = pa.concat_tables(read_all(tables, schema)).to_pylist()
    nulls = {"x": None, "y": None, "when": None}
    assert result[999] == nulls | {"body": "w", "x": "1"}
    assert result[1000:1002] == [nulls | {"body": "w", "x": "007", "y": 5.0}, nulls | {"body": "w", "x": "1.0"}]
    assert result[1002:] == [
        nulls | {"body": "v", "x": "1e3"},
        nulls | {"body": "u", "y": 2.5, "when": pd.Timestamp("2024-01-02")},
    ]


def test_sub_folders_are_read_in_order_and_become_columns(tmp_path):
    """Like hive partitioning in pyarrow."""
    for month in ("12", "03"):
        folder = tmp_path / "year=2024" / f"month={month}"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text(f'{{"body": "in {month}"}}\n')
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.csv").write_text("x\n")
    tables = [open_table(file, root=locate(tmp_path)) for file in find_files(tmp_path)]
    columns = ["body", "year", "month"]
    result = pa.concat_tables(read_all(tables, common_schema(tables, columns, ["body"]))).to_pylist()
    assert result == [{"body": f"in {month}", "year": "2024", "month": month} for month in ("03", "12")]


def test_text_in_parquet_that_is_not_utf_8_is_bad(tmp_path):
    pq.write_table(pa.table({"body": pa.array([b"\xff"]).view(pa.string())}), tmp_path / "a.parquet")
    tables = [open_table(tmp_path / "a.parquet")]
    assert "a.parquet" in (message := refused(list, read_all(tables, tables[0].schema))) and "line 1" in message
    kinds = (pa.string(), pa.binary()), (pa.large_string(), pa.large_binary()), (pa.string_view(), pa.binary_view())
    for kind, binary in kinds:
        bodies = pa.array([b"one", b"caf\xe9", None, "caf\u00e9".encode()], binary)
        bodies = pa.Array.from_buffers(kind, 4, bodies.buffers())
        pq.write_table(pa.table({"id": [1, 2, 3, 4], "body": bodies}), tmp_path / "a.parquet", row_group_size=1)
        tables = [open_table(tmp_path / "a.parquet")]
        result = pa.concat_tables(read_all(tables, tables[0].schema, keep_bad_rows=True)).to_pylist()
        assert [row["body"] for row in result] == ["one", None, None, "caf\u00e9"]
        assert [row["id"] for row in result] == [1, 2, 3, 4]
        assert json.loads(result[1][BAD])["line"] == 2 and "'body'" in result[1][BAD] and "0xe9" in result[1][BAD]
        assert [bool(row[BAD]) for row in result] == [False, True, False, False]
    texts = pa.array([b"caf\xe9", b"y", b"z"]).view(pa.string())
    nested = pa.ListArray.from_arrays([0, 1, 2, 3], texts), pa.StructArray.from_arrays([texts], ["a"])
    pq.write_table(pa.table({"list": nested[0], "struct": nested[1]}), tmp_path / "a.parquet")
    tables = [open_table(tmp_path / "a.parquet")]
    result = pa.concat_tables(read_all(tables, tables[0].schema, keep_bad_rows=True)).to_pylist()
    assert [(row["list"], row["struct"]) for row in result] == [(None, None), (["y"], {"a": "y"}), (["z"], {"a": "z"})]
    assert [bool(row[BAD]) for row in result] == [True, False, False]


def write_json_lines(path, lines: list[bytes]):
    path.write_bytes(zstandard.compress(b"\n".join(lines)))
    return open_table(path)


def test_json_scalars_become_typed_columns(tmp_path, capfd):
    first = {"id": "a", "score": 1, "gilded": True, "ratio": 1, "awards": [1], "flair": None, "edited": False}
    lines = [json.dumps(row).encode() for row in (first, {"id": "b", "ratio": 0.5, "edited": 1.5})]
    table = write_json_lines(tmp_path / "a.zst", lines)
    kinds = {
        "id": "string",
        "score": "int64",
        "gilded": "bool",
        "ratio": "double",
        "flair": "null",
        "edited": "string",
    }
    assert dict(zip(table.schema.names, map(str, table.schema.types), strict=True)) == kinds
    [result] = read_all([table], table.schema)
    assert result.to_pylist() == [
        {"id": "a", "score": 1, "gilded": True, "ratio": 1.0, "flair": None, "edited": "false"},
        {"id": "b", "score": None, "gilded": None, "ratio": 0.5, "flair": None, "edited": "1.5"},
    ]
    assert nested_columns([table, table]) == ["awards"]


def test_quoted_numbers_must_be_written_as_in_json(tmp_path):
    """Anything else makes the row bad, instead of changing the value."""
    first = {"body": "x", "id": 1, "flag": True, "score": 0.5}
    late = {
        "id": ["2", "1e3", "1.0", "007", " 8 ", "1_0", "0x1", "null", "true", True],
        "flag": ["true", "false", 1, "0", "no", "null", "True"],
        "score": ["2.5", "1e3", "3", "nan", "inf", "-Infinity", "1e400", "00.50", "null", True],
    }
    lines = [json.dumps(first)] * 1000
    lines += [json.dumps(first | {name: value}) for name, values in late.items() for value in values]
    table = write_json_lines(tmp_path / "a.zst", [line.encode() for line in lines])
    rows = pa.concat_tables(read_all([table], table.schema, keep_bad_rows=True)).to_pylist()[1000:]
    assert [row["body"] for row in rows] == ["x"] * len(rows)
    kept = {name: [row[name] for row in rows if not row[BAD] and row[name] != first[name]] for name in late}
    assert kept == {"id": [2], "flag": [False], "score": [2.5, 1000.0, 3.0]}
    assert sum(bool(row[BAD]) for row in rows) == 9 + 5 + 7


def test_mixed_json_columns_become_text_and_later_misfits_null(tmp_path):
    """Pushshift's created_utc is a number in some lines and text in others; pyarrow.json refuses such files."""
    lines = [b'{"id": 1700000000, "score": 1}', b'{"id": "1700000001", "score": 2}', b'{"id": 2.5, "score": "3"}']
    lines += [b'{"id": true, "score": 1.5}', b'{"id": [1], "score": 5}']
    write_json_lines(tmp_path / "head.jsonl.zst", lines[:2])
    table = replace(write_json_lines(tmp_path / "a.zst", lines), schema=open_table(tmp_path / "head.jsonl.zst").schema)
    [rows] = read_all([table], table.schema, keep_bad_rows=True)
    assert rows["id"].to_pylist() == ["1700000000", "1700000001", "2.5", "true", None]
    assert rows["score"].to_pylist() == [1, 2, 3, None, 5]
    reasons = [json.loads(fault)["reason"] for fault in rows[BAD].to_pylist() if fault]
    for reason, named in zip(reasons, (("score", "1.5"), ("id", "[1]")), strict=True):
        assert all(part in reason for part in named)


def test_a_bad_json_line_is_named_by_number(tmp_path):
    good, only_id = b'{"id": "a"}', SCHEMA.remove(1)
    for bad, reason in ((b'{"id": ', NOT_JSON), (b"[1]", NOT_AN_OBJECT)):
        table = write_json_lines(tmp_path / "a.zst", [good, b"", good, bad, good])
        [rows] = table.rows(only_id)
        assert rows.table["id"].to_pylist() == ["a", "a", None, "a"] and rows.bad[2][0] == 4
        message = refused(list, read_all([table], only_id))
        assert "a.zst" in message and f"line 4: {reason}" in message
        assert len(list(read_all([table], only_id, skip=3))) == 1


def test_an_unquoted_line_break_makes_the_row_bad(tmp_path):
    """pandas and DuckDB read two rows (pandas issue 9729, duckdb issue 7196)."""
    file = tmp_path / "a.csv"
    broken = ((b"id,body\n1,one\n2,half a\ntext\n3,x\n", 4, 1), (b"body,id\none,1\nhalf a\ntext,2\n", 3, 1))
    for content, line, fields in (*broken, (b"a,b,c\n1,2\n", 2, 2)):
        file.write_bytes(content)
        table = open_table(file)
        message = refused(list, read_all([table], table.schema))
        assert "a.csv" in message and f"line {line}: {fields} fields" in message
    file.write_bytes(b"id,body,,\n1,one\n2,two,,\n3,three,\n")
    table = open_table(file)
    [rows] = read_all([table], table.schema)
    assert rows.to_pydict() == {"id": ["1", "2", "3"], "body": ["one", "two", "three"]}


def test_an_undecodable_byte_is_named_by_line_far_into_a_file(tmp_path):
    lines = [b'%d,"two\nlines"' % i for i in range(30_000)]
    lines[25_000] = b"25000,caf\xe9"
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"\n".join([b"id,body", *lines]))
    table = open_table(tmp_path / "a.csv.gz")
    message = refused(list, read_all([table], table.schema))
    assert "line 50002: byte 0xe9" in message and "--encoding" in message


def test_a_file_without_modification_time_is_checked_by_what_there_is(monkeypatch, capfd):
    """fsspec's file systems differ, and cache what they have listed."""
    file = locate("fsspec+memory://swiftsure/a.csv")
    filesystem = file.filesystem.handler.fs
    filesystem.pipe("/swiftsure/a.csv", b"body\nx\n")
    [table] = open_tables([file])
    table.check_unchanged()
    assert not capfd.readouterr().err
    filesystem.pipe("/swiftsure/a.csv", b"body\ny\n")
    with pytest.raises(RunError, match=r"a\.csv"):
        table.check_unchanged()
    details = {"name": "/swiftsure/a.csv", "size": 7, "type": "file"}
    monkeypatch.setattr(type(filesystem), "info", lambda *_, **__: details)
    [table] = open_tables([file])
    assert "a.csv" in (err := capfd.readouterr().err) and err.count("\n") == 1
    details["size"] = 8
    with pytest.raises(RunError, match=r"a\.csv"):
        table.check_unchanged()


def write_parquet_of_every_type(path, seed: int):
    day = pd.Timestamp("1999-12-31 23:59:59.999999")
    columns = {
        "body": pa.array([f"text {seed}", None], pa.large_string()),
        "category": pa.array([f"a{seed}", "b"]).dictionary_encode(),
        "number category": pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array([seed, 7])),
        "list": pa.array([[1, seed], None]),
        "struct": pa.array([{"x": 1, "y": "z"}, None]),
        "a.b": pa.array([seed, 2]),
        "binary": pa.array([b"\xff", None]),
        "decimal": pa.array([1, None], pa.decimal128(20, 3)),
        "date": pa.array([day.date(), None]),
        "zoned": pa.array([day, None], pa.timestamp("us", "Europe/Berlin")),
        "half": pa.array([1.5, None], pa.float16()),
        "big": pa.array([2**63, 1], pa.uint64()),
        "null": pa.nulls(2),
        "time": pa.array([day.time(), None]),
    }
    pq.write_table(pa.table(columns), path)
    return columns


def test_every_parquet_type_survives_in_two_files(tmp_path):
    written = [write_parquet_of_every_type(tmp_path / f"{seed}.parquet", seed) for seed in range(2)]
    tables = [open_table(file) for file in find_files(tmp_path)]
    result = pa.concat_tables(read_all(tables, common_schema(tables, tables[0].schema.names, ["body"])))
    for name in written[0]:
        assert result[name].to_pylist() == [value for columns in written for value in columns[name].to_pylist()], name
    assert result["category"].type == pa.string()


def test_int96_timestamps_outside_1677_to_2262_are_correct(tmp_path):
    days = [pd.Timestamp(f"{year}-01-02").to_pydatetime() for year in (1066, 1999, 2999)]
    table = pa.table({"when": pa.array(days, pa.timestamp("us")), "body": ["x"] * 3})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    opened = open_table(tmp_path / "a.parquet")
    [rows] = read_all([opened], opened.schema)
    assert rows["when"].to_pylist() == days


def test_skipped_files_are_reported_and_fifos_are_not_opened(tmp_path, capfd):
    name = os.fsdecode(b"caf\xe9.csv")
    (tmp_path / name).write_text("body\nx\n")
    os.mkfifo(tmp_path / "b.csv")
    (tmp_path / "2024-01").mkdir()
    (tmp_path / "c.csv").mkdir()
    (tmp_path / "_job.json").write_text("{}")
    assert find_files(tmp_path) == [locate(tmp_path / name)]
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and " 1," in err and "b.csv" in err
    assert "b.csv" in refused(find_files, tmp_path / "b.csv")


def test_a_git_lfs_pointer_is_recognized(tmp_path):
    for name in ("a.csv", "a.parquet", "a.csv.gz", "a.zst"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert name in (message := refused(open_table, tmp_path / name)) and "git lfs pull" in message


def test_json_integers_are_exact_or_text_or_bad(tmp_path):
    """pandas and pyarrow would round them to doubles, or stop."""
    mixed = [{"a": 1, "b": 2**53 + 1, "c": 1}, {"a": 1.5, "b": 0.5, "c": 2**63 - 1}]
    later = [{"a": 2**53 + 1, "b": 3, "c": 2**63}, {"a": 2**53, "b": 10**40, "c": -(2**63)}]
    lines = [json.dumps(row | {"body": "x"}).encode() for row in mixed * 500 + later]
    table = write_json_lines(tmp_path / "numbers.zst", lines)
    assert table.schema.types[:3] == [pa.float64(), pa.string(), pa.int64()]
    [result] = read_all([table], table.schema, keep_bad_rows=True)
    last = result.select(["a", "b", "c"]).to_pylist()[-2:]
    assert last == [{"a": None, "b": "3", "c": None}, {"a": float(2**53), "b": str(10**40), "c": -(2**63)}]
    reasons = [json.loads(fault) for fault in result[BAD].to_pylist() if fault]
    assert [(bad["line"], str(2**53 + 1) in bad["reason"]) for bad in reasons] == [(1001, True)]


def test_parquet_metadata_is_read_and_damage_is_a_value_error(tmp_path):
    table = pa.table({"body": ["x", "y"]}).replace_schema_metadata({b"key": b"value"})
    pq.write_table(table, tmp_path / "a.parquet")
    metadata = read_metadata(locate(tmp_path / "a.parquet"))
    assert metadata.num_rows == 2 and metadata.metadata[b"key"] == b"value"
    content = (tmp_path / "a.parquet").read_bytes()
    garbled = content[:-100] + b"\xff" * 92 + content[-8:]
    for damaged in (content[:-1], b"", b"PAR1" + bytes(20) + b"PAR1", garbled):
        (tmp_path / "b.parquet").write_bytes(damaged)
        with pytest.raises(ValueError):
            read_metadata(locate(tmp_path / "b.parquet"))
    with pytest.raises(FileNotFoundError):
        read_metadata(locate(tmp_path / "none.parquet"))
