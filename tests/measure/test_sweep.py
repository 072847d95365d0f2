"""The sweep: which cells run, what an error costs, and the columns of a row."""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pynvml
import pytest
from conftest import make_sweep

from bench import machine
from bench.measure import leaders, sweep
from bench.measure.cells import Cell
from bench.measure.leaders import estimate
from bench.measure.prepare import describe_sweep
from bench.measure.sweep import compare_sample, run_cells, run_in_turn
from bench.measure.tokens import TokenizedTexts, prepare_tokens, with_reference
from bench.measure.worker import Report, used_memory_mib
from bench.model.batches import Batching
from bench.model.classification import MULTI, REGRESSION, Classification
from bench.model.model import Model
from bench.processes import ProcessPool, WorkerFailed, run_in_subprocess
from bench.report.rows import COLUMNS, append_row
from utils import UserError


def cells(*sizes: int, workers: int = 2, variant: str = "onnx") -> list[Cell]:
    return [Cell(variant, workers, 1, Batching("sorted", size)) for size in sizes]


class FakePool:
    """Stands in for the workers of a sweep: 12 texts, without waiting; larger batches are faster.

    `faults`: (step, size) -> the error that this step raises.
    """

    faults: ClassVar = {}
    started = 0
    now = 0.0

    def __init__(self, make, arguments, stall_timeout=0, forked=False):
        FakePool.started += 1
        self.cell, self.count = None, len(arguments)
        self.fault("load", arguments[0][1].variant)

    def fault(self, step: str, key) -> None:
        if (step, key) in self.faults:
            raise self.faults[step, key]

    def call(self, step, *arguments):
        name = step.__name__
        if name == "prepare":
            [self.cell] = arguments
        size = self.cell.batching.batch_size
        self.fault(name, size if self.cell.stage == "forward" else "end-to-end")
        if name == "run":
            start = FakePool.now
            FakePool.now += 1 / size
            return [(start, FakePool.now)] * self.count
        shares = np.array_split(np.arange(12), self.count)
        return [Report(share, np.zeros((len(share), 1)), [0.1, 0.2], 100.0, 30) for share in shares]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def plan(monkeypatch):
    """A sweep over fake workers."""
    monkeypatch.setattr(sweep, "ProcessPool", FakePool)
    monkeypatch.setattr(FakePool, "faults", {})
    monkeypatch.setattr(FakePool, "started", 0)
    tokens = TokenizedTexts(
        texts=["text"] * 12,
        ids={},
        items=np.arange(12),
        owners=np.arange(12),
        lengths=np.full(12, 4),
        groups=np.zeros(12, int),
        sample=np.arange(12),
        reference=np.zeros((12, 1)),
        flops=1e9,
        tokens_speed=1.0,
        n_empty=0,
        padding_effect=0.0,
    )
    model = SimpleNamespace(labels=["x"], task=Classification(("x",), REGRESSION, (0.5,)))
    monkeypatch.setattr(sweep, "cpu_busy", lambda: None)
    return make_sweep(model=model, tokens=tokens, exports=dict.fromkeys(("onnx", "torch", "onnx-fp16")))


def measured(plan, cells, speeds=(), repeats=1) -> list[tuple[int, str, str]]:
    found = run_cells(plan, cells, dict(speeds), repeats)
    return [(cell.batching.batch_size, cell.stage, row["status"]) for cell, row in found]


@pytest.mark.parametrize(("threshold", "is_weak"), [(0.3, True), (0.04, False)])
def test_it_is_said_if_the_texts_hardly_test_the_decisions(threshold, is_weak, plan, capsys):
    """All scores of the reference are 0."""
    model = SimpleNamespace(id="tiny", model_type="bert", max_length=9, can_pad=True, can_be_compared=True)
    model.task = Classification(("x",), MULTI, (threshold,))
    describe_sweep(replace(plan, model=model), "some texts")
    shown = capsys.readouterr().err
    assert ("0 of 12" in shown) == is_weak and f"{threshold}" in shown


def test_figures_of_a_cell(plan):
    (_, row), (_, from_texts) = run_cells(plan, cells(4), {}, 1)
    expected = {"messages/s": "48", "min": "48", "max": "48", "passes": "1", "tokens/s": "192", "padding": "1.25"}
    expected |= {
        "tflops": "0.004",
        "mfu": "0.004",
        "memory_mib": "200",
        "max_diff": "0",
        "flips": "0",
        "decisions": "12",
        "within": "yes",
        "status": "ok",
    }
    assert row == expected | {"p50_ms": "150", "p99_ms": "200", "throttled": ""}
    assert from_texts == expected | {"throttled": ""}


def test_passes_repeat_for_the_minimum_time(plan):
    [(_, row), _] = run_cells(replace(plan, min_time=1.1), cells(4), {}, 1)
    assert (row["passes"], row["messages/s"]) == ("5", "48")


def test_the_load_of_the_cpu_is_measured_before_each_variant(plan, monkeypatch):
    loads = iter([0.0, 0.75])
    monkeypatch.setattr(sweep, "cpu_busy", lambda: next(loads))
    found = run_cells(plan, [*cells(1, 2), *cells(4, variant="torch")], {}, 1)
    assert [row["busy"] for _, row in found] == ["0.00"] * 3 + ["0.75"] * 2


def test_leaders_are_timed_in_turn_after_a_warm_up_round(plan, monkeypatch):
    loads = iter([0.0, 0.25, 0.75])
    monkeypatch.setattr(sweep, "cpu_busy", lambda: next(loads))
    start = FakePool.now
    both = {cell: FakePool(None, [(0, SimpleNamespace(variant="x"))], 0) for cell in cells(4, 2)}
    found = [(cell.batching.batch_size, row["messages/s"], row["busy"]) for cell, row in run_in_turn(plan, both, 2)]
    assert found == [(4, "48", "0.25"), (2, "24", "0.25"), (4, "48", "0.75"), (2, "24", "0.75")]
    assert FakePool.now - start == pytest.approx(3 * (1 / 4 + 1 / 2)), "three rounds ran"


def test_a_share_above_100_percent_is_not_shown(plan):
    (_, row), _ = run_cells(replace(plan, peaks={"fp32": 3e9}), cells(4), {}, 1)
    assert (row["tflops"], row["mfu"]) == ("0.004", "")


def test_the_estimate_counts_loading_warm_up_leaders_and_the_cores_in_use(plan, monkeypatch):
    monkeypatch.setattr(leaders, "cpu_cores", lambda: 2)
    given = replace(plan, peaks={"fp32": 1e9, "bf16": 4e9}, reference_speed=6.0, loading=10.0)
    one, both = (Cell("torch", workers, 1, Batching("sorted", 2)) for workers in (1, 2))
    assert estimate(given, [one], 1) == 10 + 2 * 4, "12 texts on one of two cores, and as much to warm up"
    assert estimate(given, [both, replace(both, stage="end-to-end")], 1) == 10 + 3 * 2
    bf16 = replace(both, variant="torch-bf16")
    assert estimate(given, [both, bf16], 1) == 2 * 10 + 2 * (2 + 0.5) + 2 * 10 + 3 * (2 + 0.5), "the leaders run again"
    assert estimate(replace(given, min_time=3), [bf16], 2) == 2 * (10 + 2 * 3)


def test_the_fastest_cell_of_each_variant_and_worker_count_is_timed_end_to_end(plan):
    both = [*cells(1, 4, 2), *cells(1, 2, workers=1), *cells(8, variant="torch")]
    assert measured(plan, both) == [
        *((size, "forward", "ok") for size in (1, 4, 2)),
        (4, "end-to-end", "ok"),
        *((size, "forward", "ok") for size in (1, 2)),
        (2, "end-to-end", "ok"),
        (8, "forward", "ok"),
        (8, "end-to-end", "ok"),
    ]
    assert FakePool.started == 3, "once for each variant and worker count"


def test_earlier_measurements_count_when_choosing_the_fastest(plan):
    [fast] = cells(16)
    assert measured(plan, cells(4), {fast: 100.0}) == [(4, "forward", "ok"), (16, "end-to-end", "ok")]
    end_to_end = replace(fast, stage="end-to-end")
    assert measured(plan, cells(4), {fast: 100.0, end_to_end: 90.0}) == [(4, "forward", "ok")]
    assert measured(plan, [end_to_end], {fast: 100.0}) == [(16, "end-to-end", "ok")]


@pytest.mark.parametrize("step", ["prepare", "run", "report"])
def test_an_error_fails_its_cell_only(plan, step, monkeypatch):
    monkeypatch.setattr(FakePool, "faults", {(step, 4): WorkerFailed("worker 1 of 2 died")})
    assert measured(plan, cells(1, 4, 2)) == [
        (1, "forward", "ok"),
        (4, "forward", "worker 1 of 2 died"),
        (2, "forward", "ok"),
        (2, "end-to-end", "ok"),
    ]
    assert FakePool.started == 2


def test_a_failed_end_to_end_cell_is_a_row_of_its_own(plan, monkeypatch):
    monkeypatch.setattr(FakePool, "faults", {("run", "end-to-end"): WorkerFailed("out of memory")})
    assert measured(plan, cells(1)) == [(1, "forward", "ok"), (1, "end-to-end", "out of memory")]


def test_a_variant_that_can_not_load_fails_its_cells_and_the_next_one_runs(plan, monkeypatch):
    monkeypatch.setattr(FakePool, "faults", {("load", "onnx"): UserError("no such file")})
    both = [*cells(1, 2), *cells(4, variant="torch")]
    assert measured(plan, both) == [
        (1, "forward", "no such file"),
        (2, "forward", "no such file"),
        (4, "forward", "ok"),
        (4, "end-to-end", "ok"),
    ]
    assert FakePool.started == 2, "it is not tried again"


def test_a_variant_that_can_not_be_exported_fails_its_cells(plan):
    exports = {"onnx": UserError("it can't be exported"), "torch": None}
    both = [*cells(1), *cells(4, variant="torch")]
    assert measured(replace(plan, exports=exports), both) == [
        (1, "forward", "it can't be exported"),
        (4, "forward", "ok"),
        (4, "end-to-end", "ok"),
    ]


def test_repeats_are_in_turn(plan):
    both = [*cells(1, 4), *cells(2, variant="torch")]
    once = [(1, "forward", "ok"), (4, "forward", "ok"), (4, "end-to-end", "ok"), (2, "forward", "ok")]
    once += [(2, "end-to-end", "ok")]
    assert measured(plan, both, repeats=2) == once * 2


def test_outputs_that_are_not_finite_count_as_flips(plan):
    logits = np.where(np.arange(12) == 5, np.nan, 0.0)[:, None]
    found = compare_sample(plan, cells(4, variant="torch")[0], [Report(np.arange(12), logits, [], 0.0, 0)])
    assert np.isnan(found["max_diff"]) and found["flips"] == pytest.approx(1 / 12)
    found = compare_sample(plan, cells(4, variant="torch")[0], [Report(np.arange(11), np.zeros((11, 1)), [], 0.0, 0)])
    assert np.isnan(found["max_diff"]), "a text without outputs"


def test_a_throttled_pass_is_a_column(plan, monkeypatch):
    reasons = iter([0x41, 0x80, 0x01 | 0x02 | 0x04 | 0x10 | 0x100])  # the last ones are normal
    monkeypatch.setattr(machine, "nvml_handle", {"GPU-1": "gpu"}.get)
    monkeypatch.setattr(machine, "POLL_SECONDS", 1e-6)

    def clock(_):
        bits = next(reasons, None)
        if bits is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return bits

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", clock)
    with machine.watch_throttling("GPU-1") as seen:
        time.sleep(0.5)
    assert {machine.THROTTLING[0x40], machine.THROTTLING[0x80]} < seen and len(seen) == 3, "one is not known"
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda _: 0x01)
    (_, row), _ = run_cells(replace(plan, uuid="GPU-1"), cells(1), {}, 1)
    assert row["throttled"] == "no"


def memory_mib_and_descriptors(pid: int) -> np.ndarray:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return np.array([resident, len(os.listdir(f"/proc/{pid}/fd"))])


def test_200_cells_in_real_workers_need_no_more_than_20(tiny_model, tiny_exports, texts, tmp_path, monkeypatch):
    """Memory and file descriptors of the parent and of the workers."""
    model = Model.from_folder(tiny_model, "tiny")
    tokens = with_reference(prepare_tokens(model, texts[:20], run_in_subprocess), model, None)
    plan = make_sweep(model=model, tokens=tokens, exports={"onnx": tiny_exports / "tiny-onnx"}, stall_timeout=60)
    started, used = [], {}
    real = ProcessPool.__init__
    monkeypatch.setattr(ProcessPool, "__init__", lambda self, *more: started.append(self) or real(self, *more))
    several = list(itertools.islice(itertools.cycle(cells(*range(1, 11))), 200))
    for i, (cell, row) in enumerate(run_cells(plan, several, {}, 1), 1):
        assert row["status"] == "ok", row
        append_row(tmp_path / "rows.tsv", dict.fromkeys(COLUMNS, "") | cell.columns() | row)
        if i in (20, 200):
            pids = [os.getpid(), *(process.pid for process in started[0].processes)]
            used[i] = np.array([memory_mib_and_descriptors(pid) for pid in pids])
    assert len(started) == 1 and len(used[200]) == 3
    assert (used[200][:, 0] < used[20][:, 0] + 5).all(), used
    assert (used[200][:, 1] <= used[20][:, 1]).all(), used


def memory_of_an_array() -> float:
    Path("/proc/self/clear_refs").write_text("5")  # importing may have taken more for a moment
    before = used_memory_mib(None)
    held = np.ones(2**24)
    return used_memory_mib(None) - before + held[0] - 1


def test_memory_is_that_of_its_own_process():
    assert 100 < run_in_subprocess(memory_of_an_array) < 150
