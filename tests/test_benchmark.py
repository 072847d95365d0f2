"""Real runs of run_benchmark.py on the CPU, and what happens to them when something goes wrong."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from fake_hub import fake_hub

import run_benchmark
import utils
import variants

SCRIPT = utils.ROOT / "run_benchmark.py"
CPU_VARIANTS = [name for name, variant in variants.VARIANTS.items() if "cpu" not in variant.refused]


def command(model: Path, *arguments) -> list[str]:
    options = ["--device", "cpu", "--model-id", model, "--limit", 60, "--min-time", 0, *arguments]
    return [sys.executable, SCRIPT, *map(str, options)]


def benchmark(folder: Path, model: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(model, *arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def saved_rows(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(file, sep="\t") for file in sorted(folder.glob("results/*/*.tsv"))])


@pytest.mark.parametrize("name", CPU_VARIANTS)
def test_every_cpu_variant_agrees_with_fp32_torch(name, tiny_model, tiny_exports, texts):
    """In this process: the worker's steps over both orders of one variant, against the reference."""
    place = variants.Place(gpu=None, threads=1)
    ready = run_benchmark.prepare_inputs(tiny_model, texts[:60], place)
    inputs = run_benchmark.Inputs(*(ready[key] for key in ("token_ids", "lengths", "pad_id", "checked")))
    variant = variants.VARIANTS[name]
    source = tiny_model
    if variant.runtime == "onnx":
        source = tiny_exports / f"tiny{variants.EXPORT_SUFFIX[variant.precision]}" / "model.onnx"
    steps = run_benchmark.worker_steps(variants.load(name, source, place), place, inputs)
    sweep = run_benchmark.Sweep(inputs, ready["reference"], ready["problem"], {}, place, 0)
    for order in utils.ORDERS:
        steps["prepare"](utils.make_batches(inputs.lengths, 8, order))
        steps["run"](None)
        max_diff, flips = run_benchmark.parity(sweep, steps["report"](None)["kept"])
        # this model's logits are wide, so that its rounding errors are larger than a trained model's
        assert max_diff < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2, "int8": 2e-1}[variant.precision]
        assert flips < 0.02
        if variant.precision != "fp32":
            assert max_diff > 1e-5, "a lower precision that changes nothing did not run"


RUN_VARIANTS = ["torch", "onnx", "onnx-fp16"]


@pytest.fixture(scope="module")
def sweep(tiny_model, tiny_exports):
    """A real run over two workers, and its working directory; onnx-fp16 is exported by the run itself."""
    shutil.rmtree(tiny_exports / "tiny-onnx-fp16")
    names = ",".join(RUN_VARIANTS)
    return tiny_exports, benchmark(tiny_exports, tiny_model, "--model", names, "--workers", 2, "--batches", 8)


def test_a_run_measures_and_saves_every_cell(sweep):
    folder, done = sweep
    assert done.returncode == 0, done.stderr
    rows = saved_rows(folder)
    assert sorted(zip(rows.variant, rows.order, strict=True)) == sorted(itertools.product(RUN_VARIANTS, utils.ORDERS))
    assert (rows.status == "ok").all()
    assert (rows.messages == 60).all() and (rows.workers == 2).all()
    assert (rows.max_diff < 5e-2).all() and (rows.flips < 0.02).all()
    assert (rows["min"] <= rows["messages/s"]).all() and (rows["messages/s"] <= rows["max"]).all()
    assert (rows.p50_ms <= rows.p99_ms).all() and (rows.memory_mib > 50).all()
    padding = rows.set_index("order").padding
    assert (padding["dataset"] > 1.5).all() and (padding["length"] < 1.2).all()


def test_the_table_is_on_standard_output_and_the_rest_is_not(sweep):
    _, done = sweep
    table = done.stdout.splitlines()
    assert table[0].split()[:5] == ["variant", "workers", "threads", "size", "order"]
    assert [row.split()[0] for row in table[1:]] == [name for name in RUN_VARIANTS for _ in utils.ORDERS]
    for told in ("Hub", "Traceback", "leaked"):
        assert told not in done.stderr
    for told in ("machine ", "tokenizer ", "exported now into ./tiny-onnx-fp16", "no FP16 kernels", "1.00x"):
        assert told in done.stderr


def test_resume_measures_only_what_is_missing(sweep, tiny_model):
    folder, _ = sweep
    options = ("--model", "onnx", "--workers", 2, "--batches", 8, "--resume")
    assert "0 cells to run" in benchmark(folder, tiny_model, *options).stderr
    [path] = folder.glob("results/*/*_onnx_*.tsv")
    rows = utils.read_rows(path)
    utils.save_row(path, rows[0] | {"commit": "another"})
    utils.save_row(path, rows[1] | {"status": "out of memory"})
    listed = benchmark(folder, tiny_model, *options, "--dry-run")
    assert listed.stdout.splitlines() == ["onnx\t2\t8\tdataset", "onnx\t2\t8\tlength"]
    done = benchmark(folder, tiny_model, *options, "--order", "length")
    assert "local export ./tiny-onnx/model.onnx" in done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert {(row["order"], row["status"], row["commit"]) for row in utils.read_rows(path)} == {
        ("dataset", "ok", "another"),
        ("length", "ok", rows[0]["commit"]),
    }


def test_fewer_messages_than_workers(sweep, tiny_model):
    folder, _ = sweep
    done = benchmark(folder, tiny_model, "--model", "onnx", "--workers", 3, "--batches", 2, "--limit", 2, "--no-save")
    assert done.returncode == 0, done.stderr
    assert [row.split()[-1] for row in done.stdout.splitlines()[1:]] == ["ok", "ok"]


# ------------------------------------------------------------------------------------------------------------ faults


def children(pid: int) -> list[int]:
    """The worker processes of a benchmark."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def wait_for_rows(process: subprocess.Popen, count: int) -> list[str]:
    """The table's header and its first rows."""
    return [process.stdout.readline() for _ in range(count + 1)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def running(sweep, tiny_model):
    """A benchmark of three cells in two workers that has its first row, and the workers' pids."""
    folder, _ = sweep
    options = ("--model", "onnx", "--workers", 2, "--batches", "1,2,4", "--order", "length")
    options += ("--min-time", 3, "--results-dir", "fault")
    process = subprocess.Popen(
        command(tiny_model, *options), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_rows(process, 1)
    time.sleep(0.5)
    yield process, children(process.pid), folder / "fault"
    process.kill()
    process.communicate()
    for file in (folder / "fault").glob("*/*"):
        file.unlink()


def test_a_killed_worker_costs_its_cell_and_nothing_else(running):
    process, workers, results = running
    os.kill(workers[0], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    [path] = results.glob("*/*.tsv")
    first, second, third = utils.read_rows(path)
    assert (first["status"], third["status"]) == ("ok", "ok")
    assert second["status"] == "worker 1 of 2 died (SIGKILL) in step run"
    assert second["messages/s"] == second["flips"] == ""
    assert not any(map(is_running, workers))


def test_ctrl_c_stops_the_workers_and_keeps_what_was_measured(running):
    process, workers, results = running
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors
    [path] = results.glob("*/*.tsv")
    assert [row["status"] for row in utils.read_rows(path)] == ["ok"]
    assert not any(map(is_running, workers))


def test_rows_survive_a_crash_and_no_worker_does(running):
    process, workers, results = running
    process.kill()
    process.wait()
    [path] = results.glob("*/*.tsv")
    assert [row["status"] for row in utils.read_rows(path)] == ["ok"]
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def test_out_of_memory_is_a_status():
    assert run_benchmark.status_of(MemoryError()) == "out of memory"
    assert run_benchmark.status_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: x")) == "out of memory"
    assert run_benchmark.status_of(RuntimeError("CUDA out of memory. Tried to allocate")) == "out of memory"
    assert run_benchmark.status_of(ValueError("one\ntwo")) == "ValueError: one"


def test_a_worker_that_can_not_load_fails_its_cells_and_the_next_variant_runs(sweep, tiny_model):
    folder, _ = sweep
    broken = folder / "broken"
    (broken / "tiny-onnx").mkdir(parents=True)
    (broken / "tiny-onnx" / "model.onnx").write_bytes(b"not a model")
    done = benchmark(broken, tiny_model, "--model", "onnx,torch", "--batches", "4,8", "--order", "length")
    assert done.returncode == 1
    rows = saved_rows(broken).set_index("variant")
    assert rows.status["onnx"].str.contains("InvalidProtobuf|INVALID_PROTOBUF|parsing").all()
    assert (rows.status["torch"] == "ok").all()


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model torch --device tpu", "invalid choice: 'tpu'"),
        ("--device cpu", "required: --model"),
        ("--model fast --device cpu", "no variant 'fast'; there are: torch, torch-compile"),
        ("--model onnx-int8 --device gpu", "onnx-int8 can't run on a gpu: dynamic INT8"),
        ("--model torch --device cpu --batches 0", "'0' is not a whole number from 1 on"),
        ("--model torch --device cpu --batches 1,,2", "'' is not a whole number"),
        ("--model torch --device cpu --workers -1", "'-1' is not a whole number"),
        ("--model torch --device cpu --limit 1e9", "'1e9' is not a whole number"),
        ("--model torch --device cpu --min-time nan", "'nan' is not a number of seconds"),
        ("--model torch --device cpu --order random", "'random' is not one of dataset, length"),
        ("--model torch --device cpu --column text", "has no column 'text'; its columns: id, subreddit, body"),
        ("--model torch --device cpu --dataset nowhere.csv", "no dataset file nowhere.csv"),
        ("--model torch --device cpu --model-id ./nowhere", "no model folder ./nowhere"),
        ("--model torch --device cpu --model-id data", "no config.json"),
        ("--model torch --device cpu --results-dir README.md", "nothing can be saved in README.md"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(utils.ROOT)
    monkeypatch.setattr(sys, "argv", ["run_benchmark.py", "--no-save" if "--results" not in arguments else "--resume"])
    sys.argv += arguments.split()
    with pytest.raises(SystemExit) as stopped:
        utils.run(run_benchmark.main)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("run_benchmark.py: ")
    assert message in last


def test_no_gpu_is_one_line(tmp_path, tiny_model):
    arguments = [sys.executable, SCRIPT, "--model", "torch", "--device", "gpu", "--model-id", tiny_model, "--no-save"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("run_benchmark.py: no GPU")


def test_a_hub_out_of_reach_is_said_in_one_line(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    arguments = [sys.executable, SCRIPT, "--model", "torch", "--device", "cpu", "--limit", "2", "--no-save"]
    start = time.monotonic()
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert time.monotonic() - start < 15
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search("Hub is out of reach.*local folder.*random-roberta-base", done.stderr.splitlines()[-1])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def test_a_model_comes_from_the_hub_without_pickles_and_then_from_the_cache(hub, tiny_model, tmp_path, monkeypatch):
    served = shutil.copytree(tiny_model, tmp_path / "served")
    for name in ("pytorch_model.bin", "model.onnx", "tf_model.h5"):
        (served / name).write_bytes(b"not asked for")
    hub.models["ann/tiny"] = served
    folder = variants.find_model("ann/tiny")
    assert sorted(hub.sent) == sorted(file.name for file in tiny_model.iterdir())
    assert (folder / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert variants.find_model("ann/tiny") == folder


def test_the_default_models_published_export_is_taken_before_exporting(hub, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variants, "in_fresh_process", lambda function, *arguments: function(*arguments))
    (tmp_path / "published" / "onnx").mkdir(parents=True)
    for name in ("onnx/model.onnx", "onnx/model_quantized.onnx", "config.json"):
        (tmp_path / "published" / name).write_bytes(name.encode())
    hub.models["SamLowe/roberta-base-go_emotions-onnx"] = tmp_path / "published"
    file, origin = variants.find_onnx(variants.VARIANTS["onnx"], variants.DEFAULT_MODEL, tiny_model)
    assert file.read_bytes() == b"onnx/model.onnx"
    assert origin == "published export SamLowe/roberta-base-go_emotions-onnx, onnx/model.onnx"
    assert hub.sent == ["model.onnx"]
    file, origin = variants.find_onnx(variants.VARIANTS["onnx-fp16"], variants.DEFAULT_MODEL, tiny_model)
    assert origin == "exported now into ./roberta-base-go_emotions-onnx-fp16"
    assert "no published export: no model joaopn/" in capsys.readouterr().err
    assert file.stat().st_size > 10_000


def test_a_hub_that_never_answers_is_given_up(hub, monkeypatch):
    assert variants.HUB_TIMEOUT < 12, "it has to be said within 15 seconds"
    monkeypatch.setattr(variants, "HUB_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(utils.UserError, match="out of reach"):
            variants.find_model("ann/tiny")
    assert time.monotonic() - start < 3


def test_a_model_that_is_not_on_the_hub_is_one_line(hub):
    with pytest.raises(utils.UserError, match="no model ann/nowhere on the Hub"):
        variants.find_model("ann/nowhere")


def test_help_is_instant():
    spent = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, SCRIPT, "--help"], check=True, stdout=subprocess.DEVNULL)
        spent.append(time.monotonic() - start)
    assert min(spent) < 0.5


@pytest.mark.gpu
def test_gpu_variants_agree_with_fp32_torch(tmp_path, tiny_model):
    arguments = ["--model", "all", "--device", "gpu", "--model-id", tiny_model, "--limit", 60, "--min-time", 0]
    arguments = [sys.executable, SCRIPT, *map(str, arguments), "--batches", "1,8", "--workers", "2"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = saved_rows(tmp_path)
    precision = rows.variant.map(lambda name: variants.VARIANTS[name].precision)
    assert (rows.max_diff < precision.map({"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2})).all()
