"""Files as other programs write them, and files that are meant to harm: no row is lost or changed without a word."""

import codecs
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import ROOT, refused

from bench.label.rows import choose_columns
from bench.tables.blocks import BAD_BYTE, NOTE
from bench.tables.datasets import load_dataset
from bench.tables.folders import common_schema, find_files, nested_columns, noting_others, open_tables
from bench.tables.format_csv import LOST_LINES, Csv
from bench.tables.readers import BAD, open_table, read_all
from bench.tables.storage import locate

UNQUOTED = Csv(quoting="none")


def read(file, csv=Csv(), columns=None) -> list[dict]:  # noqa: B008
    """Return the rows of a file; those that are bad have a reason and a line."""
    table = open_table(file, csv)
    schema = common_schema([table], columns or table.schema.names, [])
    rows = pa.concat_tables(read_all([table], schema, keep_bad_rows=True)).to_pylist()
    return [row | json.loads(row.pop(BAD) or "{}") for row in rows]


def bodies(file, csv=Csv()) -> list[str | None]:  # noqa: B008
    return [row["body"] for row in read(file, csv)]


# --- files that are meant to harm


BOMBS = {
    "line.csv.zst": [b"id,body\n1,", *[b"x" * 2**20] * 1000],
    "header.tsv.zst": [b"x" * 2**20] * 1000,
    "utf16.csv.zst": [codecs.BOM_UTF16_LE, *["\u0a0a".encode("utf-16-le") * 2**19] * 1000],
    "line.jsonl.zst": [b'{"body": "', *[b"x" * 2**20] * 1000],
    "array.json.zst": [b'[{"body": "x"},\n', *[b'{"body": [\n' * 2**15] * 600],
    "blank.jsonl.zst": [b'{"body": "x"}\n', *[b"\n" * 2**20] * 200],
    "blank.csv.zst": [b"id,body\n1,x\n", *[b"\n" * 2**20] * 20],
    "rows.jsonl.zst": [b'{"body": "%s"}\n' % (b"x" * 60_000)] * 8000,
    "rows.csv.zst": [b"id,body\n", *[b"1,%s\n" % (b"x" * 60_000)] * 8000],
}
COUNT_ROWS = """
import sys
from bench.tables.readers import UserError, open_table, read_all
def peak():  # of this process: ru_maxrss begins with the parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
try:
    table = open_table(sys.argv[1])
    rows = sum(map(len, read_all([table], table.schema)))
except UserError as error:
    rows = error
print((peak() - before) // 1024, rows, sep="|")
"""


def count_rows(file) -> tuple[int, str]:
    """Return (the MiB that reading a file takes, its number of rows or the error)."""
    command = [sys.executable, "-c", COUNT_ROWS, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    mib, result = done.stdout.strip().split("|")
    return int(mib), result


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_never_takes_much_memory(name, tmp_path):
    with (tmp_path / name).open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for content in BOMBS[name]:
            file.write(content)
    mib, result = count_rows(tmp_path / name)
    assert mib < 700
    if "rows" in name or "blank" in name:
        assert result == ("8000" if "rows" in name else "1")
    else:
        assert name in result and (name.startswith("array") or "64 MiB" in result)


# texts, options of write_table, expected rows (0: refused)
PARQUET_BOMBS = {
    "dictionary": (["x" * 60_000] * 8000, {}, 8000),
    "category": (pa.DictionaryArray.from_arrays(pa.array([0] * 20_000), pa.array(["x" * 2**18])), {}, 20_000),
    "plain": (["x" * 60_000] * 8000, {"use_dictionary": False}, 8000),
    "prefixes": (["x" * 60_000] * 8000, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}, 8000),
    "groups": (["x" * 300_000] * 2000, {"row_group_size": 10}, 2000),
    "later": (["x"] * 3000 + ["x" * 60_000] * 8000, {}, 11_000),
    "pages": (["x" * 2**20] * 1200, {"use_dictionary": False}, 0),
    "one": (["x" * (2**26 + 1)], {}, 0),
    "two": (["x" * 2**26, "y" * (2**26 + 9), *"z" * 99], {}, 0),
}


@pytest.mark.parametrize("name", PARQUET_BOMBS)
def test_a_small_parquet_file_never_takes_much_memory(name, tmp_path):
    texts, options, rows = PARQUET_BOMBS[name]
    pq.write_table(pa.table({"body": texts}), tmp_path / "a.parquet", compression="zstd", **options)
    mib, result = count_rows(tmp_path / "a.parquet")
    assert mib < 700
    assert result == str(rows) if rows else "a.parquet" in result


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_chunks_of_long_texts_are_bounded_by_bytes(suffix, tmp_path):
    rows = pd.DataFrame({"body": [f"{i} " * 20_000 for i in range(500)], "n": range(500)})
    if suffix == "parquet":
        rows.to_parquet(tmp_path / "a.parquet", index=False)
    else:
        write = rows.to_csv if suffix == "csv" else partial(rows.to_json, orient="records", lines=True)
        write(tmp_path / f"a.{suffix}", **({"index": False} if suffix == "csv" else {}))
    table = open_table(tmp_path / f"a.{suffix}")
    chunks = list(read_all([table], table.schema))
    assert max(chunk.nbytes for chunk in chunks) < 2**25
    assert pa.concat_tables(chunks)["body"].to_pylist() == rows["body"].tolist()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_time_to_open_a_file_grows_with_its_columns(suffix, tmp_path):
    seconds = []
    for count in (4000, 16_000):
        rows = pa.table({f"column {i}": ["x", "y"] for i in range(count)})
        if suffix == "parquet":
            pq.write_table(rows, tmp_path / "a.parquet")
        elif suffix == "csv":
            pyarrow.csv.write_csv(rows, tmp_path / "a.csv")
        else:
            (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
        start = time.process_time()
        table = open_table(tmp_path / f"a.{suffix}")
        assert pa.concat_tables(read_all([table], table.schema)).equals(rows)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0] + 0.2


def test_the_time_for_many_columns_grows_with_their_number(tmp_path):
    names = ["body", *map(str, range(8000))]
    pd.DataFrame([["x"] * 8001] * 2, columns=names).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame([["y"] * 2], columns=["body", "new"]).to_csv(tmp_path / "b.csv", index=False)
    start = time.monotonic()
    tables = open_tables(find_files(tmp_path))
    schema = common_schema(tables, [*names, "new"], ["body"])
    assert pa.concat_tables(read_all(tables, schema))["body"].to_pylist() == ["x", "x", "y"]
    assert time.monotonic() - start < 5


def test_many_small_row_groups_are_read_in_chunks(tmp_path):
    rows = pa.table({"id": range(30_000), "body": ["x"] * 30_000})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=10)
    table = open_table(tmp_path / "a.parquet")
    for skip in (0, 9, 10, 12_345):
        chunks = list(read_all([table], table.schema, skip))
        assert len(chunks) < 20
        assert pa.concat_tables(chunks)["id"].to_pylist() == list(range(skip, 30_000))


# --- quotes


def test_a_quote_in_a_tsv_file_is_a_plain_sign(tmp_path, capfd):
    rows = ['1\t"hello', '2\tworld"', '3\t"quoted"', '4\tsay "hi"']
    content = ("id\tbody\n" + "".join(f"{row}\n" for row in rows)).encode()
    for name in ("a.tsv", "b.tsv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        expected = pd.read_csv(tmp_path / name, sep="\t", quoting=csv.QUOTE_NONE)
        assert bodies(tmp_path / name) == expected["body"].to_list()
        assert name in (err := capfd.readouterr().err) and "--quoting" in err and err.count("\n") == 1
        assert bodies(tmp_path / name, UNQUOTED) == expected["body"].to_list()
        assert not capfd.readouterr().err
        assert open_table(tmp_path / name).estimate_rows() == 4
    (tmp_path / "c.csv").write_text('id,body\n1,"hello\n2,world"\n')
    assert bodies(tmp_path / "c.csv", UNQUOTED) == ['"hello', 'world"']
    pd.DataFrame({"id": [1], "body": ['a\tb\n"c"']}).to_csv(tmp_path / "d.tsv", sep="\t", index=False)
    assert bodies(tmp_path / "d.tsv", Csv(quoting="standard")) == ['a\tb\n"c"']


ESCAPED = ['say "hi"', "C:\\new", "a\\", 'a\\"b', "\\", "plain", "two\nlines", "a, b", "\\\\server", '"', '\\"', ""]


def test_escaped_quotes_are_read_as_they_were_written(tmp_path):
    """By Python's csv module, and by Spark, which escapes quotes with a backslash (spark-csv issue 466)."""
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL):
        with (tmp_path / "a.csv").open("w", newline="") as file:
            writer = csv.writer(file, quoting=quoting, doublequote=False, escapechar="\\", lineterminator="\n")
            writer.writerows([["id", "body"], *enumerate(ESCAPED)])
        assert bodies(tmp_path / "a.csv", Csv(escape="\\")) == ESCAPED
    with (tmp_path / "b.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONE, escapechar="\\", lineterminator="\n")
        writer.writerows([["id", "body"], *enumerate(ESCAPED)])
    assert bodies(tmp_path / "b.csv", Csv(quoting="none", escape="\\")) == ESCAPED
    (tmp_path / "c.csv").write_text('id,body\n1,"C:\\new \\"x\\", y"\n')  # a backslash that escapes nothing stays
    assert bodies(tmp_path / "c.csv", Csv(escape="\\")) == ['C:\\new "x", y']


PROSE = [
    "One, two.\n\nThree, four, five.\nSix.",
    "Well, yes\nNo, never\nOh, come on",
    "One, two\nthree, four\nfive, six\n\nseven, eight",
    "1\n2\n3\n4",
    "He said,\nshe said",
]


def test_rows_that_a_quote_swallows_are_reported(tmp_path, capfd):
    lines = [f"{i},line {i}" for i in range(20)]
    lines[4] = '4,"unclosed'
    (tmp_path / "a.csv").write_text("id,body\n" + "\n".join(lines))
    rows = read(tmp_path / "a.csv")
    assert len(rows) == 5 and rows[4]["line"] == 21 and rows[4]["reason"].startswith(LOST_LINES)
    assert " 6 " in rows[4]["reason"] and "--quoting" in rows[4]["reason"]
    (tmp_path / "b.csv").write_text('id,body\n1,x\n2,"y')
    assert read(tmp_path / "b.csv")[1]["reason"].startswith(LOST_LINES)
    lines[9] = '9,"closed" here'
    (tmp_path / "a.csv").write_text("id,body\n" + "\n".join(lines))
    assert [row["line"] for row in read(tmp_path / "a.csv") if row.get("reason", "").startswith(LOST_LINES)] == [11]
    assert not capfd.readouterr().err
    for first, last in ((4, 9), (4, 5), (4, 6), (1, 18)):  # with a quote at the end of a row, all of this is valid CSV
        for ids in (str, "t1_{:x}".format, "2024-01-{:02}".format):
            lines = [f"{ids(i)},line {i},{i % 3}.5" for i in range(20)]
            lines[first] = f'{ids(first)},"unclosed,1.5'
            lines[last] = f'{ids(last)},closed",2.5'
            (tmp_path / "a.csv").write_text("id,body,score\n" + "\n".join(lines))
            rows = read(tmp_path / "a.csv")
            assert [row["line"] for row in rows if row.get("reason", "").startswith(LOST_LINES)] == [last + 2]
            assert len(rows) == 20 - last + first and rows[first]["body"] is None
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "body"], *([i, text] for i, text in enumerate(PROSE))])
    assert bodies(tmp_path / "a.csv") == PROSE
    assert not capfd.readouterr().err


def test_the_header_of_a_second_file_is_no_row(tmp_path):
    """Files that were joined, as `cat` and concatenated gzip members do."""
    one = pd.DataFrame({"id": [1, 2], "body": ["a", "body"]}).to_csv(index=False).encode()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(one) * 2)
    rows = read(tmp_path / "a.csv.gz")
    assert [row["body"] for row in rows] == ["a", "body", None, "a", "body"]
    assert rows[2]["line"] == 4 and "header" in rows[2]["reason"]
    (tmp_path / "b.csv").write_text("body\nbody\n\ufeffbody\n")
    assert bodies(tmp_path / "b.csv") == ["body", None]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(codecs.BOM_UTF8 + one) * 2)
    assert [row["body"] for row in read(tmp_path / "a.csv.gz")] == ["a", "body", None, "a", "body"]


# --- JSON of other shapes, and encodings


RECORDS = [
    {"body": 'one\nline, "quoted" [1] {2}', "n": 1},
    {"body": "caf\u00e9 \U0001f600", "n": 2},
    {"body": "x", "n": 3},
]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.ndjson.zst", "a.json.zst"])
def test_json_that_is_not_one_object_per_line_is_read(name, tmp_path):
    ascii, plain = (dict(ensure_ascii=ascii) for ascii in (True, False))
    dumped = [json.dumps(record, **plain) for record in RECORDS]
    shapes = [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, **plain) + "\n",
        "\ufeff" + json.dumps(RECORDS, indent=2, **ascii),
        "".join(dumped),
        " ".join(dumped),
        "[\n" + ",\n".join(dumped) + "\n]\n",
        ",\n".join(dumped),
        "".join(json.dumps(record, indent=4) + "\n" for record in RECORDS),  # jq
        "".join(json.dumps([record]) + "\n" for record in RECORDS),
        "\n\n" + "\n".join(dumped),
        "\r\n".join(dumped),
    ]
    for shape in shapes:
        content = shape.encode()
        compress = {"gz": gzip.compress, "st": zstandard.compress}.get(name[-2:], bytes)
        (tmp_path / name).write_bytes(compress(content))
        assert read(tmp_path / name) == RECORDS, shape
        assert open_table(tmp_path / name).estimate_rows() in (2, 3, 4)  # lines


def test_a_long_array_is_read(tmp_path):
    records = [{"body": f"text {i} " * 20, "n": i} for i in range(5000)]
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(records, indent=indent))
        assert read(tmp_path / "a.json") == records


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"data": RECORDS}),
        json.dumps({"data": RECORDS}, indent=1),
        json.dumps({"data": RECORDS * 9999}, indent=1),
        json.dumps(["one", "two"]),
        json.dumps(RECORDS)[:-1],
        json.dumps(RECORDS, indent=1)[:-20],
        json.dumps(RECORDS) + "]",
        json.dumps(RECORDS)[:-1] + ", oops]",
        '{"a": ' * 100_000,
        "[" * 100_000,
        "this is no JSON",
        "\n".join(['"one"', '"two"']),
    ],
)
def test_other_json_is_refused_by_name_in_a_folder_too(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "b.json").write_text('{"body": "x"}\n')
    assert "a.json" in refused(load_dataset, str(tmp_path / "a.json"))

    def read_folder():
        tables = open_tables(find_files(tmp_path))
        list(read_all(tables, common_schema(tables, ["body"], ["body"])))

    assert "a.json" in refused(read_folder)


def test_nan_null_empty_and_missing_texts_are_none(tmp_path):
    records = [{"body": float("nan")}, {"body": None}, {"body": ""}, {"id": 1}, {"body": "x"}, {"body": 1.5}]
    for lines in (records, records[4:] + records[:4], [{"body": float("nan")}] * 1100 + records):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert load_dataset(str(tmp_path / "a.jsonl")).texts == ["x", "1.5"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [{"body": "x", "n": float("nan")}, {"n": 1.5}])))
    assert str([row["n"] for row in read(tmp_path / "a.jsonl")]) == "[nan, 1.5]"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.zst"])
def test_a_byte_order_mark_gives_the_encoding(name, encoding, tmp_path):
    """Excel's "Unicode Text" is UTF-16; so is what PowerShell's `>` writes."""
    records = [{"body": f"caf\u00e9 {i} \U0001f600 \u0a0a"} for i in range(9000)]
    text = io.StringIO()
    if "json" in name:
        pd.DataFrame(records).to_json(text, orient="records", lines=True, force_ascii=False)
    else:
        pd.DataFrame(records).to_csv(text, index=False)
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    compress = {"gz": gzip.compress, "st": zstandard.compress}.get(name[-2:], bytes)
    (tmp_path / name).write_bytes(compress((mark + text.getvalue()).encode(encoding)))
    assert read(tmp_path / name) == records
    assert open_table(tmp_path / name).estimate_rows() == pytest.approx(9000, rel=0.02)
    for marked in ("utf-8-sig", encoding):  # several marks
        (tmp_path / name).write_bytes(compress(("\ufeff" * 2 + text.getvalue()).encode(marked)))
        assert read(tmp_path / name) == records


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [
        ("utf-8", b"\xff"),
        ("ascii", "\u00e9".encode()),
        ("cp1252", b"\x81"),
        ("utf-16-le", b"\x3d\xd8"),
        ("utf-16", b"\x00\xdc"),
        ("utf-32", b"\x00\x00\x11\x00"),
        ("cp932", b"\x81"),
        ("gb18030", b"\xff"),
        ("euc_jp", b"\x8f"),
        ("big5", b"\xff"),
        ("utf-7", b"\xff"),
    ],
)
def test_a_bad_character_costs_its_row_only(encoding, bad, tmp_path):
    lines = ["id,body\n", *(f"{i},text {i}\n" for i in range(5000))]
    encoded = [line.encode(encoding) for line in lines]
    if encoding in ("utf-16", "utf-32"):
        encoded = [line.encode(encoding + "-le") for line in lines]
        encoded[0] = lines[0].encode(encoding)
    end = "\n".encode("utf-16-le" if encoding == "utf-16" else "utf-32-le" if encoding == "utf-32" else encoding)
    encoded[3001] = encoded[3001].removesuffix(end) + bad + end
    (tmp_path / "a.csv").write_bytes(b"".join(encoded))
    rows = read(tmp_path / "a.csv", Csv(encoding=codecs.lookup(encoding).name))
    assert [row["id"] for row in rows] == [str(i) if i != 3000 else None for i in range(5000)]
    assert rows[3000]["line"] == 3002 and f"0x{bad[0]:02x}" in rows[3000]["reason"]


def test_a_bad_character_in_an_array_costs_its_object_only(tmp_path):
    content = json.dumps([{"body": f"text {i}"} for i in range(5000)], indent=1).encode()
    (tmp_path / "a.json").write_bytes(content.replace(b"text 3000", b"text \xff"))
    rows = read(tmp_path / "a.json")
    assert [row["body"] for row in rows] == [f"text {i}" if i != 3000 else None for i in range(5000)]
    assert "reason" in rows[3000]


def test_a_bad_character_in_utf_16_json_costs_its_line_only(tmp_path):
    lines = [f'{{"body": "text {i}"}}\n'.encode("utf-16-le") for i in range(5000)]
    lines[3000] = lines[3000].replace("3000".encode("utf-16-le"), b"\x3d\xd8")
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF16_LE + b"".join(lines))
    rows = read(tmp_path / "a.jsonl")
    assert [row["body"] for row in rows] == [f"text {i}" if i != 3000 else None for i in range(5000)]
    assert rows[3000]["line"] == 3001


def test_a_codec_that_is_not_a_text_encoding_is_refused():
    for name in ("base64", "hex", "rot13", "zlib", "undefined", "nonsense"):
        command = [sys.executable, "run_benchmark.py", "--encoding", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and name in done.stderr


def test_rows_in_another_encoding_have_a_reason_of_their_own(tmp_path):
    (tmp_path / "a.csv").write_text("id,body\n1,caf\u00e9\n2,\u00e9,3\n", encoding="cp1252")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"body": "caf\u00e9"}\n', encoding="cp1252")
    texts = pa.array(["x", b"caf\xe9"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    pq.write_table(pa.table({"body": texts}), tmp_path / "a.parquet")
    for name, count in (("a.csv", 2), ("a.jsonl", 1), ("a.parquet", 1)):
        reasons = [row["reason"] for row in read(tmp_path / name) if "reason" in row]
        assert len(reasons) == count and all(reason.startswith(f"{BAD_BYTE}e9") for reason in reasons), name
        assert ("--encoding" in reasons[0]) == name.endswith("csv")


# --- names of folders and columns


def test_folder_columns_are_those_of_pyarrow(tmp_path):
    rows = pa.table({"body": ["a", "b", "c"], "year": ["2024", None, "x y/z"]})
    pyarrow.dataset.write_dataset(rows, tmp_path, format="parquet", partitioning=["year"], partitioning_flavor="hive")
    tables = open_tables(find_files(tmp_path), root=locate(tmp_path))
    result = pa.concat_tables(read_all(tables, common_schema(tables, ["body", "year"], ["body"])))
    assert sorted(result.to_pylist(), key=str) == sorted(rows.to_pylist(), key=str)
    [file] = (tmp_path / "year=2024").iterdir()
    for source in (file, file.parent):
        [table] = open_tables(find_files(source), root=locate(source))
        assert next(read_all([table], table.schema)).to_pylist() == [{"body": "a", "year": "2024"}]


def test_folder_names_that_are_not_utf_8_become_columns(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9=caf\xe9")
    folder.mkdir()
    (folder / "a.csv").write_text("body\nx\n")
    [table] = open_tables(find_files(tmp_path), root=locate(tmp_path))
    assert next(read_all([table], table.schema)).to_pylist() == [{"body": "x", "caf\ufffd": "caf\ufffd"}]


ODD_NAMES = ['say "x"', "back\\slash", "line\nfeed", "esc\x1b[1m", "nul\0", "half\ud83d", ""]


def test_odd_names_of_columns_never_refuse_a_file(tmp_path):
    record = {"body": "x", "n": 1} | dict.fromkeys(ODD_NAMES, "y")
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    names = ODD_NAMES[:5]
    pq.write_table(pa.table({name: ["z"] for name in ["body", *names]}), tmp_path / "b.parquet")
    tables = open_tables(find_files(tmp_path))
    read_names = [name for name in tables[0].schema.names if name not in ("body", "n")]
    assert sorted(read_names + nested_columns(tables[:1])) == sorted(ODD_NAMES)
    schema = common_schema(tables, ["body", "n", *names], ["body"])
    result = pa.concat_tables(read_all(tables, schema)).to_pylist()
    assert [row["body"] for row in result] == ["x", "z"] and result[0]["n"] == 1
    assert [result[1][name] for name in names] == ["z"] * 5


def test_json_beside_other_formats_is_metadata(tmp_path, capfd):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data-0.parquet")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"splits": {"train": {"num_examples": 1}}}, indent=2))
    assert [file.name for file in find_files(tmp_path)] == ["data-0.parquet"]
    assert "skipping other files: 1, such as dataset_info.json" in " ".join(capfd.readouterr().err.split())
    (tmp_path / "data-0.parquet").unlink()
    assert [file.name for file in find_files(tmp_path)] == ["dataset_info.json"]


# --- folders


def test_no_row_of_a_folder_is_read_twice(tmp_path, capfd):
    """Symbolic and hard links, to files and folders; the file's own name and folder columns win."""
    folder = tmp_path / "year=2024"
    folder.mkdir()
    (folder / "b.csv").write_text("body\nb\n")
    (folder / "c.csv").write_text("body\nc\n")
    (tmp_path / "a.csv").symlink_to(folder / "b.csv")
    (tmp_path / "d.csv").symlink_to("a.csv")
    (folder / "e.csv").hardlink_to(folder / "c.csv")
    (tmp_path / "current").symlink_to("year=2024")
    (tmp_path / "_f.csv").write_text("body\nf\n")
    tables = open_tables(find_files(tmp_path), root=locate(tmp_path))
    rows = pa.concat_tables(read_all(tables, common_schema(tables, ["body", "year"], ["body"]))).to_pylist()
    assert rows == [{"body": "b", "year": "2024"}, {"body": "c", "year": "2024"}]
    assert "4, such as _f.csv" in capfd.readouterr().err
    for file in ("a.csv", "d.csv"):
        (tmp_path / file).unlink()
    for name in ("b.csv.gz", "b.CSV.ZST", "b.tsv"):
        compress = {"gz": gzip.compress, "st": zstandard.compress}.get(name[-2:].lower(), bytes)
        (folder / name).write_bytes(compress(b"body\nb\n"))
        message = refused(open_tables, find_files(tmp_path))
        assert name in message and "b.csv" in message
        (folder / name).unlink()
    (folder / "b.jsonl").write_text('{"body": "b"}\n')
    assert len(open_tables(find_files(tmp_path))) == 3 and "b.jsonl" in capfd.readouterr().err
    (folder / "b.jsonl").unlink()
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"body\nx\n"))
    assert len(open_tables(find_files(tmp_path))) == 3, "in another folder"


@pytest.mark.parametrize("log", ["_delta_log/0.json", ".hoodie/hoodie.properties", "metadata/v1.metadata.json"])
def test_the_log_of_a_table_is_named(log, tmp_path, capfd):
    (tmp_path / "part-0.parquet").write_bytes(b"")
    (tmp_path / log).parent.mkdir()
    (tmp_path / log).write_text("{}")
    assert [file.name for file in find_files(tmp_path)] == ["part-0.parquet"]
    assert f"{log} is" in " ".join(capfd.readouterr().err.split())


# --- columns


def test_columns_that_are_not_copied_are_named(tmp_path, capfd):
    """A key that first appears late, pandas' index, and the delimiter that Excel writes after each row."""
    lines = [{"body": "x", "n": i, "deep": [i]} for i in range(3000)]
    lines[1500] |= {"late": 1}
    lines[2500] |= {"late": 1, "later": "y", 'say "x"': 2}
    lines[2600] |= {"latest": 1, "n": "not a number"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pd.DataFrame({"body": ["x"]}).to_csv(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("body,,\nx,private,\n")
    tables = open_tables(find_files(tmp_path))
    assert choose_columns(tables, ["body"], None, False) == ["n"]
    assert "deep, ''" in capfd.readouterr().err
    for name in "bc":
        assert choose_columns(open_tables([locate(tmp_path / f"{name}.csv")]), ["body"], None, False) == []
        assert "''" in capfd.readouterr().err
    schema = common_schema(tables[:1], ["body", "n"], ["body"])
    assert sum(map(len, read_all(tables[:1], schema.remove(1)))) == 3000 and not capfd.readouterr().err
    rows = pa.concat_tables(read_all(tables[:1], noting_others(schema, tables[:1]), keep_bad_rows=True)).to_pylist()
    reasons = {i: json.loads(row[BAD])["reason"] for i, row in enumerate(rows) if row[BAD]}
    assert [*reasons] == [1500, 2500, 2600] and all("late" in reason for reason in reasons.values())
    assert all(name in reasons[i] for i, name in ((2500, 'say "x"'), (2500, "later"), (2600, "latest")))
    assert [reasons[i].startswith(NOTE) for i in reasons] == [True, True, False]
    assert [row["n"] for row in rows] == [None if i == 2600 else i for i in range(3000)]
    err = capfd.readouterr().err
    assert err.count("\n") == 2 and "a.jsonl, line 1501" in err and "later" in err


def test_a_table_with_the_name_of_our_own_column_is_refused(tmp_path):
    pd.DataFrame({"body": ["x"], BAD: ["y"]}).to_csv(tmp_path / "a.csv", index=False)
    assert BAD in refused(open_table, tmp_path / "a.csv")
    (tmp_path / f"{BAD}=1").mkdir()
    (tmp_path / f"{BAD}=1" / "b.csv").write_text("body\nx\n")
    assert BAD in refused(open_table, tmp_path / f"{BAD}=1" / "b.csv")


PRIVATE = "My private comment, "


def test_messages_have_no_texts(tmp_path):
    """A text where numbers were, and a file without a header, whose first row looks like one."""
    lines = [*({"n": i} for i in range(1500)), {"n": PRIVATE}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reason = read(tmp_path / "a.jsonl")[-1]["reason"]
    assert "n" in reason and PRIVATE[:8] not in reason
    pd.DataFrame([[1, PRIVATE * 9999]] * 2).to_csv(tmp_path / "b.csv", index=False, header=False)
    pd.DataFrame([[1, PRIVATE * 9999, PRIVATE * 9999]]).to_csv(tmp_path / "c.csv", index=False, header=False)
    (tmp_path / "d.json").write_text(json.dumps([{PRIVATE * 9999: []}]))
    pd.DataFrame({f"column {i}": ["x"] for i in range(9999)}).to_csv(tmp_path / "e.csv", index=False)
    for name in ("b.csv", "c.csv", "d.json", "e.csv"):
        message = refused(load_dataset, str(tmp_path / name))
        assert name in message and len(message) < 600 + len(str(tmp_path))


BAD_VALUES = [
    ('"text 3000"', '"text\t3\x01"', "text\t3\x01"),
    ('"text 3000"', '"two\nlines"', "two\nlines"),
    ('"text 3000"', r'"C:\new \x {"', None),
    ('"text 3000"', '"say "hi" to {them}"', None),
    ('"text 3000"', "None", None),
    ('"text 3000"', "'text'", None),
    ('"text 3000"}', '"text",}', None),
]


@pytest.mark.parametrize("layout", ["array", "indented", "joined", "first"])
@pytest.mark.parametrize(("good", "bad", "text"), BAD_VALUES)
def test_a_bad_value_in_json_costs_at_most_its_object(layout, good, bad, text, tmp_path):
    """As programs write that put JSON together by hand."""
    texts = [f"text {i}" for i in range(5000)]
    if layout == "first":
        texts[0], texts[3000] = texts[3000], texts[0]
    records = [{"n": {"a": [i]}, "body": text} for i, text in enumerate(texts)]
    content = json.dumps(records, indent=1 if layout == "indented" else None)
    content = "".join(map(json.dumps, records)) if layout == "joined" else content
    good = good.replace("}", "\n }") if layout == "indented" else good
    assert content.count(good) == 1
    (tmp_path / "a.json").write_text(content.replace(good, bad))
    rows = read(tmp_path / "a.json")
    assert [row["body"] for row in rows] == [body if body != "text 3000" else text for body in texts]
    assert [i for i, row in enumerate(rows) if "reason" in row] == ([] if text else [texts.index("text 3000")])
