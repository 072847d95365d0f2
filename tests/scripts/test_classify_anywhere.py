"""classify_texts.py on Reddit dumps: shards, buckets, the Hub, and runs that are killed."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import ROOT, kill_after_a_part
from huggingface_hub import HfFileSystem
from moto.server import ThreadedMotoServer

import classify_texts
from bench.judge import WITHIN
from bench.label.folder import locked
from bench.tables.readers import open_table
from bench.tables.storage import locate
from utils import RunError

MONTHS = ("2023", "11"), ("2023", "12"), ("2024", "01")
ROWS = 50  # of a month


@pytest.fixture
def months(tmp_path, texts):
    """Three months of synthetic comments, in Pushshift's format: some removed, one line that is not JSON."""
    for number, (year, month) in enumerate(MONTHS):
        folder = tmp_path / "months" / f"year={year}" / f"month={month}"
        folder.mkdir(parents=True)
        lines = []
        for i in range(ROWS):
            body = "[removed]" if i % 20 == 7 else texts[number * ROWS + i]
            lines.append(json.dumps({"id": f"{month}_{i}", "body": body, "gildings": {}, "edited": i % 3 == 0}))
        lines[30] = lines[30][:20]
        content = "".join(line + "\n" for line in lines).encode()
        (folder / f"RC_{year}-{month}.zst").write_bytes(zstandard.ZstdCompressor().compress(content))
    return tmp_path / "months"


@pytest.fixture
def bucket(months, monkeypatch):
    """Copy the months to a bucket of an S3 server on this machine, which the environment points to."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y"}
    for name, value in (settings | {"DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    far = locate("s3://comments/in?allow_bucket_creation=true")
    far.filesystem.create_dir("comments")
    for file in locate(months).files(recursive=True):
        place = far
        for name in file.parts_below(locate(months)):
            place /= name
        with place.new_file() as content:
            content.write(file.read())
    yield "s3://comments"
    server.stop()


OPTIONS = ["--device", "cpu", "--variant", "torch", "--threads", "1", "--rows-per-file", "7"]


@pytest.fixture
def label(call, tiny_model, months, tmp_path, monkeypatch):
    """Return a function that runs the script in this process and returns its exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def label(*arguments, source=months, output="out"):
        code, _, err = call(classify_texts, tiny_model, source, "--output", output, *OPTIONS, *arguments)
        return code, err

    return label


@pytest.fixture
def start(tiny_model, months, tmp_path):
    """Return a function that starts the script in its own process."""

    def start(*arguments, source=months, output=tmp_path / "out"):
        command = [sys.executable, ROOT / "classify_texts.py", tiny_model, source, "--output", output]
        command = [*map(str, command), *OPTIONS, *arguments]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return start


@pytest.fixture
def whole(label, tmp_path) -> pd.DataFrame:
    """Label the months in a single run on this machine; return the output."""
    code, err = label(output="whole")
    assert code == 0 and len((tmp_path / "whole" / "_bad_rows.jsonl").read_text().splitlines()) == 3, err
    return read_parts("whole")


def read_parts(folder: str) -> pd.DataFrame:
    parts = [file for file in locate(folder).files() if file.name.startswith("part-")]
    return pd.concat([pq.read_table(part.path, filesystem=part.filesystem).to_pandas() for part in parts])


def part_times(folder: Path) -> dict[str, int]:
    """Return when each part was written: a part that is labelled again has another time."""
    return {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*")}


def test_months_are_labelled_in_order_with_their_folder_columns(whole):
    assert list(whole.columns[:4]) == ["id", "edited", "year", "month"]
    assert list(whole["month"]) == [month for _, month in MONTHS for _ in range(ROWS)]
    assert list(whole["id"].dropna()) == [f"{month}_{i}" for _, month in MONTHS for i in range(ROWS) if i != 30]
    assert list(whole["LABEL_0"].isna()) == [i % 20 == 7 or i == 30 for i in range(ROWS)] * 3


def test_shards_write_the_parts_of_a_single_run_which_then_checks_them(label, start, whole, tmp_path):
    first, second = (start("--shard", f"{number}/2") for number in (1, 2))  # at once
    out = tmp_path / "out"
    kill_after_a_part(second, out)
    _, err = first.communicate()
    assert first.returncode == 0 and "--shard" in err, err
    code, err = label("--shard", "2/2")
    assert code == 0 and "--shard" in err, err
    assert json.loads((out / "_receipt-1-of-2.json").read_text())["rows"] == 2 * ROWS
    assert not (out / "_receipt.json").exists() and len((out / "_bad_rows-1-of-2.jsonl").read_text().splitlines()) == 2
    before, times = (out / "_receipt-2-of-2.json").read_text(), part_times(out)
    assert json.loads(before)["rows"] == ROWS
    code, err = label("--shard", "2/2")
    assert code == 0 and str(ROWS) in err and part_times(out) == times, "nothing is labelled again"
    assert (out / "_receipt-2-of-2.json").read_text() == before
    last = sorted(out.glob("part-*"))[-1]
    last.unlink()
    code, err = label()
    assert code == 0 and str(3 * ROWS) in err, err
    receipt = json.loads((out / "_receipt.json").read_text())
    assert receipt["rows"] == 3 * ROWS and receipt["bad_rows"] == 3 and receipt["verdict"] == WITHIN
    pd.testing.assert_frame_equal(read_parts("out"), whole, check_exact=False, atol=1e-6)
    assert {path.name for path in out.glob("part-*")} == {path.name for path in (tmp_path / "whole").glob("part-*")}


def test_impossible_shards_are_refused(label, tmp_path):
    for shard in ("0/2", "3/2", "2", "a/b"):
        code, err = label("--shard", shard)
        assert code == 2 and "--shard" in err and shard in err
    for option in ("--check-only", "--overwrite", "--ray"):
        code, err = label("--shard", "1/2", option)
        assert code == 2 and "--shard" in err and option in err
    code, _ = label("--shard", "5/30")
    assert code == 0 and len(part_times(tmp_path / "out")) == 3, "a part of each file"
    code, _ = label("--shard", "20/30")
    assert code == 0 and len(part_times(tmp_path / "out")) == 3, "each file has only eight parts"


def test_input_and_output_in_a_bucket(label, start, whole, bucket):
    far = {"source": f"{bucket}/in", "output": f"{bucket}/my labels/100% #1"}
    kill_after_a_part(start(**far), far["output"])
    code, err = label(**far)
    assert code == 0 and str(3 * ROWS) in err, err
    pd.testing.assert_frame_equal(read_parts(far["output"]), whole, check_exact=False, atol=1e-6)
    out = locate(far["output"])
    before = json.loads((out / "_receipt.json").read())
    assert before["texts_of_this_run"] < before["texts"]
    assert label(**far)[0] == 0 and json.loads((out / "_receipt.json").read()) == before, (
        "everything is already labelled"
    )
    (out / "_receipt.json").delete()
    code, err = label("--check-only", **far)
    receipt = json.loads((out / "_receipt.json").read())
    assert (code, receipt["verdict"], receipt["rows"]) == (0, WITHIN, 3 * ROWS), err
    assert len((out / "_bad_rows.jsonl").read().splitlines()) == 3
    code, err = label("--limit", 20, **far)
    assert code == 2 and "--limit" in err.splitlines()[-1]
    code, err = label("--limit", 20, "--overwrite", **far)
    assert code == 0 and len(read_parts(far["output"])) == 20


def test_input_from_a_dataset_on_the_hub(label, whole, hub, months, monkeypatch):
    hub.models["datasets/ann/comments"] = months
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", hub.url, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_file_system.constants.ENDPOINT", hub.url)
    HfFileSystem.clear_instance_cache()
    code, err = label(source="hf://datasets/ann/comments")
    assert code == 0, err
    pd.testing.assert_frame_equal(read_parts("out"), whole, check_exact=False, atol=1e-6)
    code, err = label(source="hf://datasets/ann/nothing", output="other")
    assert code == 2 and err.count("\n") == 1, err
    [file, *_] = [path for path in sorted(months.rglob("*")) if path.is_file()]
    table = open_table(f"hf://datasets/ann/comments/{file.relative_to(months)}")
    table.check_unchanged()
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    with pytest.raises(RunError, match=file.name):
        table.check_unchanged()


def test_missing_buckets_and_folders_are_named_in_one_line(label, bucket, months):
    wrong = {
        "s3://nowhere/in": "nowhere",
        f"{bucket}/none": "s3://comments/none",
        "nothing://a/b": "nothing://a/b",
    }
    for place, name in wrong.items():
        code, err = label(source=place)
        assert code == 2 and name in err and err.count("\n") == 1, err
    for place in ("s3://nowhere/out", "nothing://a/b"):
        code, err = label(output=place)
        assert code in (1, 2) and "Traceback" not in err and err.splitlines()[-1].startswith("classify_texts.py: "), err


def test_a_later_shard_does_not_wait_for_the_first(label, months, tmp_path):
    with locked(locate(tmp_path / "out"), shared=True):  # like a shard that is labelling
        code, err = label("--shard", "2/2")
    assert code == 0 and len(part_times(tmp_path / "out")) == 8, err
    code, err = label()
    assert code == 0 and str(3 * ROWS) in err


def test_shards_may_have_plans_for_their_machines_but_not_other_variants(label, whole, tmp_path):
    assert label("--shard", "1/2")[0] == 0
    code, err = label("--shard", "2/2", "--variant", "torch-bf16")
    assert code == 2 and "--variant" in err.splitlines()[-1] and "torch" in err.splitlines()[-1]
    assert label("--shard", "2/2", "--threads", "2", "--workers", "2", "--batch-tokens", "300")[0] == 0
    receipts = [json.loads((tmp_path / "out" / f"_receipt-{i}-of-2.json").read_text()) for i in (1, 2)]
    assert [receipt["workers"] for receipt in receipts] == [1, 2] and "300" in receipts[1]["batches"]
    code, err = label("--check-only")
    assert code == 0 and json.loads((tmp_path / "out" / "_receipt.json").read_text())["rows"] == 3 * ROWS, err
    pd.testing.assert_frame_equal(read_parts("out"), whole, check_exact=False, atol=1e-6)


def test_parts_of_shards_with_different_variants_are_refused(label, tmp_path):
    assert label("--shard", "1/2")[0] == 0
    file = tmp_path / "out" / "_job.json"
    job = json.loads(file.read_text())  # in a bucket, without locks, another shard may write its own plan over it
    job["options"]["--variant"] = "torch-bf16"
    file.write_text(json.dumps(job))
    assert label("--shard", "2/2", "--variant", "torch-bf16")[0] == 0
    for options in ([], ["--check-only"]):
        code, err = label(*options, "--variant", "torch-bf16")
        assert code == 2 and "part-year-2023-month-11-RC-2023-11.zst" in err.splitlines()[-1], err


def test_bad_rows_that_stop_a_run_stop_the_next_one_too(label, months, tmp_path):
    for shard in ("--shard=1/2", "--shard=1/2", "--shard=1/1"):
        code, err = label("--strict", shard)
        own = f"_bad_rows{shard.removeprefix('--shard=').replace('/', '-of-').join(['-', ''])}.jsonl"
        assert code == 1 and all(name in err.splitlines()[-1] for name in ("line 31", own)), err
        assert (tmp_path / "out" / own).is_file() and not (tmp_path / "out" / "_bad_rows.jsonl").exists()
    for _ in range(2):
        code, err = label("--strict")
        assert code == 1 and "line 31" in err.splitlines()[-1], err
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(months)
    code, err = label(source=tmp_path / "linked", output="of-link")
    assert code == 0 and str(3 * ROWS) in err
    code, err = label("--encoding", "cp1252", source=tmp_path / "linked", output="of-link")
    assert code == 2 and "--encoding" in err.splitlines()[-1]
