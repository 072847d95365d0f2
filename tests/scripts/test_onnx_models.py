"""An exported folder, alone, as MODEL of classify_texts.py and run_benchmark.py, and what its card tells to do."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import classify_texts
import export_onnx
import run_benchmark
from bench.judge import UNPROVEN, WITHIN
from bench.model.model import Model
from bench.model.reference import Reference
from bench.report.rows import read_results

LABELS = [f"LABEL_{i}" for i in range(5)]


@pytest.fixture
def alone(call, tiny_model, tiny_exports, texts, tmp_path, monkeypatch):
    """Returns a function: precision -> an exported and checked folder in an empty working directory."""

    def export(precision: str = "fp32", *options) -> Path:
        made = shutil.copytree(tiny_exports, tmp_path / "made")
        monkeypatch.chdir(made)
        options = ["--limit", 40, "--device", "cpu", "--no-upload", "--tolerance", 0.1, *options]
        assert call(export_onnx, tiny_model, "--precision", precision, "--check-only", *options)[0] == 0
        suffix = {"fp32": "-onnx", "fp16": "-onnx-fp16", "int8": "-onnx-int8"}[precision]
        (tmp_path / "alone").mkdir()
        folder = Path(shutil.copytree(made / f"tiny{suffix}", tmp_path / "alone" / "a copy"))
        shutil.rmtree(made)
        monkeypatch.chdir(folder.parent)
        return folder

    return export


@pytest.fixture
def label(call, texts):
    """Return a function that labels 40 texts with a model, and returns exit code, standard error and the receipt."""

    def label(model, *options) -> tuple[int, str, dict]:
        pd.DataFrame({"body": texts[:40]}).to_csv("texts.csv", index=False)
        code, _, err = call(classify_texts, model, "texts.csv", "--output", "out", "--device", "cpu", *options)
        receipt = Path("out/_receipt.json")
        return code, err, json.loads(receipt.read_text()) if receipt.exists() else {}

    return label


def report_of(folder: Path) -> dict:
    return json.loads(next(folder.glob("parity*.json")).read_text())


@pytest.mark.parametrize(("precision", "variant"), [("fp32", "onnx"), ("fp16", "onnx-fp16"), ("int8", "onnx-int8")])
def test_an_export_labels_as_its_own_variant_with_what_its_report_proves(
    precision, variant, alone, label, tiny_model, texts
):
    folder = alone(precision)
    code, err, receipt = label(folder)
    assert code == 0, err
    assert (receipt["variant"], receipt["rows_compared"], receipt["verdict"]) == (variant, 0, UNPROVEN)
    assert "--original" in receipt["reason"] and "--original" in err
    report = report_of(folder)
    assert report["verdict"] in receipt["export"] and report["reason"] in receipt["export"]
    expected = Reference.load(Model.from_folder(tiny_model, "tiny")).of_items(texts[:40])
    assert pd.read_parquet("out")[LABELS].to_numpy() == pytest.approx(expected, abs=0.05)
    code, err, receipt = label(folder, "--original", tiny_model)
    assert code == 0 and (receipt["rows_compared"], receipt["decisions"]) == (40, 200), "existing rows, too"
    assert label(folder, "--check-only")[2]["rows_compared"] == 0


def test_a_report_on_other_files_or_other_thresholds_proves_nothing(alone, label):
    folder = alone("fp32")
    report = report_of(folder)
    assert WITHIN in label(folder)[2]["export"]
    assert WITHIN not in label(folder, "--threshold", 0.4, "--overwrite")[2]["export"]
    (folder / "parity.json").write_text(json.dumps(report | {"export_id": "0123456789abcdef"}))
    assert WITHIN not in label(folder, "--overwrite")[2]["export"]
    (folder / "parity.json").unlink()
    assert label(folder, "--overwrite")[0] == 0
    (folder / "parity.json").symlink_to("../elsewhere.json")
    code, err, _ = label(folder, "--overwrite")
    assert code == 2 and "parity.json" in err.splitlines()[-1]


def test_what_an_export_can_not_do_is_one_line(alone, label, call, tiny_model, texts):
    folder = alone("fp32")
    pd.DataFrame({"body": texts[:40]}).to_csv("texts.csv", index=False)
    benchmark = ["--device", "cpu", "--model-id", folder, "--dataset", "texts.csv", "--no-save"]
    runs = [
        (lambda: call(run_benchmark, "--model", "torch,onnx", *benchmark), "torch onnx openvino-bf16"),
        (lambda: call(export_onnx, folder, "--no-upload"), "ONNX original"),
        (
            lambda: call(classify_texts, folder, "texts.csv", "--output", "o", "--variant", "onnx-int8"),
            "onnx-int8 onnx",
        ),
        (lambda: call(classify_texts, tiny_model, "texts.csv", "--output", "o", "--original", folder), "--original"),
    ]
    for run, names in runs:
        code, _, err = run()
        line = err.splitlines()[-1]
        assert code == 2 and all(name in line for name in names.split()), err
    assert not Path("o").exists()


def test_the_benchmark_measures_an_export_and_compares_it_if_it_has_the_original(alone, call, tiny_model, texts):
    folder = alone("fp32")
    pd.DataFrame({"body": texts[:40]}).to_csv("texts.csv", index=False)
    options = ["--device", "cpu", "--model-id", folder, "--dataset", "texts.csv", "--quick", "--batches", 8]
    weights_id = Model.from_folder(folder, "x").weights_id
    code, _, err = call(run_benchmark, "--model", "onnx,optimum-pipeline", *options)
    rows = read_results(sorted(Path("results").rglob("*.tsv")))[0]
    assert code == 0 and "--original" in err and set(rows.variant) == {"onnx", "optimum-pipeline"}
    assert set(rows.weights_id) == {weights_id} and rows.decisions.isna().all() and not rows.within.any()
    assert (rows[rows.stage == "forward"].tflops > 0).all()
    shutil.rmtree("results")
    code, _, err = call(run_benchmark, "--model", "onnx", *options, "--original", tiny_model)
    rows = read_results(sorted(Path("results").rglob("*.tsv")))[0]
    assert code == 0 and set(rows.within) == {"yes"} and set(rows.weights_id) == {weights_id}


def test_all_variants_of_an_export_are_those_that_load_it(alone, call, monkeypatch):
    folder, chosen = alone("fp16"), []
    monkeypatch.setattr(run_benchmark, "prepare_sweep", lambda sweep, variants, *_: chosen.extend(variants))
    monkeypatch.setattr(run_benchmark, "describe_sweep", lambda *_: sys.exit(7))
    code, _, err = call(
        run_benchmark, "--model", "all", "--quick", "--device", "cpu", "--model-id", folder, "--no-save"
    )
    assert (code, chosen) == (7, ["onnx-fp16"]), err


def test_the_commands_of_the_card_work_where_nothing_else_is(alone, tiny_model, texts):
    folder = alone("fp32", "--task", "classification", "--threshold", "0.4")
    card = (folder / "README.md").read_text()
    (folder / "swiftsure").symlink_to(ROOT)  # as the card says
    python, shell = re.findall(r"^```(?:python|sh)\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    lines = [line for line in shell.splitlines() if not re.match("(git|pip) ", line)]  # which need a network
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    environment.pop("USE_TORCH", None)  # set by the check, which ran in this process
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    printed = subprocess.run(["python", "-c", python], check=True, **options).stdout
    done = subprocess.run(["sh", "-ec", "\n".join(lines)], check=False, **options)
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(folder / "labels")
    shown = [line.split(" {") for line in printed.splitlines() if "LABEL_0" in line]
    by_example = [[*ast.literal_eval("{" + values).values()] for _, values in shown]
    assert rows[LABELS].to_numpy() == pytest.approx(np.array(by_example), abs=1e-3)
    original = Reference.load(Model.from_folder(tiny_model, "tiny")).of_items([text for text, _ in shown])
    assert rows[LABELS].to_numpy() == pytest.approx(original, abs=1e-4)
    command = shlex.split(lines[-1])
    assert command[command.index("--threshold") + 1] == "thresholds-in-use.json" and "--task" in command
    receipt = json.loads((folder / "labels" / "_receipt.json").read_text())
    assert "0.4" in receipt["decisions_are"] and report_of(folder)["reason"] in receipt["export"]
    assert "Swiftsure" in card and all(re.search(rf"^- LABEL\\_{i}: 0.4$", card, re.MULTILINE) for i in range(5))


@pytest.mark.parametrize("card", ["---\nlicense: other\nlicense_name: bsl-1.1\n---\n", ""])
def test_the_card_names_the_licence_of_the_original(card, tiny_model, tiny_exports, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, folder = (
        shutil.copytree(tiny_model, tmp_path / "tiny"),
        shutil.copytree(tiny_exports / "tiny-onnx", "tiny-onnx"),
    )
    (model / "README.md").write_text(card)
    options = ["--precision", "fp32", "--check-only", "--limit", 9, "--device", "cpu", "--no-upload"]
    assert call(export_onnx, model, *options)[0] == 0
    body = (Path(folder) / "README.md").read_text().split("---\n", 2)[2]
    assert ("bsl-1.1" in body) == bool(card)
