"""What only a GPU can show: `python -m pytest -m gpu`, which ends with a block to paste into an issue."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from bench.machine import describe_device
from bench.processes import run_in_subprocess
from bench.provenance import project_commit, versions
from bench.report.rows import read_results
from runtimes import VARIANTS

pytestmark = pytest.mark.gpu

NAMES = [name for name, variant in VARIANTS.items() if "gpu" not in variant.unsupported]
FARTHEST = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2}  # of a probability, from FP32 torch
PACKAGES = ("torch", "triton", "transformers", "onnxruntime-gpu", "optimum-onnx")
SHOWN = [
    "variant",
    "workers",
    "batching",
    "batch_size",
    "batch_tokens",
    "stage",
    "messages/s",
    "max_diff",
    "flips",
    "throttled",
]


@pytest.fixture
def script(tmp_path):
    """Runs a script on the GPU, in an empty folder; its result has all that was printed in `stdout`."""

    def script(name: str, *arguments, **environment) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / name), *map(str, arguments), "--device", "gpu"]
        options = {"cwd": tmp_path, "env": os.environ | environment, "text": True}
        return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)

    return script


def test_the_machine(record_property):
    gpu = run_in_subprocess(describe_device, 0)
    known = ", ".join(f"{package} {version}" for package, version in versions(*PACKAGES).items())
    record_property("gpu", f"{gpu.name}, driver {gpu.driver}; {known}; commit {project_commit()}")


def test_every_variant_agrees_with_fp32_torch_with_one_worker_and_two(script, tmp_path, tiny_model, record_property):
    options = ["--model", ",".join(NAMES), "--model-id", tiny_model, "--limit", 100, "--min-time", 0.1]
    done = script("run_benchmark.py", *options, "--workers", "1,2", "--batches", "1,8", "--batch-tokens", 1024)
    rows, _, _ = read_results(list(tmp_path.rglob("*.tsv")))
    record_property("gpu", rows[SHOWN].to_string(index=False))
    assert done.returncode == 0, done.stdout
    assert set(rows["variant"]) == set(NAMES) and set(rows["workers"]) == {1, 2} and (rows["status"] == "ok").all()
    assert (rows["max_diff"] < rows["variant"].map(lambda name: FARTHEST[VARIANTS[name].precision])).all()


def test_an_export_is_checked_in_fp16_arithmetic(script, tiny_model, tmp_path, record_property):
    done = script("export_onnx.py", tiny_model, "--no-upload", "--limit", 100, "--tolerance", 0.05)
    record_property("gpu", "export: " + done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "tiny-onnx-fp16" / "parity.json").read_text())["fp16_exercised"]


def test_which_attention_runs(script, tiny_model, record_property):
    options = ["--model", "onnx-fp16", "--model-id", tiny_model, "--limit", 20, "--min-time", 0, "--batches", 4]
    done = script("run_benchmark.py", *options, ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO="1")
    kernels = sorted(set(re.findall(r"\w*[Kk]ernel=\w+", done.stdout)))
    record_property("gpu", f"attention: {', '.join(kernels) or 'onnxruntime did not say'}")
    assert done.returncode == 0, done.stdout


def test_texts_are_labelled(script, tiny_model, tmp_path, record_property):
    (tmp_path / "texts.csv").write_text("body\n" + "some text of a few words\n" * 1000)
    done = script("classify_texts.py", tiny_model, "texts.csv", "--output", "labelled")
    record_property("gpu", done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "labelled" / "_receipt.json").read_text())["texts"] == 1000
