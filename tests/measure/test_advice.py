"""Runs in a row never give worse advice: real rows, evidence and verdicts of invented variants, without torch."""

import sys
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from bench.judge import WITHIN
from bench.measure.cells import Cell
from bench.measure.recorder import Recorder, rows_for_advice
from bench.measure.sweep import format_figures
from bench.model.batches import Batching
from bench.model.classification import MULTI, Classification
from bench.model.parity import ParityCounter
from bench.report.evidence import EvidenceFile, evidence_key

TASK = Classification(tuple("abcdefgh"), MULTI, (0.5,) * 8)
MODEL = SimpleNamespace(weights_id="w", task=TASK, max_length=512)
SPEEDS = {"torch": 20.0, "torch-bf16": 30.0, "onnx": 45.0, "onnx-int8": 70.0, "openvino-bf16": 110.0}
PRECISE = "torch", "onnx"
CELLS = [Batching("token-budget", batch_tokens=512), Batching("sorted", 8), Batching("in-order", 1)]
SLOWER = 1.0, 0.8, 0.5  # each of CELLS


def run_once(folder, number: int, variants: list[str], busy: float, texts: range, shares: dict, random) -> str | None:
    """Measure variants as a benchmark does, and return the one that it recommends."""
    columns = {"model": "m", "dataset": "x.csv", "device": "d-2-cores", "texts": len(texts)}
    columns |= {"texts_id": str(len(texts)), "weights_id": "w", "threshold": "", "commit": str(number), "driver": ""}
    evidence, earlier = EvidenceFile(folder), rows_for_advice(folder, columns)
    recorder = Recorder(columns | {"busy": f"{busy:.2f}"}, folder, sys.stderr, evidence, earlier=earlier)
    recorder.run_columns["date"] = f"2026-11-{number + 1:02d}T00:00:00Z"
    reference = np.full((len(texts), 8), 0.45)
    for variant in variants:
        answers = reference + (1e-7 if variant in PRECISE else 0.01)
        answers[np.array(texts) * 7919 % 1000 < 8000 * shares.get(variant, 0), 0] += 0.1  # the same texts in each run
        parity = ParityCounter(TASK, "fp32" if variant in PRECISE else "bf16")
        parity.add(answers, reference, [f"text {i}" for i in texts])
        evidence.add(evidence_key(MODEL, variant, "", dataset="x.csv", device="d-2-cores"), parity)
        for batching, factor in zip(CELLS, SLOWER, strict=True):
            speed = SPEEDS[variant] * factor * (1 - busy * 0.9) * random.uniform(0.97, 1.03)
            figures = dict.fromkeys(("messages/s", "min", "max"), speed) | {"passes": 2, "tokens/s": 40 * speed}
            figures = format_figures(figures | {"padding": 1.0} | parity.columns()) | {"status": "ok"}
            recorder.add(Cell(variant, 1, 1, batching, "end-to-end"), figures)
    assert set(recorder.completed()["variant"]) >= set(variants)
    ranked = recorder.ranked()
    within = ranked[ranked["verdict"] == WITHIN]
    assert all(ranked["verdict"][ranked["variant"].isin(PRECISE)] == WITHIN)
    return within["variant"].iloc[0] if len(within) else None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(3))
def test_ten_runs_in_a_row_never_give_worse_advice(seed, tmp_path, monkeypatch):
    """The first run measures all variants; others leave some out, on other texts, on a machine as busy as it may be.

    Two variants that compute in BF16 change nothing, and are proven sooner or later; INT8 changes too much.
    """
    for module in ("recorder", "evidence"):
        monkeypatch.setattr(f"bench.{'measure' if module == 'recorder' else 'report'}.{module}.package_versions", str)
    random, shares = Random(seed), {"onnx-int8": 0.02}
    busy = [random.choice([0.0, 0.0, 0.3, 0.6, 0.95]) for _ in range(11)] if seed % 2 else [0.9] * 11
    advice = [run_once(tmp_path, 0, sorted(SPEEDS), busy[0], range(40), shares, random)]
    assert advice == ["onnx"], "after 320 decisions"
    for number in range(1, 11):
        variants, start = random.sample(sorted(SPEEDS), random.randint(1, 4)), random.randint(0, 800)
        texts = range(start, start + random.randint(40, 500))
        advice.append(run_once(tmp_path, number, variants, busy[number], texts, shares, random))
        assert SPEEDS[advice[-1]] >= SPEEDS[advice[-2]], (advice, number)
    assert "onnx-int8" not in advice and len(set(advice)) > 1, "it gets better"


def test_speeds_on_the_texts_of_a_run_outrank_those_on_others(tmp_path, monkeypatch):
    """A quick run on 32 texts said that onnx does 68 messages/s, and the run on 300 that it does 40."""
    for module in ("measure.recorder", "report.evidence"):
        monkeypatch.setattr(f"bench.{module}.package_versions", str)
    columns = {
        "model": "m",
        "dataset": "x.csv",
        "device": "d-2-cores",
        "weights_id": "w",
        "threshold": "",
        "driver": "",
    }
    figures = {"passes": "2", "tokens/s": "40", "padding": "1", "max_diff": "0", "flips": "0", "decisions": "9999"}
    figures |= {"within": "yes", "status": "ok"}
    for texts, speeds in ((32, {"onnx": 68.0, "torch": 30.0}), (300, {"onnx": 40.0})):
        run = columns | {"texts": texts, "texts_id": str(texts), "commit": "1"}
        recorder = Recorder(run, tmp_path, sys.stderr, EvidenceFile(tmp_path), earlier=rows_for_advice(tmp_path, run))
        for variant, speed in speeds.items():
            timed = dict.fromkeys(("messages/s", "min", "max"), str(speed))
            recorder.add(
                Cell(variant, 1, 2, Batching("token-budget", batch_tokens=16 * texts), "end-to-end"), figures | timed
            )
    found = recorder.completed().set_index("variant")["messages/s"].to_dict()
    assert found == {"onnx": 40.0, "torch": 30.0}
