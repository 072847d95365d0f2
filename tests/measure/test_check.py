"""Checks of unproven variants on more texts: how many texts run, when it ends, and the row that comes out."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_sweep

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN, within_tolerance
from bench.measure import check
from bench.measure.cells import Cell
from bench.measure.check import FurtherCheck, check_more, in_random_order
from bench.model.batches import Batching
from bench.model.classification import MULTI, Classification
from bench.model.parity import ParityCounter
from bench.report.evidence import EvidenceFile

LABELS = 8
TASK = Classification(tuple("abcdefgh"), MULTI, (0.5,) * LABELS)


class FakeReference:
    """Predicts no label for any text."""

    def __init__(self, *_):
        self.asked = 0

    def answers(self, texts):
        return np.full((len(texts), LABELS), 0.4)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class FakeWorkers:
    """A variant that changes one decision in every `wrong`-th text (0: in none). `texts`: how many it ran."""

    def __init__(self, wrong: int = 0):
        self.wrong, self.texts = wrong, 0

    def call(self, _, texts, __):
        count = len(texts)
        answers = np.full((count, LABELS), 0.4)
        for i in range(count):
            if self.wrong and (self.texts + i) % self.wrong == 0:
                answers[i, 0] = 0.99
        self.texts += count
        return [(np.arange(count), SimpleNamespace(answers=answers, tokens=9, padded_tokens=10, start=0.0, end=1.0))]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Check variants, the fastest first, with no change in their first 256 texts; call it again for another run.

    Returns {variant: (verdict, texts it ran, decisions)}.
    """
    monkeypatch.setattr(check, "CachedReference", FakeReference)

    def run(n_texts: int = 20_000, check_time: float = 60.0, **variants: FakeWorkers) -> dict:
        cells = {name: Cell(name.replace("_", "-"), 1, 1, Batching("sorted", 8), "check") for name in variants}
        sweep = make_sweep(
            model=SimpleNamespace(task=TASK, labels=["x"] * LABELS),
            tokens=SimpleNamespace(reference=np.zeros((256, LABELS))),
            exports={},
            more_texts=[f"text {i}" for i in range(n_texts)],
            check_time=check_time,
            evidence=EvidenceFile(tmp_path),
        )
        swept = ParityCounter(TASK)
        swept.add(np.full((256, LABELS), 0.3), np.full((256, LABELS), 0.4), [f"text {i}" for i in range(256)])
        for cell in cells.values():
            sweep.evidence.add(sweep.keys[cell.variant], swept)
        workers = {cells[name]: fake for name, fake in variants.items()}
        checks = {cell: FurtherCheck(sweep, cell) for cell in workers}
        check_more(sweep, workers, checks)
        for cell in [cell for cell in checks if checks[cell].texts]:
            columns, found = checks[cell].columns(), sweep.evidence.of_key(sweep.keys[cell.variant])
            assert (int(columns["decisions"]), columns["status"]) == (found.decisions, "ok")
            assert {"yes": WITHIN, "no": NOT_WITHIN}.get(columns["within"], UNPROVEN) == checks[cell].verdict
        found = {name: sweep.evidence.of_key(sweep.keys[cell.variant]).decisions for name, cell in cells.items()}
        return {name: (checks[cell].verdict, workers[cell].texts, found[name]) for name, cell in cells.items()}

    return run


def test_none_changed_is_proven_as_soon_as_the_test_says_so(run):
    [(verdict, texts, decisions)] = run(torch_bf16=FakeWorkers()).values()
    assert verdict == WITHIN and decisions == (256 + texts) * LABELS
    assert within_tolerance(0, decisions) is True and within_tolerance(0, decisions - 64 * LABELS) is None


def test_many_changes_are_refuted_soon(run):
    verdict, texts, _ = run(torch_bf16=FakeWorkers(wrong=10))["torch_bf16"]
    assert verdict == NOT_WITHIN and texts < 500


def test_near_the_tolerance_it_ends_with_the_texts_or_with_the_time(run):
    """One change per 125 texts with 8 labels each is 0.1%."""
    verdict, texts, _ = run(n_texts=3000, torch_bf16=FakeWorkers(wrong=125))["torch_bf16"]
    assert (verdict, texts) == (UNPROVEN, 3000 - 256)
    start = time.monotonic()
    assert run(check_time=0.0, onnx_fp16=FakeWorkers())["onnx_fp16"][1] <= 64 and time.monotonic() < start + 5


def test_another_run_goes_on_where_the_last_one_ended(run):
    first = run(n_texts=300, torch_bf16=FakeWorkers())["torch_bf16"]
    assert first == (UNPROVEN, 44, 300 * LABELS)
    assert run(n_texts=300, torch_bf16=FakeWorkers())["torch_bf16"] == (UNPROVEN, 0, 300 * LABELS), "no text is left"
    verdict, texts, decisions = run(torch_bf16=FakeWorkers())["torch_bf16"]
    assert verdict == WITHIN and decisions == (300 + texts) * LABELS
    assert run(torch_bf16=FakeWorkers(wrong=1))["torch_bf16"][1] == 0, "it is decided"


def test_one_nan_refutes_a_variant(run):
    class OneNan(FakeWorkers):
        def call(self, *arguments):
            [(indices, answers)] = super().call(*arguments)
            answers.answers[0, 0] = np.nan if self.texts == 64 else answers.answers[0, 0]
            return [(indices, answers)]

    assert run(torch_bf16=OneNan())["torch_bf16"][0] == NOT_WITHIN


def test_a_variant_slower_than_a_proven_one_is_not_checked_further(run):
    found = run(torch_bf16=FakeWorkers(), openvino_bf16=FakeWorkers(wrong=125))
    assert found["torch_bf16"][0] == WITHIN and found["openvino_bf16"][0] == UNPROVEN
    assert found["openvino_bf16"][1] == found["torch_bf16"][1]
    found = run(onnx_fp16=FakeWorkers(wrong=10), onnx_int8=FakeWorkers())
    assert [verdict for verdict, *_ in found.values()] == [NOT_WITHIN, WITHIN], (
        "the check continues if the faster one is wrong"
    )


def test_more_texts_come_without_duplicates_and_in_the_same_order_each_time():
    texts = [str(i % 50) for i in range(100)]
    assert in_random_order(texts) == in_random_order(texts) != texts[:50]
    assert sorted(in_random_order(texts)) == sorted(texts[:50])
