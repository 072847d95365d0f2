"""run_benchmark.py: whole runs on the CPU, resuming, and what happens when something goes wrong."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT, make_sweep, workers_of

import classify_texts
import plot_results
import run_benchmark
from bench.machine import DeviceInfo, cpu_cores, cpu_name
from bench.measure import leaders, recorder, splits, warnings
from bench.model.classification import REGRESSION, Classification
from bench.model.model import Model
from bench.report import readmes
from bench.report import rows as results
from bench.report.evidence import EvidenceFile
from bench.report.rows import read_results
from bench.report.summary import FASTEST, Headline, summarize

SCRIPT = ROOT / "run_benchmark.py"
RUN_VARIANTS = ["torch", "onnx-fp16"]
CELLS = [("token-budget", 0, 256), ("in-order", 8, 0), ("sorted", 8, 0)]
ALL_CORES = f"1x{cpu_cores()}"
BF16 = {"torch-bf16", "torch-compile-bf16"}


def command(model: Path, *arguments) -> list[str]:
    options = ["--device", "cpu", "--model-id", model, "--limit", 60, "--min-time", 0, "--check-time", 2]
    return [sys.executable, str(SCRIPT), *map(str, [*options, *arguments])]


def benchmark(folder: Path, model: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(model, *arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def saved_rows(folder: Path) -> pd.DataFrame:
    rows, failed, skipped = read_results(sorted(folder.glob("results/*/*.tsv")))
    assert not failed and not skipped
    return rows


@pytest.fixture(scope="module")
def sweep(tiny_model, tiny_exports):
    """A real run over two workers, and its working directory."""
    names = ",".join(RUN_VARIANTS)
    options = ("--workers", 2, "--batches", 8, "--batch-tokens", 256)
    return tiny_exports, benchmark(tiny_exports, tiny_model, "--model", names, *options)


def test_a_run_measures_and_saves_every_cell(sweep):
    folder, done = sweep
    assert done.returncode == 0, done.stderr
    rows = saved_rows(folder)
    forward, end_to_end = (rows[rows.stage == stage] for stage in ("forward", "end-to-end"))
    cells = [(name, *cell) for name in RUN_VARIANTS for cell in CELLS]
    names = ["variant", "batching", "batch_size", "batch_tokens"]
    assert sorted(map(tuple, forward[names].to_numpy())) == sorted(cells)
    assert (rows.status == "ok").all()
    assert (rows.texts == 60).all() and (rows.workers == 2).all()
    assert (rows.max_diff < 5e-2).all() and (rows.flips < 0.02).all()
    assert (rows["min"] <= rows["messages/s"]).all() and (rows["messages/s"] <= rows["max"]).all()
    assert (forward.p50_ms.astype(float) <= forward.p99_ms.astype(float)).all()
    assert (rows[rows.stage != "check"].memory_mib.astype(float) > 50).all()
    padding = forward.set_index("batching").padding
    assert (padding["in-order"] > 1.5).all()
    assert (padding["sorted"] < 1.2).all() and (padding["token-budget"] < 1.2).all()
    assert (rows.tflops / rows["messages/s"]).std() < 1e-5 * rows.tflops.mean()
    timed = rows[rows.stage != "check"]
    assert (timed.mfu > 0).all() and (timed.mfu < 1.5).all()
    for name in RUN_VARIANTS:
        own = forward[forward.variant == name]
        fastest = own.loc[own["messages/s"].idxmax()]
        again = end_to_end[end_to_end.variant == name]
        assert len(again[names[1:]].drop_duplicates()) == 1
        near = own[own["messages/s"] >= 0.95 * fastest["messages/s"]]
        assert tuple(again[names[1:]].iloc[0]) in set(map(tuple, near[names[1:]].to_numpy()))
    leaders = end_to_end.groupby("variant").size()
    assert set(leaders) in ({1}, {3}), "several leaders are timed again in turn"
    checks = rows[rows.stage == "check"]
    assert set(checks.variant) <= {"onnx-fp16"} and (checks.decisions > 300).all()
    assert all("torch 2" in versions for versions in rows.versions)
    assert set(rows[rows.variant == "onnx-fp16"].versions.str.contains("onnxruntime")) == {True}
    assert rows.date.nunique() == 1, "all rows of a run share it"


def test_the_readme_shows_the_verdict_of_a_run(sweep, monkeypatch):
    folder, done = sweep
    cells, evidence = plot_results.load_cells([folder / "results"]), EvidenceFile(folder / "results")
    rows = {row["variant"]: row for row in summarize(cells, evidence).to_dict("records")}
    winner = next(row for row in rows.values() if row["state"] == FASTEST)
    monkeypatch.setattr(readmes, "headlines", lambda _: [Headline(winner, rows)])  # also if the machine was busy
    block = readmes.verdict_block(cells, None, evidence).split("```")[1]
    assert block in done.stderr
    assert all(re.search(rf"\b{name} .* messages/s\b", block) for name in RUN_VARIANTS)


def test_only_the_table_is_on_standard_output(sweep, tiny_model, monkeypatch):
    _, done = sweep
    table = done.stdout.splitlines()
    assert table[0].split()[:6] == ["variant", "w", "x", "t", "batches", "messages/s"]
    assert max(map(len, table)) <= 100
    first = [name for name in RUN_VARIANTS for _ in [*CELLS, "end to end"]]
    assert [row.split()[0] for row in table[1:]][: len(first)] == first
    assert all(" e2e" in row or " check" in row for row in table[1 + len(first) :])
    for word in ("Hub", "Traceback", "leaked"):
        assert word not in done.stderr
    for name in (cpu_name(), "60 texts", "tiny-onnx-fp16", "FP32"):
        assert name in done.stderr
    assert re.search(r"\b6 cells, about \d+ ", done.stderr) and re.search(r"(?i)tokeniz.* messages/s", done.stderr)
    next_command = re.search(r"python (classify_texts\.py .*)", done.stderr.replace("\\\n", " "))[1]
    monkeypatch.setattr(sys, "argv", shlex.split(next_command))
    args = classify_texts.parse_arguments()  # of the suggested command
    assert (args.model_id, args.device) == (str(tiny_model), "cpu")


def test_resume_measures_only_what_is_missing(sweep, tiny_model, tmp_path, call, monkeypatch):
    folder, _ = sweep
    monkeypatch.chdir(folder)
    [path] = folder.glob("results/*/*_onnx-fp16_*.tsv")
    idle = [row | {"busy": "0.00"} for row in results.read_rows(path)[0]]  # other tests run at the same time
    path.write_text(results.HEADER + "".join(map(results.line_of, idle)))
    options = ["--model", "onnx-fp16", "--workers", 2, "--batches", 8, "--batch-tokens", 256, "--resume"]
    options += ["--device", "cpu", "--model-id", tiny_model, "--limit", 60, "--min-time", 0]
    code, out, err = call(run_benchmark, *options)
    assert code == 0 and all(" check" in line for line in out.splitlines()[1:]), "no cell is measured again"
    assert re.search(r"\bonnx-fp16 .* messages/s\b", err), "the verdict covers the earlier rows"

    rows = {(row["batching"], row["stage"]): row for row in results.read_rows(path)[0]}
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "package_versions", lambda _: "another")
        assert len(call(run_benchmark, *options, "--dry-run")[1].splitlines()) == 3, "other versions"
    monkeypatch.setattr(recorder, "project_commit", lambda: "another")
    assert len(call(run_benchmark, *options, "--dry-run")[1].splitlines()) == 3, "other code"
    same = {"commit": "another", "versions": rows["sorted", "forward"]["versions"]}
    results.append_row(path, rows["sorted", "forward"] | same | {"messages/s": "1e9", "max": "1e9"})
    results.append_row(path, rows["sorted", "forward"] | same | {"status": "out of memory"})
    listed = call(run_benchmark, *options, "--dry-run")[1]
    assert listed.splitlines() == ["onnx-fp16\t2x1\t256 tokens\tforward", "onnx-fp16\t2x1\t8 in-order\tforward"]


def test_resume_measures_again_for_other_texts_or_weights(run_fake, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    for folder, words in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my.csv").write_text("body,other\n" + f"{words},{words}!\n" * 9)

    def left(folder: str, column: str = "body") -> int:
        data = ["--dataset", tmp_path / folder / "my.csv", "--column", column]
        options = ["--model-id", model, *data, "--resume"]
        listed = run_fake(*options, "--dry-run")[1].splitlines()
        assert run_fake(*options)[0] == 0
        return len(listed)

    assert (left("a"), left("a")) == (3, 1), "only the end-to-end cell is left"
    assert (left("b"), left("b", "other")) == (3, 3)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.2}))
    assert left("a") == 3


def test_repeats_go_through_all_cells_again(tiny_model, tiny_exports, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny_exports)
    options = ["--model", "onnx", "--device", "cpu", "--model-id", tiny_model, "--limit", 10, "--min-time", 0]
    options += ["--batches", "2,4", "--batching", "sorted", "--repeats", 3, "--results-dir", tmp_path]
    code, out, _ = call(run_benchmark, *options)
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[1:] if " sorted  " in line] == ["2", "4"] * 3
    rows, _, _ = read_results(list(tmp_path.rglob("*.tsv")))
    assert results.latest_per_cell(rows[rows["stage"] == "forward"])["passes"].tolist() == [3, 3]


def test_a_run_on_a_fake_gpu(tiny_model, tiny_exports, tmp_path):
    """From detection to the row, with all calls of CUDA and NVML faked; the reference runs in torch on the "GPU"."""
    (tmp_path / "tiny-onnx-fp16").symlink_to(tiny_exports / "tiny-onnx-fp16")
    options = ["--model", "onnx-fp16", "--batches", 1, "--batching", "sorted", "--device", "gpu"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests' / 'fake_cuda'}:{ROOT}"}
    started = command(tiny_model, *options)
    done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Fake H200\b.*\b580\.1\b", done.stderr)
    row, end_to_end, *_ = results.read_rows(next(tmp_path.glob("results/*/Fake-H200_onnx-fp16_*.tsv")))[0]
    assert (row["status"], row["throttled"], row["memory_mib"]) == ("ok", "no", "2")
    assert float(row["padding"]) > 1, "of few lengths, though of size 1"
    assert 1e-5 < float(row["max_diff"]) < 5e-3
    assert (end_to_end["stage"], end_to_end["status"]) == ("end-to-end", "ok")


def test_transformers_pipeline_in_its_own_process(tmp_path, tiny_model):
    """Only end to end, at each batch size, whatever --batching is."""
    done = benchmark(tmp_path, tiny_model, "--model", "pipeline", "--batches", "1,8", "--batching", "sorted")
    assert done.returncode == 0, done.stderr
    rows = saved_rows(tmp_path)
    assert sorted(rows.batch_size) == [1, 8]
    assert set(rows.stage) == {"end-to-end"} and set(rows.batching) == {"in-order"}
    assert (rows.max_diff < 1e-5).all()


@pytest.fixture
def running(tiny_model, tiny_exports, tmp_path):
    """A benchmark in two workers after its first row; its rows go to tmp_path."""
    options = ["--model", "torch", "--workers", 2, "--batches", "1,2,4,8", "--batching", "sorted", "--stall-timeout", 6]
    process = subprocess.Popen(
        command(tiny_model, *options, "--min-time", 0.5, "--results-dir", tmp_path),
        start_new_session=True,
        cwd=tiny_exports,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _header, _row = process.stdout.readline(), process.stdout.readline()
    workers = workers_of(process.pid)
    assert len(workers) == 2
    yield process, workers
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def statuses(folder: Path) -> list[tuple[str, str]]:
    [path] = folder.glob("*/*.tsv")
    return [(row["batch_size"], row["status"]) for row in results.read_rows(path)[0]]


def test_a_failed_cell_is_a_row_and_exit_code_1(running, tmp_path):
    """A worker is killed in the second cell, and one of its replacements is stopped in the fourth."""
    process, workers = running
    os.kill(workers[0], signal.SIGKILL)
    _killed, _ok = process.stdout.readline(), process.stdout.readline()
    os.kill(workers_of(process.pid)[1], signal.SIGSTOP)
    process.communicate(timeout=60)
    assert process.returncode == 1
    first, killed, third, stopped, end_to_end = (status for _, status in statuses(tmp_path))
    assert first == third == end_to_end == "ok"
    assert re.search(r"\b1 of 2\b.*\bSIGKILL\b", killed) and re.search(r"\b6 s\b", stopped)


@pytest.mark.parametrize("times", [1, 30])
def test_ctrl_c_keeps_the_measured_rows(running, times, tmp_path):
    """However often it is pressed, even if a worker is stopped."""
    process, workers = running
    os.kill(workers[1], signal.SIGSTOP)
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "run_benchmark.py: " in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert statuses(tmp_path) == [("1", "ok")]
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.fixture
def run_fake(call, monkeypatch, tmp_path):
    """Run the script with fake measurements: each figure is 1."""
    figures = dict.fromkeys(results.COLUMNS[results.COLUMNS.index("messages/s") : results.COLUMNS.index("busy")], "1")
    figures |= {"max_diff": "0", "flips": "0", "status": "ok", "throttled": ""}
    tokens = SimpleNamespace(texts=["x"], flops=1.0, lengths=[1], is_fast=True, tokens_speed=9.0)
    sweep = make_sweep(model=None, tokens=tokens, exports={})
    monkeypatch.setattr(warnings, "cpu_busy", lambda: 0.0)

    def open_model(name: str, *_, **__):
        if "/model" in name:
            return Model.from_folder(Path(name), name)
        fake = SimpleNamespace(
            id=name,
            public_name=name,
            onnx_precision="",
            can_be_compared=True,
            weights_id="w",
            task=Classification(("x",), REGRESSION, (0.5,)),
        )
        fake.with_thresholds = lambda _: fake
        return fake

    monkeypatch.setattr(run_benchmark, "open_model", open_model)
    for name in ("plan_sweep", "prepare_sweep"):
        monkeypatch.setattr(run_benchmark, name, lambda *_, **__: sweep)
    for name in ("describe_sweep", "say_plan"):
        monkeypatch.setattr(run_benchmark, name, lambda *_: None)
    monkeypatch.setattr(run_benchmark, "splits_to_try", lambda *_: [(1, cpu_cores())])
    monkeypatch.setattr(run_benchmark, "find_peaks", lambda *_: {"fp32": 1.0})
    monkeypatch.setattr(run_benchmark, "measure_speed", lambda *_: {"reference_speed": 1.0})
    monkeypatch.setattr(leaders, "run_cells", lambda _, cells, *__: ((cell, dict(figures)) for cell in cells))

    def run(*arguments) -> tuple[int, str, str]:
        options = ["--model", "onnx", "--device", "cpu", "--batching", "sorted", "--batches", "1,2,4"]
        return call(run_benchmark, *options, "--results-dir", tmp_path, *arguments)

    return run


def test_a_clock_that_is_set_back_changes_only_the_date(run_fake, monkeypatch, tmp_path):
    dates = (datetime(2026, 1, 31 - day, tzinfo=UTC) for day in itertools.count())
    monkeypatch.setattr(recorder, "datetime", SimpleNamespace(now=lambda _: next(dates)))
    assert run_fake()[0] == run_fake()[0] == 0
    [path] = tmp_path.glob("*/*.tsv")
    assert [row["date"][:10] for row in results.read_rows(path)[0]] == ["2026-01-31"] * 3 + ["2026-01-30"] * 3


def test_a_full_disk_loses_no_row(run_fake, monkeypatch, tmp_path):
    append, tries = results.append_row, itertools.count()

    def append_row(path, row):
        if next(tries) != 1:
            raise OSError(28, "No space left on device")
        append(path, row)

    monkeypatch.setattr(results, "append_row", append_row)
    code, _, errors = run_fake()
    assert code == 1
    assert errors.count(os.strerror(28)) == 2
    [path] = tmp_path.glob("*/*.tsv")
    printed = errors[errors.index(results.HEADER) :].splitlines()[:3]
    (tmp_path / "copied.tsv").write_text("\n".join(printed) + "\n")
    rows, _, _ = read_results([path, tmp_path / "copied.tsv"])
    assert sorted(rows["batch_size"]) == [1, 2, 4]


def test_ctrl_c_while_a_row_is_saved_does_not_lose_it(run_fake, monkeypatch):
    def append_row(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "append_row", append_row)
    code, _, errors = run_fake()
    assert code == 130
    assert len(errors[errors.index(results.HEADER) :].splitlines()) == 3, "the header, the row, and the interruption"


def noted(busy: float) -> tuple[str, ...]:
    """Return what the notes name: the conflicting package, the load of the CPU, and the number of idle cores."""
    return "onnxruntime-gpu", f" {busy:.0%}", f" {cpu_cores() * (1 - busy):.1f} "


def test_conflicting_packages_and_too_few_idle_cores_are_noted(run_fake, monkeypatch):
    monkeypatch.setattr(warnings, "cpu_busy", lambda: 0.5)
    monkeypatch.setattr(warnings, "versions", lambda *names: dict.fromkeys(names, "1"))
    _, _, errors = run_fake("--workers", f"1,{os.cpu_count()}", "--threads", 2)
    assert all(name in errors for name in noted(busy=0.5)), errors


def test_an_idle_machine_has_no_notes(run_fake, monkeypatch, tmp_path):
    monkeypatch.setattr(warnings, "cpu_busy", lambda: 0.04)
    monkeypatch.setattr(warnings, "versions", lambda *names: {names[-1]: "1"})
    Path(tmp_path / "one.csv").write_text("body\n" + "hello\n" * 9)
    errors = run_fake("--dataset", tmp_path / "one.csv")[2]
    assert not any(name in errors for name in noted(busy=0.04)), errors


@pytest.mark.parametrize(
    ("busy", "note"),
    [
        ((0.0, 0, 0.0), None),
        ((0.0, 2, 0.0), r"\b2\b.*\b0 MiB"),
        ((0.37, 0, 0.0), r"\b37%"),
        ((0.0, 0, 3072.0), r"\b3072 MiB"),
    ],
)
def test_other_processes_on_the_gpu_are_noted(run_fake, monkeypatch, busy, note, tmp_path):
    monkeypatch.setattr(run_benchmark, "device_info", lambda _: DeviceInfo("NVIDIA H200", "580.95", "GPU-1"))
    monkeypatch.setattr(warnings, "gpu_busy", lambda uuid: busy)
    (tmp_path / "one.csv").write_text("body\n" + "hello\n" * 9)
    code, _, errors = run_fake("--device", "gpu", "--dataset", tmp_path / "one.csv")
    assert code == 0 and re.search(r"NVIDIA H200\b.*\b580\.95\b", errors)
    assert re.search(note, errors) if note else "MiB" not in errors
    assert "MPS" not in errors, "for a single worker"
    [row, *_] = results.read_rows(next(tmp_path.glob("*/NVIDIA-H200_onnx_one.csv.tsv")))[0]
    assert (row["driver"], row["busy"]) == ("580.95", f"{busy[0]:.2f}")


@pytest.mark.parametrize(
    ("device", "features", "besides"),
    [
        ("gpu", set(), {*BF16, "torch-fp16", "torch-compile-fp16", "onnx-fp16"}),
        ("cpu", {"bf16"}, {*BF16, "openvino-bf16"}),
        ("cpu", {"vnni"}, {"onnx-int8"}),
        ("cpu", set(), set()),
    ],
)
def test_all_means_the_variants_that_the_device_supports_natively(device, features, besides, monkeypatch):
    monkeypatch.setattr("bench.variants.cpu_features", lambda: features)
    chosen = set(run_benchmark.choose_variants(["all"], device, quick=False))
    assert chosen == {"torch", "torch-compile", "onnx"} | besides
    quick = run_benchmark.choose_variants(["all"], device, quick=True)
    assert set(quick) == {name for name in chosen if "compile" not in name}
    run_benchmark.choose_variants(["torch-bf16"], device, quick=True)


def test_an_emulated_precision_runs_by_name_with_a_note(run_fake, monkeypatch):
    monkeypatch.setattr("bench.variants.cpu_features", set)
    code, out, err = run_fake("--model", "torch,torch-bf16")
    assert code == 0 and out.count("torch-bf16") == 3
    [note] = [line for line in err.splitlines() if "BF16" in line]
    assert "torch-bf16" in note and "CPU" in note


@pytest.fixture
def list_cells(call, run_fake):
    """Run the script with fake measurements and --dry-run."""
    return lambda *options: call(run_benchmark, *DRY, *options)


def test_a_quick_benchmark_has_few_cells_unless_options_say_otherwise(list_cells):
    code, out, _ = list_cells("--quick")
    expected = ["512 tokens", "1 in-order", "8 sorted"]
    assert (code, out.splitlines()) == (0, [f"torch\t{ALL_CORES}\t{how}\tforward" for how in expected])
    code, _, err = list_cells("--quick", "--limit", "4", "--batching", "sorted")
    assert code == 0 and re.search(r"\b8\b.*\b4\b", err), "batches of 8 need more than the 4 texts"
    assert list_cells("--quick", "--batches", "3")[1].splitlines()[1] == f"torch\t{ALL_CORES}\t3 sorted\tforward"


def test_batches_of_one_text_are_measured_once(list_cells):
    options = ["--batches", "1,2", "--batching", "sorted,in-order", "--model", "torch"]
    code, out, _ = list_cells(*options)
    cells = [f"torch\t{ALL_CORES}\t{how}\tforward" for how in ("1 in-order", "2 sorted", "2 in-order")]
    assert (code, out.splitlines()) == (0, cells)


def test_each_number_of_workers_shares_out_the_cores(list_cells, monkeypatch):
    monkeypatch.setattr(splits, "cpu_cores", lambda: 8)
    options = ["--workers", "1,2,4", "--batches", "1", "--batching", "sorted", "--threads"]
    for threads, expected in (("auto", ["1x8", "2x4", "4x2"]), ("3", ["1x3", "2x3", "4x3"])):
        out = list_cells(*options, threads)[1]
        assert [line.split("\t")[1] for line in out.splitlines()] == expected


NO_NUMBERS = ("-1", "abc", "1e9", "", " ", "1,,2", "1.5", "nan", "inf", "0x10", "1_000")
DRY = ["--variant", "torch", "--device", "cpu", "--limit", "10", "--dry-run"]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        *((option, ("0", *NO_NUMBERS)) for option in ("--batches", "--limit", "--repeats")),
        *((option, ("0", "1000000000", *NO_NUMBERS)) for option in ("--workers", "--threads")),
        ("--gpu", NO_NUMBERS),
        ("--tolerance", ("-1", "2", "abc", "nan")),
        *((option, ("-1", "abc", "", "1,,2", "nan", "inf")) for option in ("--min-time", "--stall-timeout")),
        ("--batching", ("random", "", "sorted,,token-budget")),
        ("--device", ("tpu",)),
    ],
)
def test_an_invalid_value_is_refused_in_one_line(option, values, call):
    for value in values:
        code, out, err = call(run_benchmark, *DRY, f"{option}={value}")
        assert (code, out, err.count("\n")) == (2, "", 1), value
        assert err.startswith("run_benchmark.py: ") and option in err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--device cpu", "--variant"),
        ("--model fast --device cpu", "--variant fast torch torch-compile onnx"),
        ("--model onnx-int8 --device gpu", "onnx-int8 gpu INT8"),
        ("--model torch --device cpu --column text", "--column 'text' id body"),
        ("--model torch --device cpu --dataset nowhere.csv", "nowhere.csv"),
        ("--model torch --device cpu --dataset a-folder", "a-folder"),
        (f"--model torch --device cpu --dataset {'x' * 300}", "xxx"),
        ("--model torch --device cpu --model-id ./nowhere", "./nowhere"),
        ("--model torch --device cpu --model-id a-file", "a-file"),
        ("--model torch --device cpu --model-id a-folder", "a-folder config.json"),
        ("--model torch --device cpu --model-id=", "--model-id"),
        ("--model torch --device cpu --results-dir a-file", "a-file"),
        ("--model torch --device cpu --model-id a/taken", "results/taken"),
        ("--model torch --device cpu --batching sorted --batches 1000000000", "--batches 1000000000 10"),
        ("--model torch --device gpu", "GPU --device"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, names, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("a-folder").mkdir()
    Path("a-file").touch()
    Path("results").mkdir()
    Path("results/taken").touch()
    code, out, err = call(run_benchmark, "--limit", 10, *arguments.split())
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("run_benchmark.py: ") and all(name in last for name in names.split()), err


def test_batches_larger_than_the_dataset_are_skipped_and_repeated_values_count_once(list_cells):
    lists = ["--batches", "8,11,10,8", "--batching", "sorted,sorted", "--workers", "2,2", "--model", "onnx,torch,onnx"]
    code, out, err = list_cells(*lists)
    cells = [f"{name}\t2x1\t{size} sorted\tforward" for name in ("onnx", "torch") for size in (8, 10)]
    assert (code, out.splitlines()) == (0, cells)
    assert re.search(r"\b11\b.*\b10\b", err), "batches of 11 need more than the 10 texts"


def test_an_unreachable_hub_is_one_line(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    arguments = [sys.executable, SCRIPT, "--model", "torch", "--device", "cpu", "--limit", "2", "--no-save"]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=15
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert all(name in last for name in ("Hub", "SamLowe/roberta-base-go_emotions", "random-roberta-base")), last


HEAVY = {"torch", "transformers", "optimum", "onnxruntime", "openvino", "huggingface_hub", "pandas", "matplotlib"}
HEAVY |= {"requests", "zstandard", "tokenizers"}
SCRIPTS = ("run_benchmark", "export_onnx", "classify_texts", "embed_texts", "plot_results")
SCRIPTS = dict.fromkeys(SCRIPTS, HEAVY | {"numpy", "pyarrow"})
SCRIPTS |= {"data/sample_reddit": HEAVY, "data/download": HEAVY}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_instant_because_nothing_heavy_is_imported(script):
    command = [sys.executable, "-X", "importtime", f"{script}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "usage: " in done.stdout and not imported & SCRIPTS[script]
