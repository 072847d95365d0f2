"""Cells to figures: which cells run, what a fault costs, and what a row says."""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pynvml
import pytest

from bench import machine, sweep
from bench.inputs import Inputs, prepare_inputs
from bench.passes import Cell
from bench.results import COLUMNS, append_row
from bench.sweep import Sweep, estimate, parity, run_cells
from bench.workers import WorkerFailed, Workers
from runtimes.runner import Place
from utils import UserError


def cells(*sizes: int, workers: int = 2, variant: str = "onnx") -> list[Cell]:
    return [Cell(variant, workers, size, "length") for size in sizes]


class FakeWorkers:
    """Answers as the workers of a sweep do: 12 texts in no time, the larger the batch the faster.

    `faults`: (step, size) -> the error that this step raises, once.
    """

    faults: ClassVar = {}
    started = 0
    labels = 1
    now = 0.0

    def __init__(self, make, arguments, timeout):
        FakeWorkers.started += 1
        self.cell, self.count = None, len(arguments)
        self.fault("load", arguments[0][1].variant)

    def fault(self, step: str, which) -> None:
        if (step, which) in self.faults:
            raise self.faults[step, which]

    def ask(self, step, *arguments):
        name = step.__name__
        if name == "prepare":
            [self.cell] = arguments
        self.fault(name, self.cell.size if self.cell.timed == "forward" else "texts")
        if name == "run":
            start = FakeWorkers.now
            FakeWorkers.now += 1 / self.cell.size
            return [(start, FakeWorkers.now)] * self.count
        shares = np.array_split(np.arange(12), self.count)
        return [
            {
                "kept": [(share, np.zeros((len(share), self.labels)))],
                "latencies": [0.1, 0.2],
                "memory": 100.0,
                "padded": 30,
            }
            for share in shares
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def plan(monkeypatch):
    """A sweep over fake workers."""
    monkeypatch.setattr(sweep, "Workers", FakeWorkers)
    monkeypatch.setattr(FakeWorkers, "faults", {})
    monkeypatch.setattr(FakeWorkers, "started", 0)
    about = {"problem": "regression", "labels": ["x"]}
    inputs = Inputs(Path(), {}, np.full(12, 4), np.arange(12), np.arange(12), np.zeros((12, 1)), 1e9, about)
    sources = dict.fromkeys(("onnx", "torch", "onnx-fp16"), Path())
    return Sweep(
        Path(), inputs, sources, Place(None, 1), {"fp32": 1e12}, min_time=0, texts_within=99, timeout=0, uuid=""
    )


def measured(plan, cells, speeds=(), rounds=1) -> list[tuple[int, str, str]]:
    return [(cell.size, cell.timed, row["status"]) for cell, row in run_cells(plan, cells, dict(speeds), rounds)]


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
        "status": "ok",
    }
    assert row == expected | {"p50_ms": "150", "p99_ms": "200", "throttled": ""}
    assert from_texts == expected | {"throttled": ""}


def test_passes_are_repeated_for_the_time_asked_for(plan):
    [(_, row), _] = run_cells(replace(plan, min_time=1.1), cells(4), {}, 1)
    assert (row["passes"], row["messages/s"]) == ("5", "48")


def test_a_slow_cell_is_not_timed_from_texts(plan):
    """12 texts at 48 and 24 messages/s take a quarter and a half of a second."""
    both = [*cells(4), *cells(2, workers=1)]
    expected = [(4, "forward", "ok"), (4, "texts", "ok"), (2, "forward", "ok")]
    assert measured(replace(plan, texts_within=0.3), both) == expected


def test_a_share_above_100_percent_is_not_shown(plan):
    (_, row), _ = run_cells(replace(plan, peaks={"fp32": 3e9}), cells(4), {}, 1)
    assert (row["tflops"], row["mfu"]) == ("0.004", "")


def test_the_estimate_counts_padding_warm_up_and_the_cores_in_use(plan, monkeypatch):
    monkeypatch.setattr(sweep, "cpu_cores", lambda: 2)
    lengths = np.array([1, 3] * 6)
    padded = replace(plan, inputs=replace(plan.inputs, lengths=lengths), peaks={"fp32": 1e9, "bf16": 4e9})
    one, two = Cell("torch", 1, 2, "length"), Cell("torch", 2, 2, "dataset")
    assert estimate(padded, [one, two]) == {one: 2 * 4, two: 2 * 2 * 1.5}, "1 GFLOP at half of the peak"
    bf16 = Cell("torch-bf16", 2, 2, "length")
    assert estimate(replace(padded, min_time=3), [bf16]) == {bf16: 0.5 + 3}


def test_the_fastest_cell_of_each_variant_and_worker_count_is_timed_from_texts(plan):
    both = [*cells(1, 4, 2), *cells(1, 2, workers=1), *cells(8, variant="torch")]
    assert measured(plan, both) == [
        *((size, "forward", "ok") for size in (1, 4, 2)),
        (4, "texts", "ok"),
        *((size, "forward", "ok") for size in (1, 2)),
        (2, "texts", "ok"),
        (8, "forward", "ok"),
        (8, "texts", "ok"),
    ]
    assert FakeWorkers.started == 3, "once for each variant and worker count"


def test_what_was_measured_before_counts_for_which_is_the_fastest(plan):
    [fast] = cells(16)
    assert measured(plan, cells(4), {fast: 100.0}) == [(4, "forward", "ok"), (16, "texts", "ok")]
    from_texts = replace(fast, timed="texts")
    assert measured(plan, cells(4), {fast: 100.0, from_texts: 90.0}) == [(4, "forward", "ok")]
    assert measured(plan, [from_texts], {fast: 100.0}) == [(16, "texts", "ok")]


@pytest.mark.parametrize("step", ["prepare", "run", "report"])
def test_a_fault_costs_its_cell_and_nothing_else(plan, step, monkeypatch):
    monkeypatch.setattr(FakeWorkers, "faults", {(step, 4): WorkerFailed("worker 1 of 2 died")})
    assert measured(plan, cells(1, 4, 2)) == [
        (1, "forward", "ok"),
        (4, "forward", "worker 1 of 2 died"),
        (2, "forward", "ok"),
        (2, "texts", "ok"),
    ]
    assert FakeWorkers.started == 2


def test_what_fails_from_texts_is_a_row_of_its_own(plan, monkeypatch):
    monkeypatch.setattr(FakeWorkers, "faults", {("run", "texts"): WorkerFailed("out of memory")})
    assert measured(plan, cells(1)) == [(1, "forward", "ok"), (1, "texts", "out of memory")]


def test_a_variant_that_can_not_load_fails_its_cells_and_the_next_one_runs(plan, monkeypatch):
    monkeypatch.setattr(FakeWorkers, "faults", {("load", "onnx"): UserError("no such file")})
    both = [*cells(1, 2), *cells(4, variant="torch")]
    assert measured(plan, both) == [
        (1, "forward", "no such file"),
        (2, "forward", "no such file"),
        (4, "forward", "ok"),
        (4, "texts", "ok"),
    ]
    assert FakeWorkers.started == 2, "it is not tried again"


def test_an_export_of_another_model_fails_its_cell(plan, monkeypatch):
    monkeypatch.setattr(FakeWorkers, "labels", 2)
    rows = [row for _, row in run_cells(plan, [*cells(1), *cells(1, variant="torch")], {}, 1)]
    assert [row["status"] for row in rows] == ["it gives 2 labels, the model has 1: not its export"] * 2


def test_a_variant_that_has_no_source_fails_its_cells(plan):
    sources = {"onnx": UserError("it can't be exported"), "torch": Path()}
    both = [*cells(1), *cells(4, variant="torch")]
    assert measured(replace(plan, sources=sources), both) == [
        (1, "forward", "it can't be exported"),
        (4, "forward", "ok"),
        (4, "texts", "ok"),
    ]


def test_rounds_are_in_turn(plan):
    both = [*cells(1, 4), *cells(2, variant="torch")]
    once = [(1, "forward", "ok"), (4, "forward", "ok"), (4, "texts", "ok"), (2, "forward", "ok"), (2, "texts", "ok")]
    assert measured(plan, both, rounds=2) == once * 2


def test_outputs_that_are_not_finite_are_no_good_row(plan):
    kept = [(np.arange(12), np.where(np.arange(12) == 5, np.nan, 0.0)[:, None])]
    max_diff, flips, _ = parity(plan.inputs, kept)
    assert np.isnan(max_diff) and flips == pytest.approx(1 / 12)
    max_diff, _, _ = parity(plan.inputs, [(np.arange(11), np.zeros((11, 1)))])
    assert np.isnan(max_diff), "a text without outputs"


def test_a_throttled_pass_is_a_column(plan, monkeypatch):
    reasons = iter([0x41, 0x80, 0x01 | 0x02 | 0x04 | 0x10 | 0x100])  # the last are no faults
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
    assert seen == {"heat (hardware)", "power brake", "not known"}
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda _: 0x01)
    (_, row), _ = run_cells(replace(plan, uuid="GPU-1"), cells(1), {}, 1)
    assert row["throttled"] == "no"


def memory_mib_and_descriptors(pid: int) -> np.ndarray:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return np.array([resident, len(os.listdir(f"/proc/{pid}/fd"))])


def test_200_cells_in_real_workers_need_no_more_than_20(tiny_model, tiny_exports, texts, tmp_path, monkeypatch):
    """Memory of the parent and of the workers, and their descriptors."""
    source = tiny_exports / "tiny-onnx" / "model.onnx"
    inputs = prepare_inputs(tiny_model, texts[:60], None)
    plan = Sweep(
        tiny_model,
        inputs,
        {"onnx": source},
        Place(None, 1),
        {"fp32": 1e12},
        min_time=0,
        texts_within=99,
        timeout=60,
        uuid="",
    )
    started, used = [], {}
    real = Workers.__init__
    monkeypatch.setattr(Workers, "__init__", lambda self, *more: started.append(self) or real(self, *more))
    several = list(itertools.islice(itertools.cycle(cells(*range(1, 11))), 200))
    for i, (cell, row) in enumerate(run_cells(plan, several, {}, 1), 1):
        assert row["status"] == "ok", row
        append_row(tmp_path / "rows.tsv", dict.fromkeys(COLUMNS, "") | {"size": cell.size} | row)
        if i in (20, 200):
            pids = [os.getpid(), *(process.pid for process in started[0].processes)]
            used[i] = np.array([memory_mib_and_descriptors(pid) for pid in pids])
    assert len(started) == 1 and len(used[200]) == 3
    assert (used[200][:, 0] < used[20][:, 0] + 5).all(), used
    assert (used[200][:, 1] <= used[20][:, 1]).all(), used
