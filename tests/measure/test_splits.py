"""Splits of the machine: which are tried, what does not fit into memory, and which cells are measured in the end."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_sweep

import run_benchmark
from bench.measure import leaders, splits
from bench.measure.cells import plan_cells
from bench.measure.recorder import Recorder
from bench.measure.splits import expected_cells, fastest_split, share_cores, splits_to_try
from bench.report.evidence import EvidenceFile
from bench.report.rows import latest_per_cell, read_results
from utils import UserError

GIB = 2**30
ON_32_CORES = [(1, 32), (8, 4), (16, 2), (32, 1)]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with some cores and some free memory; returns a model whose weights have this size."""

    def machine(cores: int, free: float = 999 * GIB, weights: int = 2**20) -> SimpleNamespace:
        monkeypatch.setattr(splits, "cpu_cores", lambda: cores)
        monkeypatch.setattr(splits, "free_memory", lambda uuid: free)
        (tmp_path / "config.json").write_text("{}")
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(weights)
        return SimpleNamespace(folder=tmp_path)

    return machine


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (4, [(1, 4), (2, 2), (4, 1)]),
        (6, [(1, 6), (3, 2), (6, 1)]),
        (32, ON_32_CORES),
    ],
)
def test_a_few_splits_of_the_cores_are_tried(machine, cores, expected):
    assert splits_to_try(machine(cores), "cpu", "") == expected
    assert share_cores([2, 64], None) == [(2, max(1, cores // 2)), (64, 1)]
    assert share_cores([1, 3], 5) == [(1, 5), (3, 5)]


def test_four_workers_on_a_gpu_are_for_small_models(machine):
    assert splits_to_try(machine(16, weights=2**27), "gpu", "GPU-1") == [(1, 16), (2, 8), (4, 4)]
    assert splits_to_try(machine(16, weights=2**29), "gpu", "GPU-1") == [(1, 16), (2, 8)]
    assert splits_to_try(machine(3, weights=2**20), "gpu", "GPU-1") == [(1, 3), (2, 1)]


def test_a_split_that_does_not_fit_into_memory_is_left_out_and_named(machine, capsys):
    assert splits_to_try(machine(32, free=20 * GIB, weights=GIB // 2), "cpu", "") == ON_32_CORES[:2]
    [note] = capsys.readouterr().err.splitlines()
    assert "16 x 2" in note and "32 x 1" in note and "8 x 4" not in note
    assert splits_to_try(machine(32, free=0), "cpu", "") == [(1, 32)], "one worker is always tried"
    assert splits_to_try(machine(8, free=7 * GIB), "gpu", "GPU-1") == [(1, 8), (2, 4)]


def plan(*variants: str, splits=ON_32_CORES) -> list:
    return plan_cells(list(variants), splits, ["token-budget", "sorted"], [1, 8], [512])


@pytest.fixture
def search(monkeypatch):
    """Search among fake cells. Returns (the cells to measure, the cells that were timed)."""

    def search(speeds: dict, cells: list, exports: dict, reused: dict) -> tuple[list, list]:
        sweep = make_sweep(model=None, tokens=None, exports=exports, search=True)
        timed = []

        def run_cells(_, cells, *__):
            for cell in cells:
                speed = speeds.get(cell.workers)
                yield cell, {"status": "ok", "messages/s": str(speed)} if speed else {"status": "out of memory"}

        monkeypatch.setattr(splits, "run_cells", run_cells)
        recorder = SimpleNamespace(speeds=lambda: reused, add=lambda cell, _: timed.append(cell))
        return fastest_split(sweep, cells, recorder), timed

    return search


def test_the_fastest_split_of_one_variant_is_used_for_all(search):
    exports = dict.fromkeys(("torch", "onnx", "onnx-int8", "openvino-bf16", "pipeline"))
    cells = plan(*exports)
    found, timed = search({1: 50.0, 8: 90.0, 16: 70.0}, cells, exports, {})
    assert found == [cell for cell in cells if (cell.workers, cell.threads) == (8, 4)]
    assert [(cell.variant, cell.stage) for cell in timed] == [("openvino-bf16", "end-to-end")] * 4
    found, timed = search({1: 50.0, 16: 70.0}, cells, exports, {timed[1]: 60.0})
    assert found[0].workers == 16 and [cell.workers for cell in timed] == [1, 16, 32], "8 x 4 has a reused row"


def test_without_a_measured_split_one_worker_has_all_cores(search):
    cells = plan("torch", "onnx")
    found, timed = search({}, cells, {"torch": None, "onnx": UserError("no export")}, {})
    assert found == [cell for cell in cells if cell.workers == 1]
    assert {cell.variant for cell in timed} == {"torch"}, "the other one can't run"
    assert search({}, cells, dict.fromkeys(("torch", "onnx"), UserError("no")), {})[0] == found


def test_the_search_is_part_of_the_plan():
    cells = plan("torch", "onnx")
    sweep = make_sweep(model=None, tokens=None, exports={})
    assert expected_cells(sweep, cells) == cells
    expected = expected_cells(replace(sweep, search=True), cells)
    assert [(cell.variant, cell.workers) for cell in expected[:4]] == [("onnx", count) for count in (1, 8, 16, 32)]
    assert expected[4:] == [cell for cell in cells if cell.workers == 1]
    alone = plan("torch", "onnx", splits=[(1, 2)])
    assert expected_cells(replace(sweep, search=True), alone) == alone, "nothing to search"


FIGURES = {"max_diff": "0", "flips": "0", "decisions": "9999", "within": "yes", "status": "ok", "padding": "1"}


def timed(speed: float) -> dict[str, str]:
    return FIGURES | dict.fromkeys(("messages/s", "min", "max", "tokens/s"), str(speed)) | {"passes": "1"}


@pytest.fixture
def run_leaders(monkeypatch):
    """Return run(speeds, slow): runs measure_all with `speeds` of variants, and returns the cells timed in turn.

    Each time they are timed in turn, they reach `slow` times their speed.
    """

    def run(speeds: dict[str, float], slow: float = 1.0) -> list[list[str]]:
        found = [replace(cell, stage="end-to-end") for cell in plan(*speeds, splits=[(1, 1)])[::3]]
        columns = {"model": "m", "device": "d", "dataset": "x", "texts": 9, "texts_id": "t", "weights_id": "w"}
        recorder = Recorder(columns, None, sys.stderr, EvidenceFile(Path("nowhere")))
        exports = dict.fromkeys(speeds)
        sweep, rounds = make_sweep(model=None, tokens=SimpleNamespace(texts=["x"]), exports=exports), []

        def run_in_turn(_, workers: dict, count: int):
            rounds.append([cell.variant for cell in workers])
            return [(cell, timed(speeds[cell.variant] * slow)) for cell in workers] * count

        cells = ((cell, timed(speeds[cell.variant])) for cell in found)
        monkeypatch.setattr(leaders, "run_cells", lambda *_: cells)
        monkeypatch.setattr(leaders, "run_in_turn", run_in_turn)
        leaders.measure_all(sweep, found, recorder, repeats=1)
        return rounds

    run.started = []
    monkeypatch.setattr(leaders, "start_workers", lambda *_: run.started.append(10) or contextlib.nullcontext())
    monkeypatch.setattr(leaders, "worker_bytes", lambda *_: 10)
    return run


@pytest.mark.parametrize(("free", "loaded"), [(99, 3), (25, 2), (5, 0)])
def test_the_leaders_that_are_loaded_together_fit_into_memory(free, loaded, run_leaders, monkeypatch):
    monkeypatch.setattr(leaders, "free_memory", lambda _: free - sum(run_leaders.started))
    rounds = run_leaders({"torch": 9.0, "onnx": 9.0, "openvino-bf16": 9.0})
    assert [len(variants) for variants in rounds] == [loaded] * bool(loaded)


def test_if_the_leaders_get_slower_the_others_are_timed_again_too(run_leaders, monkeypatch):
    """All variants of a rank took turns, so a slow period in the middle of a run does not choose the winner."""
    monkeypatch.setattr(leaders, "free_memory", lambda _: 999)
    speeds = {"torch": 122.0, "onnx": 157.0, "openvino-bf16": 150.0}
    assert run_leaders(speeds) == [["onnx", "openvino-bf16"]]
    first, second, *_ = run_leaders(speeds, slow=0.3)
    assert "torch" not in first and "torch" in second


def test_a_quick_benchmark_measures_both_splits_of_two_cores(tiny_model, call, monkeypatch, tmp_path):
    monkeypatch.setattr(splits, "cpu_cores", lambda: 2)
    monkeypatch.setattr(splits, "SEARCH_SECONDS", 0.1)
    monkeypatch.setattr(run_benchmark, "QUICK_SECONDS", 1e9)
    options = ["--variant", "torch", "--quick", "--device", "cpu", "--model-id", tiny_model, "--limit", 40]
    code, _, err = call(run_benchmark, *options, "--results-dir", tmp_path)
    assert code == 0, err
    rows, _, _ = read_results(list(tmp_path.rglob("*.tsv")))
    ranking = rows.iloc[:2]
    assert list(zip(ranking["workers"], ranking["threads"], strict=True)) == [(1, 2), (2, 1)]
    best = ranking.loc[ranking["messages/s"].idxmax()]
    assert set(rows["stage"][:2]) == {"end-to-end"} and set(rows["workers"][2:]) == {best["workers"]}
    timed = latest_per_cell(rows[rows["stage"] == "end-to-end"])
    fastest = timed.loc[timed["messages/s"].idxmax()]
    [line] = [line for line in err.splitlines() if " torch " in line and "messages/s" in line]
    assert f"{fastest['workers']} x {fastest['threads']}," in line
