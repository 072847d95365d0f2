"""classify_texts.py: how it checks its output, the receipt, and the benchmark before a long job."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import classify_texts
from bench.judge import NOT_WITHIN, WITHIN
from bench.measure import quick
from bench.measure.quick import head_texts
from bench.model.model import Model
from bench.report.evidence import EvidenceFile
from bench.report.rows import read_results
from bench.tables.readers import open_table
from runtimes.classifier import Classifier


@pytest.fixture
def source(tmp_path, texts):
    """Write 150 comments: two rows without text, one that is truncated, one with a special token."""
    bodies = [*texts[:146], None, "[deleted]", "word " * 500, "a <mask> in it"]
    pd.DataFrame({"id": range(150), "body": bodies}).to_csv(tmp_path / "comments.csv", index=False)
    return tmp_path / "comments.csv"


@pytest.fixture
def label(call, tiny_model, source, tmp_path, monkeypatch):
    """Return a function that labels them in parts of 60 rows and returns exit code, standard error and receipt."""
    monkeypatch.chdir(tmp_path)

    def label(*arguments, model=tiny_model, variant=("--variant", "torch")):
        given = ["--output", "out", "--device", "cpu", "--threads", 1, "--rows-per-file", 60, *variant, *arguments]
        code, _, err = call(classify_texts, model, source, *given)
        receipt = tmp_path / "out" / "_receipt.json"
        return code, err, json.loads(receipt.read_text()) if receipt.exists() else {}

    return label


def part_times(folder) -> dict[str, int]:
    """Return when each part was written: a part that is labelled again has another time."""
    return {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*")}


def test_every_run_leaves_a_receipt(label, tiny_model, source, tmp_path):
    (tmp_path / "results").mkdir()
    code, err, receipt = label()
    assert code == 0, err
    tokenizer, bodies = Model.from_folder(tiny_model, "tiny").tokenizer, pd.read_csv(source)["body"]
    full = [body for body in bodies if isinstance(body, str) and body != "[deleted]"]
    tokenizer.backend_tokenizer.no_truncation()
    lengths = np.array([len(tokenizer(body)["input_ids"]) for body in full])
    expected = {"rows": 150, "texts": 148, "rows_without_text": 2, "texts_without_answer": 0}
    expected |= {"tokens": np.minimum(lengths, 128).sum(), "texts_truncated": (lengths > 128).sum()}
    expected |= {"tokens_lost": (lengths - 128)[lengths > 128].sum(), "variant": "torch", "rows_compared": 60 + 8 + 8}
    expected |= {"flips": 0, "decisions": 76 * 5, "verdict": WITHIN, "texts_of_this_run": 148}
    assert {name: receipt[name] for name in expected} == expected
    assert receipt["largest_difference"] < 1e-5 and receipt["texts_truncated"] >= 1
    assert {"versions", "commit", "machine", "seconds", "messages/s", "export", "date"} <= receipt.keys()
    assert re.search(r"\b150\b.*\b2\b.*\b1\b", err), "rows, those without text, those removed"
    assert re.search(rf"\b{receipt['texts_truncated']}\b.*\b128\b.*\b{receipt['tokens_lost']:,}\b", err)
    assert re.search(r"\b76\b", err) and WITHIN in err.lower() and "_receipt.json" in err
    [(key, evidence)] = EvidenceFile(tmp_path / "results").found.items()
    assert {"comments.csv", "torch", receipt["weights_id"]} < {*key}
    assert (evidence.changed, evidence.decisions, len(evidence.changes)) == (0, 76 * 5, 76), "of other checks, too"
    times = part_times(tmp_path / "out")
    code, err, again = label()
    assert code == 0 and part_times(tmp_path / "out") == times and again == receipt


def wrong_from(number: int, real):
    """Wrap predict_share so that it inverts the probabilities from call `number` on."""
    calls = []

    def predict_share(*arguments):
        share, predictions = real(*arguments)
        calls.append(1)
        return share, replace(predictions, answers=abs(predictions.answers - (len(calls) >= number)))

    return predict_share


def test_a_wrong_run_stops_after_its_first_part(label, monkeypatch, tmp_path):
    monkeypatch.setattr(Classifier, "predict_share", wrong_from(1, Classifier.predict_share))
    code, err, receipt = label()
    assert code == 1 and NOT_WITHIN in err.splitlines()[-1].upper() and "--no-check" in err.splitlines()[-1]
    assert [path.name[-18:] for path in (tmp_path / "out").glob("part-*")] == ["0000000000.parquet"]
    assert receipt["verdict"] == NOT_WITHIN and receipt["rows"] == 60
    code, err, _ = label()
    assert code == 1 and "--overwrite" in err.splitlines()[-1] and len(list((tmp_path / "out").glob("part-*"))) == 1
    code, err, receipt = label("--no-check")
    before, _, after = err.upper().partition("MESSAGES/S")
    assert code == 0 and NOT_WITHIN in before and NOT_WITHIN in after, "after the first part, and at the end"
    assert receipt["rows"] == 150 and receipt["verdict"] == NOT_WITHIN


def test_a_missing_or_outdated_receipt_is_written_by_the_next_run(label, tmp_path):
    whole, times = label()[2], part_times(tmp_path / "out")
    file = tmp_path / "out" / "_receipt.json"
    for left in (None, whole | {"rows": 60}):
        file.write_text(json.dumps(left)) if left else file.unlink()
        code, err, receipt = label()
        assert code == 0 and part_times(tmp_path / "out") == times and re.search(r"\b76\b", err)
        assert (receipt["rows"], receipt["tokens"], receipt["rows_compared"]) == (150, whole["tokens"], 76)


def test_parts_that_are_wrong_later_are_found_at_the_end_and_by_a_check(label, monkeypatch, tmp_path):
    monkeypatch.setattr(Classifier, "predict_share", wrong_from(2, Classifier.predict_share))
    for options in ([], ["--check-only"]):
        code, _, receipt = label(*options)
        assert code == 1 and receipt["rows"] == 150 and receipt["rows_compared"] == 76
        assert receipt["verdict"] == NOT_WITHIN
        (tmp_path / "out" / "_receipt.json").unlink()


@pytest.mark.parametrize("options", [[], ["--top-label"]])
def test_an_existing_folder_can_be_checked(options, label, tmp_path):
    assert label("--no-check", *options)[0] == 0
    before = label(*options)[2]
    (tmp_path / "out" / "_receipt.json").unlink()
    code, err, receipt = label("--check-only", *options, variant=())
    assert code == 0 and receipt["rows"] == 150 and receipt["texts"] == 148
    same = "rows_compared", "decisions", "flips", "verdict", "variant", "weights_id"
    assert [receipt[name] for name in same] == [before[name] for name in same]
    code, err, _ = label("--check-only", *([] if options else ["--top-label"]), variant=())
    assert code == 2 and "--top-label" in err.splitlines()[-1]
    [part] = (tmp_path / "out").glob("part-comments.csv-*-0000000060.parquet")
    table = pq.read_table(part)
    column = table.schema.names.index("label" if options else "LABEL_1")
    backwards = table.column(column).take(np.arange(len(table))[::-1])
    pq.write_table(table.set_column(column, table.schema.field(column), backwards), part)
    for _ in ("edited", "missing"):
        code, err, _ = label("--check-only", *options, variant=())
        assert code == 2 and part.name in err.splitlines()[-1]
        part.unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "out")
    code, err, _ = label("--check-only", variant=())
    assert code == 2 and "--check-only" in err and not (tmp_path / "out").exists()


def test_the_threshold_determines_which_decisions_are_compared(label, tmp_path):
    code, _, receipt = label("--threshold", 0.9)
    assert code == 0 and "0.9" in receipt["decisions_are"]
    (tmp_path / "own.json").write_text('{"LABEL_9": 0.3}')
    code, err, _ = label("--threshold", "own.json")
    assert code == 2 and "LABEL_9" in err.splitlines()[-1]


def test_a_small_job_uses_fp32_without_a_benchmark(label, tmp_path):
    code, err, receipt = label(variant=())
    assert code == 0 and "FP32" in err and receipt["variant"] == "torch" and not (tmp_path / "results").exists()
    assert receipt["verdict"] == WITHIN and "FP32" in receipt["reason"] and receipt["column"] == "body"


def test_a_long_job_first_measures_its_own_texts(label, monkeypatch, tmp_path):
    """One command measures, exports and labels; the next one uses the rows that it saved."""
    monkeypatch.setattr(quick, "SMALL_JOB", 100)
    monkeypatch.setattr(quick, "JOB_SHARE", 1e9)
    monkeypatch.setattr(quick, "MAX_SECONDS", 21.0)
    monkeypatch.setattr(quick, "default_variants", lambda _: ["torch", "onnx"])
    code, err, receipt = label(variant=())
    assert code == 0, err
    assert re.search(r"\b21 s\b", err) and receipt["variant"] in ("torch", "onnx")
    assert all(re.search(rf"\b{name}\b.* messages/s.*{WITHIN}", err) for name in ("torch", "onnx"))
    assert re.search(rf"\b{receipt['variant']}, 1 x 1, \d+ tokens", err)
    rows, failed, _ = read_results(list((tmp_path / "results").rglob("*.tsv")))
    assert set(rows["variant"]) == {"torch", "onnx"} and not failed and set(rows["dataset"]) == {"comments.csv"}
    code, err, _ = label("--overwrite", variant=())
    assert code == 0 and re.search(rf"\b{receipt['variant']}\b.* messages/s.*comments\.csv", err)
    assert len(read_results(list((tmp_path / "results").rglob("*.tsv")))[0]) == len(rows), "nothing is measured again"


def test_texts_from_the_beginnings_of_all_files_represent_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "HEAD_TEXTS", 6)
    for name in "ab":
        pd.DataFrame({"body": [f"{name}{i}" if i else None for i in range(9)]}).to_csv(tmp_path / f"{name}.csv")
    tables = [open_table(tmp_path / f"{name}.csv") for name in "ab"]
    assert head_texts(tables, ["body"]) == ["a1", "a2", "a3", "b1", "b2", "b3"]
