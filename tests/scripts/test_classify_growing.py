"""classify_texts.py: input folders that grow, shards of single files, and what a failed start leaves."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import zstandard
from conftest import ROOT, kill_after_a_part

from bench.label import folder, job, pool, run, splits
from bench.processes import WorkerFailed
from bench.tables.storage import locate
from runtimes.classifier import Classifier

ROWS = 20  # of a file


@pytest.fixture
def source(tmp_path, texts):
    """A folder with two files of 20 rows, and beside it files to add: one of them sorts first, one has an odd name."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(["in/m.csv", "in/x.csv", "a.csv", "Ünï codé & 'co' $1.csv"]):
        rows = {"id": [f"{name}{i}" for i in range(ROWS)], "body": texts[number * ROWS : (number + 1) * ROWS]}
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
    return tmp_path / "in"


@pytest.fixture
def options(tiny_model) -> list:
    return ["--device", "cpu", "--variant", "torch", "--threads", 1, "--rows-per-file", 8]


def parts(folder) -> list:
    return sorted(folder.glob("part-*"))


def times(folder) -> dict[str, int]:
    return {part.name: part.stat().st_mtime_ns for part in parts(folder)}


def ids(folder) -> list[str]:
    return [row for part in parts(folder) for row in pd.read_parquet(part)["id"]]


def ids_of(file) -> list[str]:
    return list(pd.read_csv(file)["id"])


def test_only_files_that_were_added_are_labelled(label, source, tmp_path):
    assert label()[0] == 0
    before = times(tmp_path / "out")
    assert len(before) == 6 and all("-m.csv-" in name or "-x.csv-" in name for name in before)
    for name in ("a.csv", "Ünï codé & 'co' $1.csv"):
        (tmp_path / name).rename(source / name)
    code, err = label("--check-only")
    assert code == 2 and "a.csv" in err.splitlines()[-1], "not labelled yet"
    code, err = label()
    after = times(tmp_path / "out")
    assert code == 0 and len(after) == 12 and before.items() <= after.items(), err
    receipt = json.loads((tmp_path / "out" / "_receipt.json").read_text())
    assert (receipt["rows"], receipt["texts_of_this_run"]) == (4 * ROWS, 2 * ROWS)
    by_path = sorted(source.iterdir())
    assert ids(tmp_path / "out") == [row for file in by_path for row in ids_of(file)], "in the order of the files"
    assert label("--check-only")[0] == 0 and label()[0] == 0 and times(tmp_path / "out") == after
    assert label(output="fresh")[0] == 0
    assert [part.name for part in parts(tmp_path / "fresh")] == list(after), "names do not depend on the history"


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_files_that_are_removed_or_changed_are_named(how, label, source, tmp_path):
    assert label()[0] == 0
    before = times(tmp_path / "out")
    (tmp_path / "a.csv").rename(source / "a.csv")
    if how == "removed":
        (source / "x.csv").unlink()
    else:
        (source / "x.csv").write_text((source / "x.csv").read_text().replace("x.csv3,", "x.csv4,"))
    for options in ([], ["--check-only"]):
        code, err = label(*options)
        last = err.splitlines()[-1]
        assert code == 2 and "x.csv" in last and "m.csv" not in last and times(tmp_path / "out") == before


def test_a_file_that_changes_what_is_written_is_refused(label, source, tmp_path):
    assert label("--limit", 30, output="limited")[0] == label()[0] == 0
    (tmp_path / "a.csv").rename(source / "a.csv")
    code, err = label("--limit", 30, output="limited")
    assert code == 2 and "a.csv" in err.splitlines()[-1], "other rows would be the first"
    pd.read_csv(source / "a.csv").assign(author="x").to_csv(source / "a.csv", index=False)
    code, err = label()
    assert code == 2 and "--keep-columns" in err.splitlines()[-1]
    code, err = label("--keep-columns", "id")
    assert code == 0 and len(ids(tmp_path / "out")) == 3 * ROWS, err


def test_names_that_look_alike_are_told_apart_and_long_ones_fit(label, source, tmp_path):
    names = ["a b.csv", "a-b.csv", "A b.csv", "a_b.csv", "x" * 240 + ".csv", "x" * 240 + "y.csv", "語" * 80 + ".csv"]
    for number, name in enumerate([*names, os.fsdecode(b"caf\xe9.csv"), "part-0000000000.parquet-x.csv"]):
        (source / name).write_text(f"id,body\n{number},hello\n")
    code, err = label()
    assert code == 0 and len(parts(tmp_path / "out")) == 6 + len(names) + 2, err
    assert sorted(map(str, range(len(names) + 2))) == sorted(row for row in ids(tmp_path / "out") if len(row) == 1)
    before = times(tmp_path / "out")
    assert label()[0] == 0 and times(tmp_path / "out") == before


def test_an_output_of_an_earlier_version_is_refused_in_one_line(label, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-000000-0000000000.parquet").write_bytes(b"")
    (tmp_path / "out" / "_job.json").write_text('{"input": "0123456789abcdef", "plan": {}}')
    for options in ([], ["--overwrite"], ["--check-only"]):
        code, err = label(*options)
        assert code == 2 and err.count("\n") == 1 and str(tmp_path / "out") in err, err
    assert len(parts(tmp_path / "out")) == 1


def test_a_killed_run_resumes_with_added_files(label, tiny_model, source, options, tmp_path):
    command = [sys.executable, ROOT / "classify_texts.py", tiny_model, source, "--output", tmp_path / "out", *options]
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    kill_after_a_part(process, tmp_path / "out")
    before = times(tmp_path / "out")
    (tmp_path / "a.csv").rename(source / "a.csv")
    code, err = label()
    assert code == 0 and before.items() <= times(tmp_path / "out").items(), err
    assert ids(tmp_path / "out") == [row for file in sorted(source.iterdir()) for row in ids_of(file)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl.zst"])
def test_shards_share_a_single_file(suffix, label, texts, tmp_path):
    """Each labels every third part; what a shard has not done, the command without --shard does."""
    rows = pd.DataFrame({"id": map(str, range(90)), "body": texts[:90]})
    file = tmp_path / f"large{suffix}"
    if suffix == ".csv":
        rows.to_csv(file, index=False)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows.to_dict("records"))
        file.write_bytes(zstandard.compress(content.encode()))
    assert label(source=file, output="whole")[0] == 0
    shares = []
    for number in (3, 1):
        assert label("--shard", f"{number}/3", source=file)[0] == 0
        shares.append(json.loads((tmp_path / "out" / f"_receipt-{number}-of-3.json").read_text())["rows"])
    assert shares == [3 * 8 + 2, 4 * 8] and len(parts(tmp_path / "out")) == 8
    before = times(tmp_path / "out")
    code, err = label("--shard", "1/3", source=file)
    assert code == 0 and times(tmp_path / "out") == before and "32" in err
    code, err = label("--check-only", source=file)
    assert code == 2 and parts(tmp_path / "whole")[1].name in err.splitlines()[-1], "the second share is missing"
    assert len(parts(tmp_path / "out")) == 8, "it only checks"
    assert label(source=file)[0] == 0 and before.items() <= times(tmp_path / "out").items()
    assert ids(tmp_path / "out") == ids(tmp_path / "whole") == list(rows["id"])
    assert json.loads((tmp_path / "out" / "_receipt.json").read_text())["rows"] == 90


def test_a_dry_run_of_a_shard_counts_its_share(label, source, tmp_path):
    estimates = []
    for options in ([], ["--shard", "1/2"], ["--shard", "1/5"]):
        code, err = label("--dry-run", *options)
        [line] = [line for line in err.splitlines() if line.startswith("rows")]
        estimates.append(int("".join(filter(str.isdecimal, line.split(",")[0]))))
        assert code == 0 and not (tmp_path / "out").exists()
    assert estimates == pytest.approx([2 * ROWS, ROWS, 2 * ROWS / 5], abs=1)


def test_an_output_named_like_a_table_is_refused(label, tmp_path):
    for name in ("o.csv", "o.parquet", "o.jsonl.zst", "o.CSV.gz"):
        code, err = label(output=name)
        assert code == 2 and name in err and "--output" in err and err.count("\n") == 1
        assert not (tmp_path / name).exists()


FAILURES = {
    "workers": (Classifier, "__init__", WorkerFailed("worker 1 of 1 died (SIGKILL)")),
    "the plan": (job, "find_plan", run.UserError("no plan")),
    "the first part": (pool, "write_part", OSError(28, "No space left on device")),
    "Ctrl-C": (pool, "label_table", KeyboardInterrupt()),
    "a shard": (run, "worker_specs", run.RunError("no export")),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_start_leaves_nothing(failure, label, tmp_path, monkeypatch):
    owner, name, error = FAILURES[failure]

    def fail(*_, **__):
        raise error

    shard = ["--shard", "1/2"] if failure == "a shard" else []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        code, err = label(*shard)
        if failure == "Ctrl-C":
            assert "--rows-per-file" not in err and "--rows-per-file" in label("--rows-per-file", 100)[1]
    assert code and not list((tmp_path / "out").iterdir()), err
    assert label(*shard)[0] == 0


def test_a_shard_that_fails_leaves_what_others_need(label, tmp_path, monkeypatch):
    other, record = contextlib.ExitStack(), tmp_path / "out" / "_job.json"

    def fail(*_):
        other.enter_context(folder.locked(locate(tmp_path / "out"), shared=True))  # a shard that began meanwhile
        record.write_text("{}")
        raise run.RunError("no export")

    monkeypatch.setattr(run, "worker_specs", fail)
    with other:
        assert label("--shard", "1/2")[0] == 1 and record.exists()


@pytest.mark.parametrize("stage", [(pool, "label_table"), (pool.LabelPool, "classify"), (run, "report_speed")])
def test_an_interrupted_run_says_how_many_rows_are_kept(stage, label, tmp_path, monkeypatch):
    owner, name = stage
    real, calls = getattr(owner, name), []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == 4 or owner is run:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        code, err = label()
    assert code == 130
    if owner is not run:
        kept = len(ids(tmp_path / "out"))
        [line] = [line for line in err.splitlines() if line.startswith("kept")]
        assert 0 < kept < 2 * ROWS and f" {kept} of" in line, (kept, line)
    assert label()[0] == 0 and len(ids(tmp_path / "out")) == 2 * ROWS


def test_a_resumed_run_reads_each_part_once(label, source, tmp_path, monkeypatch):
    assert label()[0] == 0
    (tmp_path / "a.csv").rename(source / "a.csv")
    real, read = folder.read_footer, []

    def counting(part):
        read.append(part.name)
        return real(part)

    monkeypatch.setattr(folder, "read_footer", counting)
    before = times(tmp_path / "out")
    assert label()[0] == 0 and sorted(read) == list(before)
    read.clear()
    assert label("--check-only")[0] == 0 and sorted(read) == list(times(tmp_path / "out"))


def test_parts_are_bounded_by_bytes(label, tmp_path, monkeypatch):
    """They are cut at the same rows by every run, however the file is read."""
    lengths = np.random.default_rng(0).integers(1, 400, 60)
    rows = pd.DataFrame({"id": map(str, range(60)), "body": ["x" * n for n in lengths]})
    rows.to_csv(tmp_path / "long.csv", index=False)
    monkeypatch.setattr(splits, "PART_BYTES", 4000)
    assert label("--rows-per-file", 50, source="long.csv")[0] == 0
    sizes = [len(pd.read_parquet(part)) for part in parts(tmp_path / "out")]
    ends = np.cumsum(sizes)
    bodies = [lengths[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    assert len(sizes) > 5 and all(4 * part.sum() < 4000 or len(part) == 1 for part in bodies)
    assert ids(tmp_path / "out") == list(rows["id"])
    names = [part.name for part in parts(tmp_path / "out")]
    for part in parts(tmp_path / "out")[2:5]:
        part.unlink()
    monkeypatch.setattr("bench.tables.format_csv.CHUNK_ROWS", 7)
    assert label("--rows-per-file", 50, source="long.csv")[0] == 0
    assert [part.name for part in parts(tmp_path / "out")] == names and ids(tmp_path / "out") == list(rows["id"])


MEMORY = """
import resource, sys
import pyarrow as pa
from bench.label.rows import OutputSpec
from bench.label.splits import cut_splits
from bench.model.stream import prefetch
from bench.tables.items import items_of
from bench.tables.readers import open_table
from bench.tables.storage import locate
table = open_table(sys.argv[1])
output = OutputSpec(table.schema, ["body"], [], ["a"], ["a"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
[split] = cut_splits([table], output, locate(sys.argv[1]))
parts = [len(items) for items in prefetch((items_of(part.table, ["body"]) for part in split.read(output)), queued=1)]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(parts), len(parts), (after - before) // 1024)
"""


def test_the_memory_for_long_texts_is_bounded(tmp_path):
    """8,000 texts of 60 KB are a file of a few hundred KB, and took 2.5 GB when they were one part."""
    line = json.dumps({"body": "long " * 12_000}) + "\n"
    (tmp_path / "long.jsonl.zst").write_bytes(zstandard.compress(line.encode() * 8000))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "long.jsonl.zst")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows, count, megabytes = map(int, done.stdout.split())
    assert rows == 8000 and count > 10 and megabytes < 500, done.stdout
