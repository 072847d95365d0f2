"""classify_texts.py: right labels in the input's order, nothing lost and nothing twice, and what is refused."""

import errno
import gzip
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, kill_after_a_part, refused

import classify_texts
from bench.label import output as parts
from bench.label import plan, pool
from bench.label.job import locked
from bench.label.plan import LabelPlan, choose_plan, fastest_valid_row
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
    """A folder with a CSV, a CSV.gz and a Parquet file: 90 rows, some without text."""
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
    """Labels the source in this process: the exit code, standard error and the parts as one table."""
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


def bodies_of(source) -> list:
    tables = [pd.read_csv(source / "a.csv"), pd.read_csv(source / "b.csv.gz"), pd.read_parquet(source / "c.parquet")]
    return pd.concat(tables)["body"].tolist()


def test_labels_are_those_of_transformers_pipeline_in_the_inputs_order(label, source, tiny_model):
    from transformers import pipeline

    code, err, found = label()
    assert code == 0 and "80 texts" in err and "90 rows" in err
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


def test_the_best_label_alone_and_the_columns_that_are_kept(label):
    _, _, whole = label()
    code, _, top = label("--top-label", "--keep-columns", "id", "--keep-text", "--limit", 50, output="top")
    assert code == 0 and list(top.columns) == ["id", "body", "label", "score"] and len(top) == 50
    full = top["label"].notna()
    assert list(top["label"][full]) == list(whole[:50][full][LABELS].idxmax(axis=1))
    assert np.allclose(top["score"][full], whole[:50][full][LABELS].max(axis=1))
    assert (~full).sum() == 6


def test_a_dry_run_says_what_it_will_be_and_writes_nothing(label, tiny_model, tmp_path):
    bodies = [random.randbytes(30).hex(" ", 3) for _ in range(30_000)]
    rows = pd.DataFrame({"id": map(str, range(30_000)), "body": bodies})
    rows.to_json(tmp_path / "many.jsonl.zst", orient="records", lines=True, compression="zstd")
    options = {"source": tmp_path / "many.jsonl.zst", "output": "dry"}
    code, err, found = label("--dry-run", **options)
    assert code == 0 and found is None and not (tmp_path / "dry").exists()
    said = {line.split()[0]: line for line in err.splitlines()}
    assert int(said["rows"].split()[2].replace(",", "")) == pytest.approx(30_000, rel=0.02)
    assert said["columns"].endswith("id, " + ", ".join(LABELS)) and "not known" in said["time"]
    label("--limit", 2000, "--rows-per-file", 2000, source=options["source"], output="real")
    size = sum(part.stat().st_size for part in part_files(tmp_path / "real")) * 15
    code, err, _ = label("--dry-run", **options)
    about, unit = next(line for line in err.splitlines() if line.startswith("output")).split()[2:4]
    assert unit == "kB," and float(about) * 1e3 == pytest.approx(size, rel=0.5)
    measuring = f"python run_benchmark.py --model torch --quick --device cpu --model-id {tiny_model} --dataset"
    assert f"{measuring} {options['source']} --column body --threads 1\n" in err


def test_folders_by_month_and_semicolons(label, source, tmp_path):
    rows = pd.read_csv(source / "a.csv")
    for month in ("01", "02"):
        folder = tmp_path / "months" / "year=2024" / f"month={month}"
        folder.mkdir(parents=True)
        rows.to_csv(folder / "a.csv.zst", index=False, sep=";", encoding="cp1252", errors="replace")
    options = {"source": tmp_path / "months", "output": "months-out"}
    code, err, found = label("--delimiter", ";", "--encoding", "cp1252", **options)
    assert code == 0 and list(found.columns[:4]) == ["id", "subreddit", "year", "month"], err
    assert list(found["month"]) == ["01"] * 30 + ["02"] * 30 and list(found["id"][30:]) == list(rows["id"])
    assert "no encoding" in label("--encoding", "cp1252x", **options)[1]
    assert "not one character" in label("--delimiter", "||", **options)[1]
    assert "no column 'body'" in label(**options)[1]


def test_small_output_some_labels_in_half_precision_without_low_scores(label, tmp_path):
    _, _, whole = label(output="whole")
    code, err, found = label("--float16", "--labels", "LABEL_3,LABEL_1", "--min-score", 0.5)
    assert code == 0 and list(found.columns) == ["id", "subreddit", "LABEL_3", "LABEL_1"], err
    for name in ("LABEL_3", "LABEL_1"):
        expected = whole[name].where(whole[name] >= 0.5)
        assert str(found[name].dtype) == "float16" and expected.isna().any() and expected.notna().any()
        assert (found[name].isna() == expected.isna()).all()
        assert np.allclose(found[name].astype(float), expected, rtol=0, atol=2**-12, equal_nan=True)
    assert json.loads((tmp_path / "out" / "_receipt.json").read_text())["flips"] == 0
    assert "receipt    within tolerance" in label("--float16", "--top-label", output="top")[1]
    assert "the model has no label 'joy'; it has LABEL_0" in label("--labels", "joy", output="other")[1]
    assert "--top-label goes with neither" in label("--labels", "LABEL_1", "--top-label", output="other")[1]


def break_once(monkeypatch, owner, name: str, after: int, error: BaseException) -> None:
    """Makes the call number `after` of a function fail."""
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
    (parts.pq, "write_table", 2),
]


@pytest.mark.parametrize(("owner", "name", "after"), STAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_result(owner, name, after, error, label, monkeypatch, tmp_path):
    _, _, whole = label(output="whole")
    with monkeypatch.context() as patch:
        break_once(patch, owner, name, after, error)
        code, err, _ = label()
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1) and "Traceback" not in err
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]
    code, _, found = label()
    assert code == 0
    pd.testing.assert_frame_equal(found, whole)
    assert "already" in label()[1]


def test_a_worker_that_fails_is_started_again_and_twice_over_the_same_rows_is_the_end(label, monkeypatch):
    _, _, whole = label(output="whole")
    with monkeypatch.context() as patch:
        break_once(patch, Classifier, "predict_share", 2, WorkerFailed("worker 1 of 1 died (SIGKILL)"))
        code, err, found = label()
    assert code == 0 and "rows 0 to 29 of file 2: worker 1 of 1 died (SIGKILL); once more" in err
    pd.testing.assert_frame_equal(found, whole)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Classifier, "predict_share", fail)
    code, err, found = label("--limit", 20, output="other")
    assert (
        code == 1
        and "rows 0 to 19 of file 1: workers fail on more than 3 texts: out of memory" in err
        and found is None
    )


def test_kill_9_loses_nothing(tiny_model, tiny_exports, source, tmp_path, label):
    """In real processes, with two workers, killed as soon as there is a part."""
    shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    command = [sys.executable, SCRIPT, tiny_model, source, "--output", "killed", "--device", "cpu"]
    command += ["--variant", "onnx", "--rows-per-file", "9", "--workers", "2", "--threads", "1"]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    kill_after_a_part(process, tmp_path / "killed")
    assert 1 <= len(part_files(tmp_path / "killed")) < 12
    again = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "90 rows in all" in again.stderr
    _, _, whole = label(output="whole")
    found = pd.read_parquet(tmp_path / "killed")
    assert list(found["id"]) == list(whole["id"])
    assert np.allclose(found[LABELS], whole[LABELS], atol=1e-5, equal_nan=True)


def test_wrong_input_is_refused_before_anything_runs(label, source, tmp_path):
    refusals = {
        ("--column", "text"): "no column 'text'",
        ("--keep-columns", "id,author"): "no column 'author'",
        ("--variant", "torch", "--gpu", "x"): "not a whole number",
        ("--rows-per-file", 0): "not a whole number",
        ("--gpu", "0,1"): "--gpu goes with neither",
        ("--output", source): "lie in each other",
        ("--output", source / "labels"): "lie in each other",
        ("--output", tmp_path / "link"): "lie in each other",
    }
    (tmp_path / "link").symlink_to(source)
    for options, words in refusals.items():
        code, err, found = label(*options)
        assert code == 2 and words in err and err.count("\n") == 1 and found is None
    clash = pd.read_csv(source / "a.csv").assign(LABEL_1="x")
    clash.to_csv(tmp_path / "clash.csv", index=False)
    code, err, found = label(source=tmp_path / "clash.csv")
    assert code == 2 and "'LABEL_1'" in err and found is None
    assert label("--top-label", source=tmp_path / "clash.csv")[0] == 0
    assert label(source=tmp_path / "none.csv", output="none")[0] == 2


def test_another_job_or_foreign_files_in_the_folder_are_refused(label, source, tmp_path):
    assert label("--limit", 10)[0] == 0
    code, err, _ = label("--limit", 20)
    assert code == 2 and "parts that were made otherwise (--limit was 10)" in err
    frame = pd.read_csv(source / "a.csv")
    frame.iloc[::-1].to_csv(source / "a.csv", index=False)
    code, err, _ = label("--limit", 10)
    assert code == 2 and "parts that were made otherwise (the input)" in err
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
        code, err, _ = label("--limit", 10)
        assert code == 2 and "another run" in err


def test_parts_that_are_not_whole_are_made_again_and_foreign_ones_are_kept(label, tmp_path):
    _, _, whole = label("--rows-per-file", 30)
    first, second, last = part_files(tmp_path / "out")
    second.write_bytes(first.read_bytes()[:-5])
    assert label("--rows-per-file", 30)[2].equals(whole)
    pd.read_parquet(last).head(5).to_parquet(last)
    (tmp_path / "out" / "_job.json").write_text("{")
    code, err, _ = label("--rows-per-file", 30)
    assert code == 2 and "parts that were made otherwise (" in err
    code, _, found = label("--rows-per-file", 30, "--overwrite")
    assert code == 0 and found.equals(whole)
    pd.read_parquet(last).head(5).to_parquet(last)
    assert label("--rows-per-file", 30)[2].equals(whole)
    shutil.copy(first, tmp_path / "out" / "part-000000-0000000070.parquet")
    code, err, _ = label("--rows-per-file", 30)
    assert code == 2 and "part-000000-0000000070.parquet is behind the last row" in err
    (tmp_path / "out" / "_job.json").unlink()
    code, err, _ = label("--rows-per-file", 30, "--overwrite")
    assert code == 2 and "no run of this script" in err and first.exists()


def test_texts_that_are_none_are_said(label, tmp_path):
    pd.DataFrame({"id": [1, 2], "body": [None, " "]}).to_parquet(tmp_path / "none.parquet")
    code, err, found = label(source=tmp_path / "none.parquet")
    assert code == 0 and "no row has a text; 2 rows in all" in err and found[LABELS].isna().all(axis=None)
    pd.DataFrame({"id": [1], "body": [5]}).to_parquet(tmp_path / "numbers.parquet")
    assert "not text, it is int64" in label(source=tmp_path / "numbers.parquet", output="other")[1]


def test_a_broken_file_in_the_middle_leaves_what_was_done(label, source):
    """The head of a file is read before the start, the rest when its turn comes."""
    whole = gzip.compress(b"id,subreddit,body\n" + b'1,x," "\n' * 40_000)
    (source / "b.csv.gz").write_bytes(whole[:-20])
    code, err, found = label("--rows-per-file", 30)
    assert code == 2 and "b.csv.gz can't be read" in err.splitlines()[-1] and len(found) >= 30
    (source / "b.csv.gz").write_bytes(whole[:20])
    code, err, found = label("--rows-per-file", 30, output="other")
    assert code == 2 and "b.csv.gz can't be read" in err.splitlines()[-1] and found is None


def test_bad_rows_are_set_aside_and_named_and_strict_stops(label, source, tmp_path):
    (source / "a.csv").write_bytes(b"id,subreddit,body\n1,x,one\n2,x\n3,x,caf\xe9\n4,x,four\n")
    (source / "b.csv.gz").unlink()
    (source / "d.jsonl").write_text('{"id": "8", "subreddit": "x", "body": "eight"}\n{"id": 9\n')
    code, err, found = label()
    assert code == 0 and len(found) == 4 + 30 + 2 and "bad rows   3 could not be read" in err
    assert f"the first: {source / 'a.csv'}, line 3: 2 fields, the header has 3" in err
    assert f"of the first 4, such as {source / 'a.csv'}, line 3: " in label("--dry-run")[1]
    assert list(found["id"][:4].fillna("")) == ["1", "", "", "4"]
    assert list(found[LABELS].isna().all(axis=1)[:4]) == [False, True, True, False]
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    assert [(row["part"], row["row"], row["line"]) for row in bad] == [
        ("part-000000-0000000000.parquet", 1, 3),
        ("part-000000-0000000000.parquet", 2, 4),
        ("part-000002-0000000000.parquet", 1, 2),
    ]
    assert bad[0]["file"] == str(source / "a.csv") and "2 fields, the header has 3" in bad[0]["reason"]
    assert json.loads((tmp_path / "out" / "_receipt.json").read_text())["bad_rows"] == 3
    code, err, _ = label("--strict", output="strict")
    assert code == 1 and "a.csv, line 3: 2 fields, the header has 3" in err.splitlines()[-1]


def test_a_text_on_which_workers_die_is_found_by_halving_and_set_aside(label, source, tmp_path, monkeypatch):
    rows = pd.read_csv(source / "a.csv")
    rows.loc[[5, 17], "body"] = "the deadly text"
    rows.to_csv(source / "a.csv", index=False)
    predict = Classifier.predict_share

    def fail(self, file, batching):
        if "the deadly text" in file.read_text():
            raise WorkerFailed("worker 1 of 1 died (SIGKILL)")
        return predict(self, file, batching)

    _, _, whole = label(output="whole")
    monkeypatch.setattr(Classifier, "predict_share", fail)
    code, err, found = label()
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    assert code == 0 and [row["row"] for row in bad] == [5, 17]
    assert "died (SIGKILL)" in bad[0]["reason"] and "halved to find the text" in err
    others = [i for i in range(len(whole)) if i not in (5, 17)]
    pd.testing.assert_frame_equal(found.iloc[others], whole.iloc[others])
    assert found.loc[[5, 17], LABELS].isna().all(axis=None)


def test_the_fastest_row_that_is_proven_says_how(tiny_model, monkeypatch, tmp_path):
    model, device = Model.from_folder(tiny_model, "tiny"), slug(cpu_name())
    same = {"model": "tiny", "device": device, "dataset": "normal", "texts": 10, "texts_id": "t", "status": "ok"}
    same |= {"workers": 1, "threads": 1, "stage": "end-to-end", "passes": 1, "max_diff": 0.001, "decisions": 3000}
    same |= {"date": "2026-11-25T00:00:00.000000Z", "versions": "", "weights_id": model.weights_id}
    speeds = {("torch", 8): (50, 0.0), ("torch-compile", 16): (40, 0.0), ("onnx-int8", 8): (90, 0.01)}
    speeds[("torch-bf16", 8)] = 80, 1 / 3000  # neither proven nor refuted
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
        asked = dict.fromkeys(plan.PLAN_OPTIONS) | asked
        return choose_plan(kind, fastest_valid_row(tmp_path, name, model, tokens, asked["variant"]), asked)

    measured = Batching("token-budget", batch_tokens=8 * 50)  # of 8 texts with 40 tokens and a quarter of padding
    assert choose() == LabelPlan("cpu", "torch", 1, 1, measured)
    assert choose(workers=2, threads=3) == LabelPlan("cpu", "torch", 2, 3, measured)
    int8 = choose(variant="onnx-int8", batch_tokens=256)
    assert (int8.variant, int8.batching) == ("onnx-int8", Batching("token-budget", batch_tokens=256))
    assert choose(variant="pipeline").batching == Batching("in-order", 1)
    assert "makes its own batches" in refused(lambda: choose(variant="pipeline", batch_tokens=256))
    assert "can't run on a gpu" in refused(lambda: choose("gpu", variant="onnx-int8"))
    row = row | {"messages/s": 999, "min": 999, "max": 999, "versions": "transformers 3.0.0", "flips": 0.0}
    append_row(results_path(tmp_path / "results", row), row)
    assert choose().variant == "torch", "a row of other versions is of other tokens, and other speeds"
    for asked in ({"name": "other"}, {"tokens": 100}, {"model": model.with_thresholds("0.3")}):
        other = choose(**asked)
        assert other == LabelPlan("cpu", "torch", 1, cpu_cores(), Batching("token-budget", batch_tokens=1024)), asked
    assert choose(variant="torch-bf16").batching == measured, "who asks for it gets it, proven or not"


def test_a_variant_that_takes_texts_labels_too(label):
    _, _, whole = label()
    code, err, found = label("--variant", "pipeline", output="pipeline")
    assert code == 0 and "labelling by pipeline, 1 x 1, 1 in-order" in err and "80 texts, " in err
    assert list(found["id"]) == list(whole["id"])
    assert np.allclose(found[LABELS], whole[LABELS], atol=1e-5, equal_nan=True)


@pytest.mark.needs("ray")
def test_on_ray_the_parts_are_the_same(tiny_model, tiny_exports, source, tmp_path, label):
    """With an export, which travels, and files of which one goes on where a run stopped."""
    shutil.copytree(tiny_exports / "tiny-onnx", tmp_path / "tiny-onnx")
    _, _, whole = label("--rows-per-file", 9, output="whole")
    command = [sys.executable, SCRIPT, tiny_model, source, "--output", "ray", "--device", "cpu", "--ray"]
    command += ["--variant", "onnx", "--rows-per-file", 9, "--threads", 1]
    command = list(map(str, command))
    killed = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    kill_after_a_part(killed, tmp_path / "ray")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "90 rows in all" in done.stderr, done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "ray"), whole, check_exact=False, atol=1e-5)
    names = [path.name for path in part_files(tmp_path / "ray")]
    assert names == [path.name for path in part_files(tmp_path / "whole")] and len(names) == 4 + 4 + 5
    assert json.loads((tmp_path / "ray" / "_job.json").read_text())["plan"]["variant"] == "onnx"


def test_new_columns_may_have_a_prefix(label, source):
    scored = pd.read_csv(source / "a.csv").assign(score=7, LABEL_1="x")
    scored.to_csv(source.parent / "scored.csv", index=False)
    code, err, _ = label("--top-label", source=source.parent / "scored.csv")
    assert code == 2 and "two columns would be called 'score': --prefix renames the new columns" in err
    code, _, top = label("--top-label", "--prefix", "go_", source=source.parent / "scored.csv")
    assert code == 0 and list(top.columns) == ["id", "subreddit", "score", "LABEL_1", "go_label", "go_score"]
    code, _, found = label("--prefix", "p_", source=source.parent / "scored.csv", output="all")
    assert code == 0 and list(found.columns[-5:]) == [f"p_{name}" for name in LABELS]


@pytest.mark.parametrize("how", ["windows", "windows-mean"])
def test_long_texts_in_windows_are_what_transformers_says_of_its_own_windows(how, label, tiny_model, texts, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    bodies = [texts[0], " ".join(texts[:40]), None, " ".join(texts[40:60]), texts[1], "x" * 3000]
    pd.DataFrame({"body": bodies}).to_parquet(tmp_path / "long.parquet")
    code, err, found = label("--long", how, "--token-count", source=tmp_path / "long.parquet")
    assert code == 0 and "3 texts are longer than 128 tokens: in windows" in err, err
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
    assert "tokens lost" in err and not np.allclose(
        cut.loc[1, LABELS].astype(float), found.loc[1, LABELS].astype(float)
    )
    code, err, _ = label("--long", how, "--variant", "pipeline", source=tmp_path / "long.parquet", output="pipeline")
    assert code == 2 and "--long windows: pipeline takes the texts themselves" in err


def test_comments_that_are_gone_are_no_texts(label, tmp_path):
    gone = ["[removed]", "[deleted]", "[ Removed by Reddit ]", "[unavailable]", " [deleted by user]\n"]
    gone += ["[removed by reddit]"]
    gone.append("[ Removed by reddit in response to a copyright notice. ]")
    kept = ["[removed] it", "why was it [deleted]?", "removed", "[remove]"]
    pd.DataFrame({"body": gone + kept}).to_csv(tmp_path / "gone.csv", index=False)
    _, err, found = label(source=tmp_path / "gone.csv")
    assert list(found[LABELS].isna().all(axis=1)) == [True] * 7 + [False] * 4 and "4 texts" in err
    assert "11, 7 of them without text (7 removed or deleted)" in err


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_a_note(number, label, monkeypatch):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    code, err, found = label()
    assert code == 0 and "out can't be locked (" in err and len(found) == 90


def test_what_is_locked_is_a_file_that_is_open_for_writing(tmp_path, monkeypatch):
    """NFS refuses the lock of anything else with EBADF."""
    writable = []
    monkeypatch.setattr("fcntl.flock", lambda file, _: writable.append(file.writable()))
    with locked(locate(tmp_path / "out")):
        assert writable == [True]


DAMAGES = {
    "a key is gone": lambda job: job.pop("plan"),
    "a key of the plan is gone": lambda job: job["plan"].pop("workers"),
    "a key too many": lambda job: job.update(more=1),
    "the plan is a number": lambda job: job.update(plan=5),
    "a variant that is gone": lambda job: job["plan"].update(variant="caffe"),
    "other versions": lambda job: job["versions"].update(tokenizers="0.1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_of_a_job_that_is_not_this_one_are_refused_in_one_line(damage, label, tmp_path):
    label()
    file = tmp_path / "out" / "_job.json"
    job = json.loads(file.read_text())
    DAMAGES[damage](job)
    file.write_text(json.dumps(job))
    code, err, _ = label()
    word = {"a key too many": "--more was 1", "other versions": "versions of packages"}.get(damage, "how it ran")
    assert code == 2 and f"holds parts that were made otherwise ({word}): name another folder" in err
    assert err.count("\n") == 1 or "measured" in err


@pytest.mark.parametrize("variant", ["torch", "onnx"])
def test_a_model_or_an_export_that_is_replaced_meanwhile_stops_the_run(
    variant, label, tiny_model, tiny_exports, tmp_path, monkeypatch
):
    """A worker that dies is started again: it must not go on with another model's answers."""
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
    assert code == 1 and f"{'tiny' if variant == 'torch' else 'tiny-onnx'} has changed since the run began" in err
    assert len(found) == 30, "the part before stays"
