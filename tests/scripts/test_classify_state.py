"""classify_texts.py: files that change during a run, that others have damaged, or that are not its own."""

import json
import os
import shutil
import urllib.request

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from bench.files import new_file
from bench.judge import WITHIN
from bench.tables.storage import locate
from runtimes.classifier import Classifier

ROWS = 60


@pytest.fixture
def source(tmp_path, texts):
    """Write a Parquet file of several row groups."""
    rows = pd.DataFrame({"id": range(ROWS), "body": texts[:ROWS]})
    rows.to_parquet(tmp_path / "in.parquet", index=False, row_group_size=20)
    return tmp_path / "in.parquet"


@pytest.fixture
def options() -> list:
    return ["--device", "cpu", "--variant", "torch", "--threads", 1, "--rows-per-file", 20]


def parts(tmp_path) -> list:
    return sorted((tmp_path / "out").glob("part-*"))


def read_parts(tmp_path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in parts(tmp_path)])


def extend(path) -> None:
    if path.suffix == ".csv":
        with path.open("a") as file:
            file.write("".join(f"{i},more\n" for i in range(20)))
    else:
        rows = pd.read_parquet(path)
        pd.concat([rows, rows]).to_parquet(path, index=False, row_group_size=20)


def drop_column(path) -> None:
    if path.suffix == ".csv":
        path.write_text("id\n" + "1\n" * ROWS)
    else:
        pd.read_parquet(path).drop(columns="body").to_parquet(path, index=False, row_group_size=20)


def replace_by_other_texts(path) -> None:
    other = path.with_name(f"other{path.suffix}")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(1, 1))
    other.replace(path)


CHANGES = [extend, drop_column, replace_by_other_texts, lambda path: path.write_bytes(b""), lambda path: path.unlink()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_input_that_changes_during_the_run_is_named(suffix, change, label, source, tmp_path, monkeypatch):
    if suffix == ".csv":
        pd.read_parquet(source).to_csv(source.with_suffix(".csv"), index=False)
    path, calls, predict = source.with_suffix(suffix), [], Classifier.predict_share

    def changing(*arguments):
        calls.append(1)
        if len(calls) == 1:
            change(path)
        return predict(*arguments)

    monkeypatch.setattr(Classifier, "predict_share", changing)
    code, err = label(source=path)
    assert code == 1 and path.name in err.splitlines()[-1], err
    assert not (tmp_path / "out" / "_receipt.json").exists()


def test_an_edit_in_the_middle_of_a_large_file_is_seen_by_the_next_run(label, source, tmp_path):
    rows = pd.read_parquet(source).assign(note="x" * 50_000)
    rows.to_csv(tmp_path / "large.csv", index=False)
    options = {"source": tmp_path / "large.csv"}
    assert label("--keep-columns", "id", **options)[0] == 0
    assert label("--keep-columns", "id", **options)[0] == 0
    content = bytearray((tmp_path / "large.csv").read_bytes())
    middle = content.index(rows["body"][30].encode())
    content[middle : middle + 3] = b"no "
    (tmp_path / "large.csv").write_bytes(content)
    for option in ([], ["--check-only"]):
        assert label("--keep-columns", "id", *option, **options)[0] == 2
    assert label(output="small")[0] == 0
    os.utime(source)
    assert label(output="small")[0] == 0, "a small file is compared as a whole"


FOREIGN = [".precious-notes.tmp", ".my_notes.tmp", "_receipt_of_my_shop.json", "_receipt-2024.json", "_lock_picking.md"]
FOREIGN += ["_bad_rows_of_corn.jsonl", "part-1.parquet", "part-2024-01.parquet", ".swiftsure-notes.tmp"]


@pytest.mark.parametrize("name", FOREIGN)
def test_no_file_of_the_users_is_deleted(name, label, tmp_path):
    assert label()[0] == 0
    file = tmp_path / "out" / name
    file.write_text("mine")
    for options in ([], ["--overwrite"], ["--shard", "1/2"]):
        code, err = label(*options)
        assert code == 2 and name in err.splitlines()[-1] and file.read_text() == "mine"
    assert label("--check-only")[0] == 0 and file.read_text() == "mine"


def test_what_a_killed_run_has_left_is_deleted(label, tmp_path):
    writing = new_file(tmp_path / "out" / "part")
    writing.__enter__().write(b"half")
    [left] = (tmp_path / "out").iterdir()
    assert label()[0] == 0 and not left.exists() and len(parts(tmp_path)) == 3


def flip_a_byte(part, others) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)


def flip_a_byte_of_the_metadata(part, others) -> None:
    content = part.read_bytes()
    assert content.count(b'"texts": 20') == 1
    part.write_bytes(content.replace(b'"texts": 20', b'"texts": 21'))


def edit(part, others) -> None:
    table = pq.read_table(part)
    column = pa.array(np.zeros(len(table), np.float32))
    edited = table.set_column(1, "LABEL_0", column).replace_schema_metadata(table.schema.metadata)
    pq.write_table(edited, part)


def exchange(part, others) -> None:
    content = part.read_bytes()
    part.write_bytes(others[-1].read_bytes())
    others[-1].write_bytes(content)


def replace_by_fifo(part, others) -> None:
    part.unlink()
    os.mkfifo(part)


@pytest.mark.parametrize("damage", [flip_a_byte, flip_a_byte_of_the_metadata, edit, exchange, replace_by_fifo])
def test_a_part_that_is_not_as_it_was_written_does_not_count(damage, label, tmp_path):
    assert label()[0] == 0
    whole, (first, *others) = read_parts(tmp_path), parts(tmp_path)
    damage(first, others)
    code, err = label("--check-only")
    assert code == 2 and first.name in err.splitlines()[-1], err
    assert "--check-only" in err.splitlines()[-1] and "--shard" not in err.splitlines()[-1]
    code, err = label()
    if damage is replace_by_fifo:
        assert code == 2 and first.name in err.splitlines()[-1]
        return
    assert code == 0
    pd.testing.assert_frame_equal(read_parts(tmp_path), whole)
    assert json.loads((tmp_path / "out" / "_receipt.json").read_text())["verdict"] == WITHIN
    assert label("--check-only")[0] == 0


STATES = {
    "a number of rows that is impossible": lambda job: job["options"].update({"--rows-per-file": 0}),
    "a negative limit": lambda job: job["options"].update({"--limit": -1}),
    "rows as text": lambda job: job["options"].update({"--rows-per-file": "20"}),
    "a number that is not finite": lambda job: job["options"].update({"--min-score": float("nan")}),
    "an infinite number": lambda job: job["options"].update({"--min-score": float("inf")}),
    "a list": lambda job: job.update(versions=[]),
    "no options": lambda job: job.pop("options"),
    "columns as a list": lambda job: job.update(columns=[]),
    "files as a list": lambda job: job.update(input=[]),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("option", ["--no-check", "--check-only"])
def test_a_damaged_record_is_one_line(state, option, label, tmp_path):
    assert label()[0] == 0
    file = tmp_path / "out" / "_job.json"
    job = json.loads(file.read_text())
    STATES[state](job)
    file.write_text(json.dumps(job))
    code, err = label(option)
    assert code == 2 and err.count("\n") == 1 and str(tmp_path / "out") in err, err


@pytest.mark.parametrize(
    "content", ["", "[]", '{"rows": 60}', '{"rows": "60", "verdict": 5}', '{"rows": NaN}', "[" * 9**5]
)
def test_a_damaged_receipt_is_written_again(content, label, tmp_path):
    assert label()[0] == 0
    file = tmp_path / "out" / "_receipt.json"
    file.write_text(content)
    assert label()[0] == 0 and json.loads(file.read_text())["rows"] == ROWS


@pytest.mark.parametrize("name", ["_job.json", "_receipt.json", "_lock", "_lock-plan", "_bad_rows.jsonl"])
def test_a_fifo_is_not_waited_for(name, label, tmp_path):
    assert label()[0] == 0
    (tmp_path / "out" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "out" / name)
    code, err = label()
    assert code == 2 and name in err.splitlines()[-1]
    code, err = label("--check-only")
    assert code in (0, 1, 2) and "Traceback" not in err


def test_files_of_a_run_respect_the_umask(label, tmp_path):
    before = os.umask(0o077)
    try:
        assert label()[0] == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o600} and len(modes) >= 6, modes
    shutil.rmtree(tmp_path / "out")
    assert label()[0] == 0
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~before}


def test_parts_and_the_record_in_a_bucket(label, tmp_path, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    settings = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    far = locate("s3://labels/out?allow_bucket_creation=true")
    far.filesystem.create_dir("labels")
    try:
        assert label(output="s3://labels/out")[0] == 0
        [part] = [file for file in far.files() if file.name.endswith("-0000000020.parquet")]
        content = bytearray(part.read())
        content[len(content) // 3] ^= 1
        with part.new_file() as file:
            file.write(content)
        code, err = label("--check-only", output="s3://labels/out")
        assert code == 2 and part.name in err.splitlines()[-1], err
        assert label(output="s3://labels/out")[0] == label("--check-only", output="s3://labels/out")[0] == 0
        plain = {"Content-Type": "text/plain"}
        deny = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers=plain)
        urllib.request.urlopen(deny).close()  # the server answers 403 from now on
        code, err = label("--check-only", output="s3://labels/out")
        assert code == 1 and "_job.json" in err.splitlines()[-1], err
    finally:
        server.stop()


def test_rows_that_a_quote_swallowed_end_with_code_1(label, texts, tmp_path):
    """The rows before the quote are labelled; the lines after it are named."""
    rows = "".join(f'{i},"{text}"\n' for i, text in enumerate(["one", "two", "three"]))
    for end in ("5,lost", '5,closed"'):
        (tmp_path / "quote.csv").write_text(f'id,body\n{rows}3,"unclosed\n4,lost\n{end}\n')
        code, err = label("--overwrite", source="quote.csv")
        assert code == 1 and "quote.csv" in err and "_bad_rows.jsonl" in err
        assert read_parts(tmp_path)["LABEL_0"].notna().tolist() == [True] * 3 + [False]
        assert label(source="quote.csv")[0] == 1, "also if nothing is left to label"


@pytest.mark.parametrize(("rows", "others", "code"), [(3, 60, 0), (4, 60, 1), (1, 0, 1)])
def test_more_than_a_few_rows_in_another_encoding_or_all_end_with_code_1(rows, others, code, label, tmp_path):
    lines = [*(f"{i},caf\u00e9 {i}\n" for i in range(rows)), *(f"{i},text {i}\n" for i in range(others)), "0,\n"]
    (tmp_path / "cp1252.csv").write_text("id,body\n" + "".join(lines), encoding="cp1252")
    for options in ([], [], ["--check-only"]):
        done, err = label(*options, source="cp1252.csv")
        assert done == code and (code == 0 or ("--encoding" in err.splitlines()[-1] and "_bad_rows.jsonl" in err)), err
    assert read_parts(tmp_path)["LABEL_0"].isna().sum() == rows + 1
