"""classify_texts.py: correct labels in the input's order, interrupted runs, and wrong usage."""

import errno
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, kill_after_a_part, refused

import classify_texts
from bench.judge import WITHIN
from bench.label import folder, pool
from bench.label.folder import locked
from bench.label.plan import LabelPlan, PlanOptions, choose_plan, fastest_valid_row
from bench.machine import cpu_cores, cpu_name
from bench.model.batches import Batching
from bench.model.model import Model
from bench.naming import slug
from bench.processes import WorkerFailed
from bench.provenance import package_versions
from bench.report.rows import COLUMNS, append_row, results_path
from bench.tables.storage import locate
from runtimes import VARIANTS
from runtimes.classifier import Classifier

SCRIPT = ROOT / "classify_texts.py"
LABELS = [f"LABEL_{i}" for i in range(5)]


@pytest.fixture
def source(tmp_path, texts):
    """Write a folder with a CSV, a CSV.gz and a Parquet file: 90 rows, some without text."""
    bodies = [None if i % 20 == 3 else " " if i % 20 == 7 else text for i, text in enumerate(texts[:90])]
    rows = pd.DataFrame({"id": [f"r{i}" for i in range(90)], "subreddit": "x", "body": bodies})
    folder = tmp_path / "source"
    folder.mkdir()
    rows[:30].to_csv(folder / "a.csv", index=False)
    rows[30:60].to_csv(folder / "b.csv.gz", index=False)
    rows[60:].to_parquet(folder / "c.parquet", index=False, row_group_size=7)
    return folder


@pytest.fixture
def label(call, tiny_model, source, tmp_path, monkeypatch):
    """Return a function that labels the source and returns exit code, standard error and the output as one table."""
    monkeypatch.chdir(tmp_path)
    options = ["--device", "cpu", "--variant", "torch", "--threads", 1, "--rows-per-file", 40]

    def label(*arguments, output="out", model=tiny_model, source=source):
        given = [*options, *arguments]
        code, out, err = call(classify_texts, model, source, "--output", output, *given)
        assert not out
        return code, err, pd.read_parquet(output) if part_files(tmp_path / output) else None

    return label


def part_files(folder) -> list:
    return sorted(folder.glob("part-*"))


def part_times(folder) -> dict[str, int]:
    """Return when each part was written: a part that is labelled again has another time."""
    return {part.name: part.stat().st_mtime_ns for part in part_files(folder)}


def read_receipt(folder) -> dict:
    return json.loads((folder / "_receipt.json").read_text())


def numbers(text: str) -> set[int]:
    return {int(number.replace(",", "")) for number in re.findall(r"\d+(?:,\d{3})*", text)}


def check_refused(answer, *names: str) -> None:
    """Assert on exit code 2, and that the last line has these names."""
    code, err, _ = answer
    assert code == 2 and all(name in err.splitlines()[-1] for name in names), err


def bodies_of(source) -> list:
    tables = [pd.read_csv(source / "a.csv"), pd.read_csv(source / "b.csv.gz"), pd.read_parquet(source / "c.parquet")]
    return pd.concat(tables)["body"].tolist()


def test_labels_equal_those_of_transformers_pipeline_in_the_inputs_order(label, source, tiny_model):
    from transformers import pipeline

    code, err, found = label()
    assert code == 0 and {80, 90} <= numbers(err)
    assert list(found.columns) == ["id", "subreddit", *LABELS] and set(found.dtypes[LABELS]) == {np.dtype("float32")}
    assert list(found["id"]) == [f"r{i}" for i in range(90)]
    assert [len(pd.read_parquet(path)) for path in part_files(source.parent / "out")] == [30, 30, 30]
    bodies = bodies_of(source)
    full = [i for i, body in enumerate(bodies) if isinstance(body, str) and body.strip()]
    ask = pipeline("text-classification", str(tiny_model), top_k=None, truncation=True, max_length=128)
    answers = [{one["label"]: one["score"] for one in some} for some in ask([bodies[i] for i in full])]
    expected = pd.DataFrame(answers)[LABELS].to_numpy()
    assert np.abs(found[LABELS].to_numpy()[full] - expected).max() < 1e-5
    assert ((found[LABELS].to_numpy()[full] > 0.5) == (expected > 0.5)).all()
    assert found[LABELS].drop(index=full).isna().all(axis=None)


def test_the_top_label_and_the_kept_columns(label):
    _, _, whole = label()
    code, _, top = label("--top-label", "--keep-columns", "id", "--keep-text", "--limit", 50, output="top")
    assert code == 0 and list(top.columns) == ["id", "body", "label", "score"] and len(top) == 50
    full = top["label"].notna()
    assert list(top["label"][full]) == list(whole[:50][full][LABELS].idxmax(axis=1))
    assert np.allclose(top["score"][full], whole[:50][full][LABELS].max(axis=1))
    assert (~full).sum() == 6


def test_a_dry_run_estimates_the_job_and_writes_nothing(label, tmp_path):
    bodies = [random.randbytes(30).hex(" ", 3) for _ in range(30_000)]
    rows = pd.DataFrame({"id": map(str, range(30_000)), "body": bodies})
    rows.to_json(tmp_path / "many.jsonl.zst", orient="records", lines=True, compression="zstd")
    options = {"source": tmp_path / "many.jsonl.zst", "output": "dry"}
    code, err, found = label("--dry-run", **options)
    assert code == 0 and found is None and not (tmp_path / "dry").exists()
    assert any(number == pytest.approx(30_000, rel=0.02) for number in numbers(err))
    assert ", ".join(["id", *LABELS]) in err
    label("--limit", 2000, "--rows-per-file", 2000, source=options["source"], output="real")
    size = sum(part.stat().st_size for part in part_files(tmp_path / "real")) * 15
    code, err, _ = label("--dry-run", **options)
    [(estimate, unit)] = re.findall(r"([\d.,]+) (kB|MB|GB)\b", err)
    unit_bytes = {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(estimate.replace(",", "")) * unit_bytes == pytest.approx(size, rel=0.5)


def test_folder_columns_delimiter_and_encoding(label, source, tmp_path):
    rows = pd.read_csv(source / "a.csv")
    for month in ("01", "02"):
        folder = tmp_path / "months" / "year=2024" / f"month={month}"
        folder.mkdir(parents=True)
        rows.to_csv(folder / "a.csv.zst", index=False, sep=";", encoding="cp1252", errors="replace")
    options = {"source": tmp_path / "months", "output": "months-out"}
    code, err, found = label("--delimiter", ";", "--encoding", "cp1252", **options)
    assert code == 0 and list(found.columns[:4]) == ["id", "subreddit", "year", "month"], err
    assert list(found["month"]) == ["01"] * 30 + ["02"] * 30 and list(found["id"][30:]) == list(rows["id"])
    check_refused(label("--encoding", "cp1252x", **options), "--encoding", "cp1252x")
    check_refused(label("--delimiter", "||", **options), "--delimiter", "||")
    check_refused(label(**options), "body")


def test_small_output_has_some_labels_in_float16_without_low_scores(label, tmp_path):
    _, _, whole = label(output="whole")
    code, err, found = label("--float16", "--labels", "LABEL_3,LABEL_1", "--min-score", 0.5)
    assert code == 0 and list(found.columns) == ["id", "subreddit", "LABEL_3", "LABEL_1"], err
    for name in ("LABEL_3", "LABEL_1"):
        expected = whole[name].where(whole[name] >= 0.5)
        assert str(found[name].dtype) == "float16" and expected.isna().any() and expected.notna().any()
        assert (found[name].isna() == expected.isna()).all()
        assert np.allclose(found[name].astype(float), expected, rtol=0, atol=2**-12, equal_nan=True)
    assert read_receipt(tmp_path / "out")["flips"] == 0
    assert label("--float16", "--top-label", output="top")[0] == 0
    assert read_receipt(tmp_path / "top")["verdict"] == WITHIN
    check_refused(label("--labels", "joy", output="other"), "--labels", "joy", *LABELS)
    check_refused(label("--labels", "LABEL_1", "--top-label", output="other"), "--labels", "--top-label")


def break_once(monkeypatch, owner, name: str, after: int, error: BaseException) -> None:
    """Make the call number `after` of a function fail."""
    real, calls = getattr(owner, name), []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == after:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, broken)


STAGES = [
    (pool, "label_table", 2),
    (pool, "write_part", 1),
    (pool, "write_part", 3),
    (folder.pq, "write_table", 2),
]


@pytest.mark.parametrize(("owner", "name", "after"), STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_resumes_to_the_same_result(owner, name, after, error, label, monkeypatch, tmp_path):
    _, _, whole = label(output="whole")
    with monkeypatch.context() as patch:
        break_once(patch, owner, name, after, error)
        code, err, _ = label()
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1) and "Traceback" not in err
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]
    code, _, found = label()
    assert code == 0
    pd.testing.assert_frame_equal(found, whole)
    times = part_times(tmp_path / "out")
    assert label()[0] == 0 and part_times(tmp_path / "out") == times, "nothing is labelled again"


def test_a_failed_worker_is_restarted_but_not_for_ever(label, monkeypatch):
    _, _, whole = label(output="whole")
    with monkeypatch.context() as patch:
        break_once(patch, Classifier, "predict_share", 2, WorkerFailed("worker 1 of 1 died (SIGKILL)"))
        code, err, found = label()
    [line] = [line for line in err.splitlines() if "worker 1 of 1 died (SIGKILL)" in line]
    assert code == 0 and {0, 29} <= numbers(line) and "part-b.csv" in line, "the rows and the file"
    pd.testing.assert_frame_equal(found, whole)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Classifier, "predict_share", fail)
    code, err, found = label("--limit", 20, output="other")
    last = err.splitlines()[-1]
    assert code == 1 and {0, 19, pool.MAX_FAILED_TEXTS} <= numbers(last) and "memory" in last and found is None


def test_kill_9_loses_nothing(tiny_model, tiny_exports, source, tmp_path, label):
    """Real processes with two workers are killed once there is a part; this process resumes."""
    shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    command = [sys.executable, SCRIPT, tiny_model, source, "--output", "killed", "--device", "cpu"]
    command += ["--variant", "onnx", "--rows-per-file", "9", "--workers", "2", "--threads", "1"]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    kill_after_a_part(process, tmp_path / "killed")
    assert 1 <= len(part_files(tmp_path / "killed")) < 12
    code, err, found = label("--variant", "onnx", "--rows-per-file", 9, "--workers", 2, output="killed")
    assert code == 0 and 90 in numbers(err), err
    _, _, whole = label(output="whole")
    assert list(found["id"]) == list(whole["id"])
    assert np.allclose(found[LABELS], whole[LABELS], atol=1e-5, equal_nan=True)


def test_wrong_input_is_refused_before_anything_runs(label, source, tmp_path):
    refusals = {
        ("--column", "text"): ["'text'", "--column"],
        ("--keep-columns", "id,author"): ["author"],
        ("--variant", "torch", "--gpu", "x"): ["--gpu", "'x'"],
        ("--rows-per-file", 0): ["--rows-per-file", "'0'"],
        ("--gpu", "0,1"): ["--gpu", "--device"],
        ("--variant", "onx"): ["--variant", "onx", "onnx"],
    }
    for options, names in refusals.items():
        code, err, found = label(*options)
        check_refused((code, err, found), *names)
        assert err.count("\n") == 1 and found is None
    (tmp_path / "link").symlink_to(source)
    for output in (source, source / "labels", tmp_path / "link"):
        code, err, found = label(output=output)
        check_refused((code, err, found), output.name)
        assert "a.csv" not in err and found is None and not (source / "labels").exists()
    clash = pd.read_csv(source / "a.csv").assign(LABEL_1="x")
    clash.to_csv(tmp_path / "clash.csv", index=False)
    code, err, found = label(source=tmp_path / "clash.csv")
    assert code == 2 and "LABEL_1" in err and found is None
    assert label("--top-label", source=tmp_path / "clash.csv")[0] == 0
    assert label(source=tmp_path / "none.csv", output="none")[0] == 2


def test_a_folder_with_another_job_or_foreign_files_is_refused(label, source, tmp_path):
    assert label("--limit", 10)[0] == 0
    check_refused(label("--limit", 20), "--limit", "10")
    frame = pd.read_csv(source / "a.csv")
    frame.iloc[::-1].to_csv(source / "a.csv", index=False)
    code, err, _ = label("--limit", 10)
    assert code == 2 and "a.csv" in err.splitlines()[-1] and "--limit" not in err
    code, _, found = label("--limit", 10, "--overwrite")
    assert code == 0 and list(found["id"]) == list(frame["id"][::-1][:10])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    code, err, _ = label("--overwrite", output="mine")
    assert code == 2 and "thesis.txt" in err and (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "mine" / "thesis.txt").rename(tmp_path / "mine" / "thesis.tmp")
    code, err, _ = label(output="mine")
    assert code == 2 and "thesis.tmp" in err and (tmp_path / "mine" / "thesis.tmp").exists()
    with locked(locate(tmp_path / "out")):
        check_refused(label("--limit", 10), str(tmp_path / "out"))
    assert label("--limit", 10)[0] == 0


def test_incomplete_parts_are_written_again_and_foreign_ones_are_kept(label, tmp_path):
    _, _, whole = label("--rows-per-file", 30)
    first, second, last = part_files(tmp_path / "out")
    second.write_bytes(first.read_bytes()[:-5])
    assert label("--rows-per-file", 30)[2].equals(whole)
    pd.read_parquet(last).head(5).to_parquet(last)
    (tmp_path / "out" / "_job.json").write_text("{")
    check_refused(label("--rows-per-file", 30), "--overwrite")
    code, _, found = label("--rows-per-file", 30, "--overwrite")
    assert code == 0 and found.equals(whole)
    pd.read_parquet(last).head(5).to_parquet(last)
    assert label("--rows-per-file", 30)[2].equals(whole)
    behind = first.with_name(first.name.replace("-0000000000.", "-0000000070."))
    shutil.copy(first, behind)
    check_refused(label("--rows-per-file", 30), behind.name)
    (tmp_path / "out" / "_job.json").unlink()
    check_refused(label("--rows-per-file", 30, "--overwrite"), first.name)
    assert first.exists()


def test_input_without_texts(label, tmp_path):
    pd.DataFrame({"id": [1, 2], "body": [None, " "]}).to_parquet(tmp_path / "none.parquet")
    code, err, found = label(source=tmp_path / "none.parquet")
    assert code == 0 and re.search(r"\b2\b.*\b2\b", err) and found[LABELS].isna().all(axis=None)
    receipt = read_receipt(tmp_path / "out")
    assert (receipt["rows"], receipt["texts"], receipt["rows_without_text"]) == (2, 0, 2)
    pd.DataFrame({"id": [1], "body": [5]}).to_parquet(tmp_path / "numbers.parquet")
    check_refused(label(source=tmp_path / "numbers.parquet", output="other"), "body", "int64")


def test_a_damaged_file_in_the_middle_keeps_the_parts_before_it(label, source):
    """The beginning of each file is read before the run starts."""
    whole = gzip.compress(b"id,subreddit,body\n" + b'1,x," "\n' * 40_000)
    (source / "b.csv.gz").write_bytes(whole[:-20])
    code, err, found = label("--rows-per-file", 30)
    assert code == 2 and "b.csv.gz" in err.splitlines()[-1] and len(found) >= 30
    (source / "b.csv.gz").write_bytes(whole[:20])
    code, err, found = label("--rows-per-file", 30, output="other")
    assert code == 2 and "b.csv.gz" in err.splitlines()[-1] and found is None


def test_bad_rows_are_listed_and_strict_stops_at_them(label, source, tmp_path):
    (source / "a.csv").write_bytes(b"id,subreddit,body\n1,x,one\n2,x\n3,x,caf\xe9\n4,x,four\n")
    (source / "b.csv.gz").unlink()
    (source / "d.jsonl").write_text('{"id": "8", "subreddit": "x", "body": "eight"}\n{"id": 9\n')
    code, err, found = label()
    first_bad = f"{source / 'a.csv'}, line 3"
    assert code == 0 and len(found) == 4 + 30 + 2 and re.search(r"\b3\b.*_bad_rows\.jsonl", err)
    assert re.search(rf"{re.escape(first_bad)}.*\b2\b.*\b3\b", err), "2 fields where the header has 3"
    assert re.search(rf"\b2\b.*\b4\b.*{re.escape(first_bad)}", label("--dry-run")[1]), "2 of the first 4 are bad"
    assert list(found["id"][:4].fillna("")) == ["1", "", "", "4"]
    assert list(found[LABELS].isna().all(axis=1)[:4]) == [False, True, True, False]
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    parts = [path.name for path in part_files(tmp_path / "out")]
    places = [(parts.index(row["part"]), row["row"], row["line"]) for row in bad]
    assert places == [(0, 1, 3), (0, 2, 4), (2, 1, 2)]
    assert bad[0]["file"] == str(source / "a.csv") and numbers(bad[0]["reason"]) == {2, 3}
    assert read_receipt(tmp_path / "out")["bad_rows"] == 3
    code, err, _ = label("--strict", output="strict")
    assert code == 1 and all(name in err.splitlines()[-1] for name in (first_bad, "--strict"))


def test_a_text_on_which_workers_die_is_found_and_listed(label, source, tmp_path, monkeypatch):
    rows = pd.read_csv(source / "a.csv")
    rows.loc[[5, 17], "body"] = "the deadly text"
    rows.to_csv(source / "a.csv", index=False)
    predict = Classifier.predict_share

    def fail(self, texts, batching):
        if "the deadly text" in texts:
            raise WorkerFailed("worker 1 of 1 died (SIGKILL)")
        return predict(self, texts, batching)

    _, _, whole = label(output="whole")
    monkeypatch.setattr(Classifier, "predict_share", fail)
    code, err, found = label()
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    assert code == 0 and [row["row"] for row in bad] == [5, 17]
    assert "SIGKILL" in bad[0]["reason"] and "SIGKILL" in err
    others = [i for i in range(len(whole)) if i not in (5, 17)]
    pd.testing.assert_frame_equal(found.iloc[others], whole.iloc[others])
    assert found.loc[[5, 17], LABELS].isna().all(axis=None)


def test_the_plan_follows_the_fastest_proven_row(tiny_model, monkeypatch, tmp_path):
    model, device = Model.from_folder(tiny_model, "tiny"), slug(cpu_name())
    same = {"model": "tiny", "device": device, "dataset": "normal", "texts": 10, "texts_id": "t", "status": "ok"}
    same |= {"workers": 1, "threads": 1, "stage": "end-to-end", "passes": 1, "max_diff": 0.001, "decisions": 4000}
    same |= {"date": "2026-11-25T00:00:00.000000Z", "versions": "", "weights_id": model.weights_id}
    speeds = {("torch", 8): (50, 0.0), ("torch-compile", 16): (40, 0.0), ("onnx-int8", 8): (90, 0.01)}
    speeds[("torch-bf16", 8)] = 80, 1 / 4000  # neither proven nor refuted
    for (variant, size), (speed, flips) in speeds.items():
        row = dict.fromkeys(COLUMNS, "") | same | {"variant": variant, "batching": "sorted", "batch_size": size}
        row |= {
            "messages/s": speed,
            "min": speed,
            "max": speed,
            "flips": flips,
            "tokens/s": 40 * speed,
            "padding": 1.25,
        }
        row["versions"] = package_versions(VARIANTS[variant])
        append_row(results_path(tmp_path / "results", row), row)

    def choose(kind: str = "cpu", name: str = device, tokens: float = 40, model=model, **asked) -> LabelPlan:
        options = PlanOptions(**asked)
        return choose_plan(kind, fastest_valid_row(tmp_path, name, model, tokens, options), options)

    measured = Batching("token-budget", batch_tokens=8 * 50)  # of 8 texts with 40 tokens and a quarter of padding
    assert choose() == LabelPlan("cpu", "torch", 1, 1, measured)
    assert choose(workers=2).threads == max(1, cpu_cores() // 2)
    assert choose(workers=2, threads=3) == LabelPlan("cpu", "torch", 2, 3, measured)
    int8 = choose(variant="onnx-int8", batch_tokens=256)
    assert (int8.variant, int8.batching) == ("onnx-int8", Batching("token-budget", batch_tokens=256))
    assert choose(variant="pipeline").batching == Batching("in-order", 1)
    message = refused(lambda: choose(variant="pipeline", batch_tokens=256))
    assert "pipeline" in message and "--batch-tokens" in message
    message = refused(lambda: choose("gpu", variant="onnx-int8"))
    assert "onnx-int8" in message and "gpu" in message.lower()
    row = row | {"messages/s": 999, "min": 999, "max": 999, "versions": "transformers 3.0.0", "flips": 0.0}
    append_row(results_path(tmp_path / "results", row), row)
    wrongs = [{"padding": ""}, {"padding": "inf"}, {"tokens/s": "nan"}, {"threads": 10**6}, {"workers": 10**6}]
    wrongs += [{"threads": 1024, "workers": 1024}, {"batch_size": 10**9}]
    for wrong in [*wrongs, {"batching": "token-budget", "batch_tokens": 2**31 - 1}]:
        fast = row | {"versions": package_versions(VARIANTS[row["variant"]]), "decisions": 30_000}
        append_row(results_path(tmp_path / "results", row), fast | wrong)
    assert choose().variant == "torch", "rows of other versions, or with impossible figures, do not count"
    for asked in ({"name": "other"}, {"tokens": 100}, {"model": model.with_thresholds("0.3")}):
        other = choose(**asked)
        assert other == LabelPlan("cpu", "torch", 1, cpu_cores(), Batching("token-budget", batch_tokens=1024)), asked
    assert choose(variant="torch-bf16").batching == measured, "a named variant need not be proven"


def test_a_variant_that_takes_texts_labels_like_others(label):
    _, _, whole = label()
    code, err, found = label("--variant", "pipeline", output="pipeline")
    assert code == 0 and "pipeline, 1 x 1, 1 in-order" in err and 80 in numbers(err)
    assert list(found["id"]) == list(whole["id"])
    assert np.allclose(found[LABELS], whole[LABELS], atol=1e-5, equal_nan=True)


def test_new_columns_can_have_a_prefix(label, source):
    scored = pd.read_csv(source / "a.csv").assign(score=7, LABEL_1="x")
    scored.to_csv(source.parent / "scored.csv", index=False)
    check_refused(label("--top-label", source=source.parent / "scored.csv"), "'score'", "--prefix")
    code, _, top = label("--top-label", "--prefix", "go_", source=source.parent / "scored.csv")
    assert code == 0 and list(top.columns) == ["id", "subreddit", "score", "LABEL_1", "go_label", "go_score"]
    code, _, found = label("--prefix", "p_", source=source.parent / "scored.csv", output="all")
    assert code == 0 and list(found.columns[-5:]) == [f"p_{name}" for name in LABELS]


@pytest.mark.parametrize("score", ["nan", "inf", "50", "-1", "many"])
def test_a_minimum_score_that_is_no_probability_is_refused(score, label):
    check_refused(label("--min-score", score), "--min-score")


@pytest.mark.parametrize("how", ["windows", "windows-mean"])
def test_windows_of_long_texts_give_what_transformers_gives_for_its_windows(how, label, tiny_model, texts, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bodies = [texts[0], " ".join(texts[:40]), None, " ".join(texts[40:60]), texts[1], "x" * 3000]
    pd.DataFrame({"body": bodies}).to_parquet(tmp_path / "long.parquet")
    code, err, found = label("--long", how, "--token-count", source=tmp_path / "long.parquet")
    assert code == 0 and re.search(r"\b3\b.*\b128\b", err), err
    assert read_receipt(tmp_path / "out")["tokens_lost"] == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    for body, row in zip(bodies, found.to_dict("records"), strict=True):
        if body is None:
            assert all(pd.isna(value) for value in row.values())
            continue
        cut = {"truncation": True, "max_length": 128, "stride": 32, "return_overflowing_tokens": True}
        windows = tokenizer(body, **cut)["input_ids"]
        with torch.inference_mode():
            each = torch.cat([model(torch.tensor([ids])).logits.sigmoid() for ids in windows])
        expected = each.mean(dim=0) if how == "windows-mean" else each.max(dim=0).values
        assert np.allclose([row[name] for name in LABELS], expected, rtol=0, atol=1e-5)
        assert row["tokens"] == len(tokenizer(body)["input_ids"])
    _, err, cut = label(source=tmp_path / "long.parquet", output="cut")
    assert read_receipt(tmp_path / "cut")["tokens_lost"] in numbers(err) - {0}
    assert not np.allclose(cut.loc[1, LABELS].astype(float), found.loc[1, LABELS].astype(float))
    options = ["--long", how, "--variant", "pipeline"]
    check_refused(label(*options, source=tmp_path / "long.parquet", output="pipeline"), "--long", "pipeline")


def test_removed_comments_are_not_texts(label, tmp_path):
    gone = ["[removed]", "[deleted]", "[ Removed by Reddit ]", "[unavailable]", " [deleted by user]\n"]
    gone += ["[removed by reddit]"]
    gone.append("[ Removed by reddit in response to a copyright notice. ]")
    kept = ["[removed] it", "why was it [deleted]?", "removed", "[remove]"]
    pd.DataFrame({"body": gone + kept}).to_csv(tmp_path / "gone.csv", index=False)
    _, err, found = label(source=tmp_path / "gone.csv")
    assert list(found[LABELS].isna().all(axis=1)) == [True] * 7 + [False] * 4 and 4 in numbers(err)
    assert re.search(r"\b11\b.*\b7\b.*\b7\b", err), "rows, those without text, those removed"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_reported(number, label, monkeypatch):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    code, err, found = label()
    assert code == 0 and os.strerror(number) in err and len(found) == 90


def test_the_lock_is_on_a_file_open_for_writing(tmp_path, monkeypatch):
    """NFS refuses any other lock with EBADF."""
    writable = []
    monkeypatch.setattr("fcntl.flock", lambda file, _: writable.append(file.writable()))
    with locked(locate(tmp_path / "out")):
        assert writable == [True]


DAMAGES = {
    "a missing key": lambda job: job.pop("columns"),
    "a missing option": lambda job: job["options"].pop("--variant"),
    "an additional key": lambda job: job.update(more=1),
    "the files are a number": lambda job: job.update(input=5),
    "an unknown variant": lambda job: job["options"].update({"--variant": "caffe"}),
    "other versions": lambda job: job["versions"].update(tokenizers="0.1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_of_another_or_a_damaged_job_are_refused_in_one_line(damage, label, tmp_path):
    label()
    file = tmp_path / "out" / "_job.json"
    job = json.loads(file.read_text())
    DAMAGES[damage](job)
    file.write_text(json.dumps(job))
    code, err, found = label()
    name = {"an additional key": "more", "other versions": "versions"}.get(damage, "--overwrite")
    check_refused((code, err, found), name)
    assert err.count("\n") == 1


@pytest.mark.parametrize("variant", ["torch", "onnx"])
def test_a_model_or_export_that_changes_during_the_run_stops_it(
    variant, label, tiny_model, tiny_exports, tmp_path, monkeypatch
):
    """A restarted worker must not continue with another model's answers."""
    model = shutil.copytree(tiny_model, tmp_path / "tiny")
    exported = shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    predict, calls = Classifier.predict_share, []

    def replaced(*arguments):
        calls.append(1)
        if len(calls) == 2:
            changed = model / "model.safetensors" if variant == "torch" else exported / "config.json"
            changed.write_bytes(changed.read_bytes() + b" ")
            raise WorkerFailed("worker 1 of 1 died (SIGKILL)")
        return predict(*arguments)

    monkeypatch.setattr(Classifier, "predict_share", replaced)
    code, err, found = label("--variant", variant, model=model)
    changed = str(model) if variant == "torch" else "tiny-onnx"
    assert code == 1 and changed in err.splitlines()[-1]
    assert len(found) == 30, "the part before is kept"
