"""Real runs of run_benchmark.py on the CPU, and what happens to them when something goes wrong."""

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import fake_worker
import numpy as np
import pandas as pd
import pynvml
import pytest
from conftest import real_sweep
from fake_hub import fake_hub

import run_benchmark
import utils
import variants

SCRIPT = utils.ROOT / "run_benchmark.py"


def command(model: Path, *arguments) -> list[str]:
    options = ["--device", "cpu", "--model-id", model, "--limit", 60, "--min-time", 0, *arguments]
    options += [] if "--batch-tokens" in arguments or "--order" in arguments else ["--order", "dataset,length"]
    return [sys.executable, SCRIPT, *map(str, options)]


def benchmark(folder: Path, model: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(model, *arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def saved_rows(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(file, sep="\t") for file in sorted(folder.glob("results/*/*.tsv"))])


def test_texts_are_batched_across_chunks_as_if_there_were_none(tiny_model, texts, monkeypatch):
    """A chunk's last, partly filled batch goes on in the next chunk."""
    monkeypatch.setattr(run_benchmark, "CHUNK", 7)
    tokenizer = utils.load_tokenizer(tiny_model)
    for size, order in ((4, "dataset"), (4, "length"), (128, "tokens")):
        shard = run_benchmark.TextShard(tiny_model, np.arange(100, 140), texts[:40], size, order)
        like = run_benchmark.Inputs(np.empty(0), np.empty(0), pad_id=1, checked=np.empty(0), limit=64)
        batches = list(run_benchmark.padded_batches(shard, tokenizer, like))
        assert sorted(i for batch, _ in batches for i in batch) == list(range(100, 140))
        for batch, (input_ids, mask) in batches:
            for index, row, real in zip(batch, input_ids, mask, strict=True):
                assert row[real == 1].tolist() == utils.tokenize(tokenizer, [texts[index - 100]], 64)[0]
        if order != "tokens":
            assert [len(batch) for batch, _ in batches] == [4] * 10


def test_an_error_while_texts_are_prepared_reaches_the_worker():
    def items():
        yield 1
        raise ValueError("broken text")

    made = run_benchmark.ahead(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken text"):
        next(made)


def test_a_shape_is_warmed_up_by_its_fullest_batch():
    lengths = np.array([9, 2, 9, 8, 9, 1])
    inputs = run_benchmark.Inputs(np.zeros(lengths.sum(), int), lengths, pad_id=0, checked=np.arange(6))
    ran = []
    runner = variants.Runner(lambda _, mask: int(mask.sum()), None, lambda: None, np.asarray, warm_up=ran.append)
    steps = run_benchmark.Steps(runner, variants.Place(gpu=None, threads=1), inputs)
    steps.prepare(utils.make_batches(lengths, 2, "dataset"))
    assert ran == [17]


def test_each_new_shape_is_warmed_up_once_and_the_largest_first():
    lengths = np.array([3, 5, 5, 9, 9, 2])
    inputs = run_benchmark.Inputs(np.zeros(lengths.sum(), int), lengths, pad_id=0, checked=np.arange(6))
    runner = variants.Runner(
        lambda ids, _: ids, None, lambda: None, np.asarray, warm_up=lambda ids: calls.append(ids.shape)
    )
    steps = run_benchmark.Steps(runner, variants.Place(gpu=None, threads=1), inputs)
    for size, expected in (
        (1, [(1, 9), (1, 5), (1, 3), (1, 2)]),
        (1, []),
        (2, [(2, 9), (2, 5)]),
    ):
        calls = []
        steps.release()
        steps.prepare(utils.make_batches(lengths, size, "dataset"))
        assert calls == expected


def test_peaks_are_measured_once_an_hour_and_the_days_best_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "CACHE", tmp_path)
    monkeypatch.setattr(variants, "PEAK_PRODUCTS", ((64, 64, 64),))
    monkeypatch.setattr(variants, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(variants, "in_fresh_process", lambda function, *arguments: function(*arguments))
    place, file = variants.Place(gpu=None, threads=1), tmp_path / "peaks.json"
    first = run_benchmark.peaks_today("a CPU", ["bf16", "fp32", "int8"], place)
    assert all(1e6 < peak < 1e15 for peak in first.values())
    hour = f"{datetime.now(UTC):%Y-%m-%dT%H}"
    known = json.loads(file.read_text())
    assert known == {f"{hour}, a CPU, {name}": peak for name, peak in first.items()}
    others = {
        "2020-01-01T00, a CPU, fp32": 3e15,
        f"{hour[:-2]}xx, a CPU, bf16": 2e15,
        f"{hour[:-2]}xx, a CPU, fp32": 1.0,
    }
    file.write_text(json.dumps(known | others))
    assert run_benchmark.peaks_today("a CPU", ["bf16", "fp32", "int8"], place) == first | {"bf16": 2e15}
    file.write_text(json.dumps({name: peak for name, peak in known.items() if "fp32" not in name}))
    again = run_benchmark.peaks_today("a CPU", ["bf16", "fp32", "int8"], place)
    assert (again["bf16"], again["int8"]) == (first["bf16"], first["int8"])
    assert again["fp32"] != first["fp32"]
    file.write_text("[1")
    assert run_benchmark.peaks_today("a CPU", ["bf16"], place)["bf16"] != first["bf16"]


RUN_VARIANTS = ["torch", "onnx-fp16"]
CELLS = [(8, "dataset"), (8, "length"), (256, "tokens")]


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
    cells = [(name, *cell) for name in RUN_VARIANTS for cell in CELLS]
    assert sorted(zip(rows.variant, rows["size"], rows.order, strict=True)) == sorted(cells)
    assert (rows.status == "ok").all()
    assert (rows.messages == 60).all() and (rows.workers == 2).all()
    assert (rows.max_diff < 5e-2).all() and (rows.flips < 0.02).all()
    assert (rows["min"] <= rows["messages/s"]).all() and (rows["messages/s"] <= rows["max"]).all()
    assert (rows.p50_ms <= rows.p99_ms).all() and (rows.memory_mib > 50).all()
    padding = rows.set_index("order").padding
    assert (padding["dataset"] > 1.5).all() and (padding["length"] < 1.2).all() and (padding["tokens"] < 1.2).all()
    assert (rows.tflops / rows["messages/s"]).std() < 1e-6 * rows.tflops.mean()
    assert (rows.mfu > 0).all() and (rows.mfu < 1.5).all()
    fastest = rows["messages/s"] == rows.groupby("variant")["messages/s"].transform("max")
    assert (rows.end_to_end.notna() == fastest).all() and (rows.end_to_end[fastest] > 0).all()


def test_the_table_is_on_standard_output_and_the_rest_is_not(sweep):
    _, done = sweep
    table = done.stdout.splitlines()
    assert table[0].split()[:5] == ["variant", "workers", "threads", "size", "order"]
    assert [row.split()[0] for row in table[1:]] == [name for name in RUN_VARIANTS for _ in [*CELLS, "end to end"]]
    for told in ("Hub", "Traceback", "leaked"):
        assert told not in done.stderr
    for told in ("machine ", "tokenizer ", "local export ./tiny-onnx-fp16/model.onnx", "no FP16 kernels", "1.00x"):
        assert told in done.stderr


def test_resume_measures_only_what_is_missing(sweep, tiny_model):
    folder, _ = sweep
    options = ("--model", "onnx-fp16", "--workers", 2, "--batches", 8, "--batch-tokens", 256, "--resume")
    assert "0 cells to run" in benchmark(folder, tiny_model, *options).stderr
    [path] = folder.glob("results/*/*_onnx-fp16_*.tsv")
    rows = {row["order"]: row for row in utils.read_rows(path)}
    utils.save_row(path, rows["dataset"] | {"commit": "another"})
    utils.save_row(path, rows["length"] | {"status": "out of memory"})
    utils.save_row(path, rows["tokens"] | {"messages/s": "1e9", "end_to_end": ""})
    listed = benchmark(folder, tiny_model, *options, "--dry-run")
    assert listed.stdout.splitlines() == ["onnx-fp16\t2\t8\tdataset", "onnx-fp16\t2\t8\tlength"]
    done = benchmark(folder, tiny_model, *options, "--order", "length,tokens")
    assert "local export ./tiny-onnx-fp16/model.onnx" in done.stderr
    assert len(done.stdout.splitlines()) == 3, "the header, the cell, and the fastest cell end to end"
    resumed = {row["order"]: row for row in utils.read_rows(path)}
    assert {order: row["status"] for order, row in resumed.items()} == dict.fromkeys(utils.ORDERS, "ok")
    assert {order for order, row in resumed.items() if row["commit"] == "another"} == {"dataset"}
    assert resumed["tokens"]["messages/s"] == "1e9" and float(resumed["tokens"]["end_to_end"]) > 0


def test_resume_makes_up_what_was_never_timed_end_to_end():
    def row(speed, end_to_end=""):
        return {"messages/s": str(speed), "end_to_end": end_to_end}

    several = [*cells(1, 2, 4, workers=1), *cells(1, 2, workers=2), *cells(1, 2, workers=3)]
    before = [row(5), row(10), row(9), row(7, "6.5"), row(8), None, row(8)]
    resumed = run_benchmark.to_resume(several, dict(zip(several, before, strict=True)))
    assert resumed == [several[1], several[5]]


# ------------------------------------------------------------------------------------------------------------ faults


def children(pid: int) -> list[int]:
    """The worker processes of a benchmark."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def cells(*sizes: int, workers: int = 2) -> list[run_benchmark.Cell]:
    return [run_benchmark.Cell("onnx", workers, size, "length") for size in sizes]


@pytest.fixture
def fake_workers(monkeypatch):
    """Workers as in fake_worker.py, none of which is left in the end."""
    monkeypatch.setattr(run_benchmark, "serve", fake_worker.serve)
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("load die", "worker [12] of 2 died (SIGKILL) in step load"),
        ("prepare die", "worker [12] of 2 died (SIGKILL) in step prepare"),
        ("run die", "worker [12] of 2 died (SIGKILL) in step run"),
        ("report die", "worker [12] of 2 died (SIGKILL) in step report"),
        ("load stop", "timeout: no answer in 5 s (step load)"),
        ("run loop", "timeout: no answer in 5 s (step run)"),
        ("run memory", "out of memory"),
    ],
)
def test_a_fault_costs_its_cell_and_nothing_else(fake_workers, fault, status):
    step, how = fault.split()
    sweep = fake_worker.make_sweep((step, how), timeout=5)
    rows = [figures for _, figures in run_benchmark.run_cells(sweep, cells(1, 2, 4))]
    for row, failed in zip(rows, [step == "load", True, step == "load"], strict=True):
        assert (row.keys() == {"status"}) == failed
        assert fnmatch(row["status"], status) if failed else row["status"] == "ok"


def test_a_long_pass_is_no_timeout(fake_workers):
    """Six batches of 0.6 s, none of which takes long."""
    sweep = fake_worker.make_sweep(("run", "slow"), timeout=3)
    [(_, row)] = run_benchmark.run_cells(sweep, cells(2, workers=1))
    assert row["status"] == "ok"
    assert float(row["p50_ms"]) >= 600


def test_what_a_stopped_worker_does_not_read_is_not_waited_for(fake_workers):
    workers = run_benchmark.Workers(1, "onnx", fake_worker.make_sweep(timeout=3))
    try:
        os.kill(workers.processes[0].pid, signal.SIGSTOP)
        with time_limit(20), pytest.raises(run_benchmark.CellFailed, match="no answer in 3 s"):
            workers.ask("prepare", [np.zeros(10**6)])
    finally:
        workers.kill()


def test_a_worker_that_dies_before_it_reads_does_not_hang_the_run(fake_workers, monkeypatch):
    """Its inputs are more than a pipe holds."""
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    sweep = fake_worker.make_sweep()
    sweep = replace(sweep, inputs=replace(sweep.inputs, token_ids=np.zeros(10**6, np.int32)))
    with time_limit(10):
        [(_, row)] = run_benchmark.run_cells(sweep, cells(1, workers=1))
        assert row["status"] == "worker 1 of 1 died (exit code 1) in step load"
        with pytest.raises(utils.RunError, match="died, exit code 1"):
            variants.in_fresh_process(len, "x" * 10**6)


def test_more_workers_than_the_machine_can_start_is_a_status(fake_workers):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
        [(_, row)] = run_benchmark.run_cells(fake_worker.make_sweep(), cells(1, workers=50))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert re.fullmatch(r"OSError: .*Too many open files.* \(worker \d of 50, step load\)", row["status"])


@contextlib.contextmanager
def time_limit(seconds: float):
    def late(*_):
        raise AssertionError(f"it hangs: not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def starting(tmp_path):
    """A benchmark of three cells in two workers, of which the second hangs. Ctrl-C reaches all its processes, as in a
    terminal.
    """
    arguments = "--model onnx --device cpu --workers 2 --batches 1,2,4 --order length --min-time 0"
    process = subprocess.Popen(
        [sys.executable, utils.ROOT / "tests" / "fake_worker.py", *arguments.split()],
        env=os.environ | {"FAULT": "run loop"},
        start_new_session=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def running(starting, tmp_path):
    """The benchmark after its first row, the workers' pids, and the results."""
    _header, _row = starting.stdout.readline(), starting.stdout.readline()
    workers = children(starting.pid)
    assert len(workers) == 2
    return starting, workers, tmp_path / "results"


def statuses(results: Path) -> list[str]:
    [path] = results.glob("*/*.tsv")
    return [row["status"] for row in utils.read_rows(path)]


def test_a_failed_cell_is_a_row_and_code_1(running):
    process, workers, results = running
    os.kill(workers[0], signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 1
    [path] = results.glob("*/*.tsv")
    first, second, third = utils.read_rows(path)
    assert (first["status"], third["status"]) == ("ok", "ok")
    assert re.fullmatch(r"worker 1 of 2 died \(SIGKILL\) in step (release|prepare|run)", second["status"])
    assert second["messages/s"] == second["flips"] == ""
    assert not any(map(is_running, workers))


@pytest.mark.parametrize(("stopped", "times"), [(False, 1), (False, 30), (True, 30)])
def test_ctrl_c_stops_the_workers_and_keeps_what_was_measured(running, stopped, times):
    """However often it is pressed, and if the workers are stopped."""
    process, workers, results = running
    for pid in workers if stopped else []:
        os.kill(pid, signal.SIGSTOP)
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.002)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith("fake_worker.py: interrupted")
    assert "Traceback" not in errors
    assert statuses(results) == ["ok"]
    assert not any(map(is_running, workers))


def test_ctrl_c_reaches_no_worker_that_is_starting(starting):
    starting.stdout.readline()  # the table's header, the last before the workers
    while len(workers := children(starting.pid)) < 2:
        time.sleep(0.01)
    for pid in workers:
        blocked = Path(f"/proc/{pid}/status").read_text().split("SigBlk:")[1].split()[0]
        assert int(blocked, 16) & 1 << (signal.SIGINT - 1)
    os.killpg(starting.pid, signal.SIGINT)
    _, errors = starting.communicate(timeout=10)
    assert starting.returncode == 130
    assert errors.splitlines()[-1].endswith("fake_worker.py: interrupted")
    assert "Traceback" not in errors
    assert not any(map(is_running, workers))


def test_ctrl_c_while_a_row_is_saved_does_not_lose_it(fake_workers, monkeypatch, tmp_path):
    save, interrupts = utils.save_row, iter([KeyboardInterrupt])

    def save_row(path, row):
        for interrupt in interrupts:
            raise interrupt
        save(path, row)

    monkeypatch.setattr(utils, "save_row", save_row)
    assert run_main(monkeypatch, "--batches", "1,2", "--results-dir", str(tmp_path)) == 130
    assert statuses(tmp_path) == ["ok"]


@pytest.mark.parametrize("stopped", [False, True])
def test_rows_survive_a_crash_and_no_worker_does(running, stopped):
    process, workers, results = running
    for pid in workers if stopped else []:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    assert statuses(results) == ["ok"]
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def test_out_of_memory_is_a_status():
    assert run_benchmark.status_of(MemoryError()) == "out of memory"
    assert run_benchmark.status_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: x")) == "out of memory"
    assert run_benchmark.status_of(RuntimeError("CUDA out of memory. Tried to allocate")) == "out of memory"
    assert run_benchmark.status_of(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")) == "out of memory"
    assert run_benchmark.status_of(ValueError("one\ntwo")) == "ValueError: one"


def run_main(monkeypatch, *arguments: str) -> int:
    """run_benchmark.py in this process, with fake workers."""
    monkeypatch.setattr(run_benchmark, "prepare", fake_worker.prepare)
    options = ["--model", "onnx", "--device", "cpu", "--order", "length", "--min-time", "0", *arguments]
    monkeypatch.setattr(sys, "argv", ["run_benchmark.py", *options])
    with pytest.raises(SystemExit) as stopped:
        utils.run(run_benchmark.main)
    return stopped.value.code


def test_a_clock_that_is_set_back_changes_no_figure(fake_workers, monkeypatch, tmp_path):
    """In the workers, see fake_worker.serve, and in the parent with its progress bar."""
    hours = itertools.count(10**6, -1)
    for module in ("time", "tqdm.std"):
        monkeypatch.setattr(f"{module}.time", lambda: next(hours) * 3600.0)
    dates = (datetime(2026, 1, 31 - day, tzinfo=UTC) for day in itertools.count())
    monkeypatch.setattr(run_benchmark, "datetime", SimpleNamespace(now=lambda _: next(dates)))
    assert run_main(monkeypatch, "--batches", "1,2,4", "--results-dir", str(tmp_path)) == 0
    [path] = tmp_path.glob("*/*.tsv")
    rows = utils.read_rows(path)
    assert [row["date"][:10] for row in rows] == ["2026-01-31", "2026-01-30", "2026-01-29"]
    for row in rows:
        assert 1 < float(row["min"]) <= float(row["messages/s"]) <= float(row["max"])
        assert 0 < float(row["p50_ms"]) <= float(row["p99_ms"]) < 1000


@pytest.mark.parametrize("full_for", [2, 6, 9])
def test_a_full_disk_loses_no_row(fake_workers, monkeypatch, tmp_path, capsys, full_for):
    """It is full for some savings, for all but the last try, or to the end."""
    save, tries = utils.atomic_file, itertools.count()

    def atomic_file(path):
        if next(tries) < full_for:
            raise OSError(28, "No space left on device")
        return save(path)

    monkeypatch.setattr(utils, "atomic_file", atomic_file)
    code = run_main(monkeypatch, "--batches", "1,2,4", "--results-dir", str(tmp_path))
    errors = capsys.readouterr().err
    assert "not saved yet: [Errno 28] No space left on device" in errors
    if full_for < 9:
        assert code == 0
        [path] = tmp_path.glob("*/*.tsv")
        assert {row["size"] for row in utils.read_rows(path)} == {"1", "2", "4"}
    else:
        assert code == 1
        printed = errors[errors.index("\t".join(utils.COLUMNS)) :].splitlines()[:4]
        (tmp_path / "copied.tsv").write_text("\n".join(printed) + "\n")
        assert [row["status"] for row in utils.read_rows(tmp_path / "copied.tsv")] == ["ok"] * 3


def test_results_that_can_not_be_saved_are_refused_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    (tmp_path / "roberta-base-go-emotions").write_text("a file where the model's folder goes")
    assert run_main(monkeypatch, "--results-dir", str(tmp_path)) == 2
    assert "nothing can be saved in" in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------- silent ones


def find_machine(*arguments: str) -> tuple:
    sys.argv = ["run_benchmark.py", "--model", "onnx", *arguments]
    return run_benchmark.find_machine(run_benchmark.parse_arguments())


def test_what_makes_figures_worse_is_on_the_card(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(utils, "installed", lambda packages: dict.fromkeys(packages, "1"))
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        machine, _ = find_machine("--device", "cpu", "--workers", f"1,{utils.cpu_cores()}", "--threads", "2")
    finally:
        burner.kill()
        burner.wait()
    card = capsys.readouterr().err
    assert "onnxruntime and onnxruntime-gpu are both installed" in card
    assert f"more workers x threads than the {utils.cpu_cores()} cores" in card
    assert re.search(r"others keep \d+% of the cores busy", card)
    assert 0.5 / utils.cpu_cores() < float(machine["load"]) <= 1


def test_a_machine_in_order_has_no_notes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(utils, "installed", lambda packages: {packages[-1]: "1"})
    ticks = iter([np.array([700, 1000]), np.array([702, 1050])])
    monkeypatch.setattr(run_benchmark, "cpu_seconds", lambda: next(ticks))
    machine, _ = find_machine("--device", "cpu")
    assert machine["load"] == "0.04"
    assert "note" not in capsys.readouterr().err


@pytest.fixture
def nvml(monkeypatch):
    """NVML with one idle GPU that nobody else uses; its attributes can be changed."""
    gpu = SimpleNamespace(uuid="GPU-1", load=0, processes=[], used=0, reasons=itertools.repeat(0))

    def found(uuid):
        if uuid != gpu.uuid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu

    def reasons(gpu):
        now = next(gpu.reasons)
        if isinstance(now, Exception):
            raise now
        return now

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", found)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda gpu: SimpleNamespace(gpu=gpu.load))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda gpu: gpu.processes)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu, version: SimpleNamespace(used=gpu.used))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", reasons)
    return gpu


@pytest.mark.parametrize(
    ("state", "load", "note"),
    [
        ({}, "0.00", None),
        ({"processes": ["one", "two"]}, "0.00", "others use the GPU: 2 processes seen, 0 MiB"),
        ({"load": 37}, "0.37", "busy for 37% of the time"),
        ({"used": 3 * 2**30}, "0.00", "0 processes seen, 3072 MiB"),
        ({"uuid": "GPU-2"}, "", "is not known: Not Found"),
    ],
)
def test_others_on_the_gpu_are_on_the_card(nvml, monkeypatch, capsys, state, load, note):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(variants, "in_fresh_process", lambda *_: ("NVIDIA H200", "580.95", "GPU-1"))
    vars(nvml).update(state)
    machine, gpu = find_machine("--device", "gpu")
    assert (machine["device"], machine["driver"], machine["load"]) == ("NVIDIA-H200", "580.95", load)
    card = capsys.readouterr().err
    assert note in card if note else "note" not in card
    assert gpu is (None if load == "" else nvml)


def test_a_throttled_pass_is_a_column_and_in_the_table(nvml, fake_workers):
    """One cell whose clock is low for a moment, one that is idle, has fixed clocks or keeps in step, one unknown."""
    sweep = fake_worker.make_sweep(("run", "slow"), gpu=nvml)
    measured = run_benchmark.run_cells(sweep, cells(2, 1, 1, workers=1))
    nvml.reasons = itertools.chain([0x41, 0x04], itertools.repeat(0x01))
    _, throttled = next(measured)
    nvml.reasons = itertools.repeat(0x01 | 0x02 | 0x10 | 0x100)
    _, benign = next(measured)
    nvml.reasons = itertools.repeat(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
    _, unknown = next(measured)
    measured.close()
    assert [row["throttled"] for row in (throttled, benign, unknown)] == [
        "heat (hardware), power cap",
        "no",
        "not known",
    ]
    row = dict.fromkeys(utils.COLUMNS, "") | {"variant": "onnx", "workers": 1, "threads": 1, "size": 2}
    assert run_benchmark.line(row | throttled, False).endswith("  ok (throttled: heat (hardware), power cap)")
    assert run_benchmark.line(row | benign, False).endswith("  ok")


# ---------------------------------------------------------------------------------------------------------- long run


def memory_mib_and_descriptors(pid: int) -> np.ndarray:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return np.array([resident, len(os.listdir(f"/proc/{pid}/fd"))])


def test_200_cells_need_no_more_than_20(tiny_model, tiny_exports, texts, tmp_path):
    """Memory of the parent and of the workers, their descriptors, and files."""
    sources = {"onnx": tiny_exports / "tiny-onnx" / "model.onnx"}
    sweep = replace(real_sweep(tiny_model, texts), sources=sources, texts=[])
    path, used, files = tmp_path / "results.tsv", {}, {}
    for i, (cell, figures) in enumerate(run_benchmark.run_cells(sweep, cells(*range(1, 11)) * 20), 1):
        utils.save_row(path, dict.fromkeys(utils.COLUMNS, "") | asdict(cell) | figures)
        assert figures["status"] == "ok"
        if i in (20, 200):
            pids = [os.getpid(), *sorted(process.pid for process in multiprocessing.active_children())]
            used[i] = np.array([memory_mib_and_descriptors(pid) for pid in pids])
            files[i] = sorted(file.name for file in tmp_path.iterdir())
    assert len(used[200]) == 3
    assert (used[200][:, 0] < used[20][:, 0] + 5).all(), used
    assert (used[200][:, 1] <= used[20][:, 1]).all(), used
    assert files[200] == files[20]


def test_workers_started_anew_leave_no_descriptors(fake_workers):
    sweep = fake_worker.make_sweep(("run", "memory"))
    used = []
    for _, figures in run_benchmark.run_cells(sweep, cells(*[2] * 8, workers=1)):
        assert figures == {"status": "out of memory"}
        used.append(len(os.listdir("/proc/self/fd")))
    assert used[-1] <= used[1]


def test_fewer_batches_than_workers(fake_workers):
    sweep = fake_worker.make_sweep()
    rows = [figures for _, figures in run_benchmark.run_cells(sweep, cells(6, 12, workers=3))]
    assert [(row["status"], row["max_diff"]) for row in rows] == [("ok", "0")] * 2


def test_a_variant_that_can_not_load_fails_its_cells_and_the_next_one_runs(tiny_model, tiny_exports, texts, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    sources = {"onnx": tmp_path / "model.onnx", "onnx-fp16": tiny_exports / "tiny-onnx" / "model.onnx"}
    sweep = replace(real_sweep(tiny_model, texts), sources=sources)
    both = [replace(cell, variant=name) for name in sources for cell in cells(4, 8, workers=1)]
    statuses = [figures["status"] for _, figures in run_benchmark.run_cells(sweep, both)]
    assert all("parsing failed" in status for status in statuses[:2])
    assert statuses[2:] == ["ok", "ok"]


def test_rounds_take_the_passes_of_a_cell_together(fake_workers):
    rows = [figures for _, figures in run_benchmark.run_cells(fake_worker.make_sweep(), cells(1, 3, workers=1) * 3)]
    assert [row["passes"] for row in rows] == ["1", "1", "2", "2", "3", "3"]
    assert all(float(row["min"]) <= float(row["messages/s"]) <= float(row["max"]) for row in rows)


def test_what_fails_later_leaves_what_was_measured(fake_workers, monkeypatch, tmp_path, capsys):
    def measure_texts(*_):
        raise run_benchmark.CellFailed("out of memory")

    sweep = replace(fake_worker.make_sweep(), texts=["a"] * fake_worker.TEXTS)
    monkeypatch.setattr(run_benchmark, "prepare", lambda *_: sweep)
    monkeypatch.setattr(run_benchmark, "measure_texts", measure_texts)
    arguments = "run_benchmark.py --model onnx --device cpu --limit 12 --batches 2 --order length --rounds 2"
    monkeypatch.setattr(sys, "argv", [*arguments.split(), "--results-dir", str(tmp_path)])
    assert run_benchmark.main() == 1
    [row] = utils.read_rows(next(tmp_path.rglob("*.tsv")))
    assert (row["status"], row["passes"], row["end_to_end"]) == ("ok", "2", "")
    assert "out of memory; its earlier figures stay" in capsys.readouterr().err


def test_a_row_measured_again_keeps_the_worse_parity_and_all_that_throttled_it():
    before = {"messages/s": "5", "max_diff": "0.5", "flips": "0.1", "throttled": "heat", "status": "ok"}
    after = {"end_to_end": "4", "max_diff": "0.2", "flips": "0.3", "throttled": "no", "status": "ok"}
    worst = {"max_diff": "0.5", "flips": "0.3", "throttled": "heat"}
    assert run_benchmark.together(before, after) == before | after | worst
    lost = run_benchmark.together(before | {"max_diff": "nan"}, after)
    assert (lost["max_diff"], lost["status"]) == ("nan", "outputs are not finite")
    assert run_benchmark.together({"max_diff": "", "status": "out of memory"}, after) == after
    on_cpu = {"throttled": ""}
    assert run_benchmark.together(before | on_cpu, after | on_cpu)["throttled"] == ""


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model torch --device tpu", "invalid choice: 'tpu'"),
        ("--device cpu", "required: --model"),
        ("--model fast --device cpu", "no variant 'fast'; there are: torch, torch-compile"),
        ("--model onnx-int8 --device gpu", "onnx-int8 can't run on a gpu: dynamic INT8"),
        ("--model torch-fp16-graphs --device cpu", "torch-fp16-graphs can't run on a cpu: CUDA graphs are for GPUs"),
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


def test_no_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(variants, "in_fresh_process", lambda function, *arguments: function(*arguments))
    assert run_main(monkeypatch, "--model", "torch", "--device", "gpu", "--no-save") == 2
    assert capsys.readouterr().err.startswith("run_benchmark.py: no GPU: torch finds no CUDA device here")


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


def test_an_export_that_another_run_made_meanwhile_is_taken(tmp_path, monkeypatch):
    def export(_function, _folder, temporary, _precision):
        for folder in (temporary, tmp_path / "tiny-onnx"):
            folder.mkdir(exist_ok=True)
            (folder / "model.onnx").write_text(folder.name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(variants, "in_fresh_process", export)
    file, origin = variants.find_onnx(variants.VARIANTS["onnx"], "tiny", tmp_path)
    assert file.read_text() == "tiny-onnx"
    assert origin == "exported meanwhile by another run into ./tiny-onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-onnx"]
    with (
        pytest.raises(utils.RunError, match="tiny-onnx can't be made: Directory not empty"),
        variants.new_folder(tmp_path / "tiny-onnx") as new,
    ):
        (new / "model.onnx").touch()


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


def test_help_is_instant_because_nothing_heavy_is_imported():
    heavy = {"torch", "transformers", "onnxruntime", "openvino", "huggingface_hub", "pandas", "matplotlib"}
    code = f"import sys, run_benchmark; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.gpu
def test_gpu_variants_agree_with_fp32_torch(tmp_path, tiny_model):
    names = [name for name, variant in variants.VARIANTS.items() if "gpu" not in variant.refused]
    arguments = ["--model", ",".join(names), "--device", "gpu", "--model-id", tiny_model, "--limit", 60]
    arguments = [sys.executable, SCRIPT, *map(str, arguments), "--min-time", "0", "--batches", "1,8", "--workers", "2"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = saved_rows(tmp_path)
    precision = rows.variant.map(lambda name: variants.VARIANTS[name].precision.split("-")[0])
    assert (rows.max_diff < precision.map({"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2})).all()
