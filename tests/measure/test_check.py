"""Checks of unproven variants on more texts: how many texts run, when it ends, and the row that comes out."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import make_sweep

from bench.judge import within_tolerance
from bench.measure import check
from bench.measure.cells import Cell
from bench.measure.check import FurtherCheck, check_more, continue_check, more_texts
from bench.model.batches import Batching
from bench.model.classification import MULTI, Classification
from bench.model.parity import ParityCounter

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

    def call(self, _, file, __):
        count = len(json.loads(file.read_text()))
        answers = np.full((count, LABELS), 0.4)
        for i in range(count):
            if self.wrong and (self.texts + i) % self.wrong == 0:
                answers[i, 0] = 0.99
        self.texts += count
        return [(np.arange(count), SimpleNamespace(answers=answers, tokens=9, padded_tokens=10, start=0.0, end=1.0))]


@pytest.fixture
def run(monkeypatch):
    """Check variants, the fastest first, with no change in their first 256 texts.

    Returns {variant: (within, texts, decisions)}.
    """
    monkeypatch.setattr(check, "CachedReference", FakeReference)

    def run(n_texts: int = 100_000, check_time: float = 60.0, **variants: FakeWorkers) -> dict:
        cells = {name: Cell(name.replace("_", "-"), 1, Batching("sorted", 8), "check") for name in variants}
        sweep = make_sweep(
            model=SimpleNamespace(task=TASK, labels=["x"] * LABELS),
            tokens=SimpleNamespace(sample=range(256), reference=np.zeros((256, LABELS))),
            exports={},
            more_texts=["text"] * n_texts,
            check_time=check_time,
        )
        workers = {cells[name]: fake for name, fake in variants.items()}
        checks = {
            cell: FurtherCheck(cell, ParityCounter(TASK, decisions=256 * LABELS, max_diff=0.01)) for cell in workers
        }
        found = dict(check_more(sweep, workers, checks))
        return {
            name: (found[cell]["within"], workers[cell].texts, found[cell]["decisions"])
            for name, cell in cells.items()
            if cell in found
        }

    return run


def test_none_changed_is_proven_as_soon_as_the_exact_bound_says_so(run):
    """The second look has an alpha of 1.25%, so 4,380 unchanged decisions are a proof."""
    [(within, texts, decisions)] = run(torch_bf16=FakeWorkers()).values()
    assert within == "yes" and int(decisions) == (256 + texts) * LABELS
    assert within_tolerance(0, int(decisions), alpha=0.0125) is True
    assert int(decisions) < 4380 + 2 * 64 * LABELS, "no more than needed, in whole blocks"


def test_many_changes_are_refuted_at_the_next_look(run):
    assert run(torch_bf16=FakeWorkers(wrong=20))["torch_bf16"][0] == "no"


def test_near_the_tolerance_it_ends_with_the_texts_or_with_the_time(run):
    """One change per 125 texts with 8 labels each is 0.1%."""
    within, texts, _ = run(n_texts=3000, torch_bf16=FakeWorkers(wrong=125))["torch_bf16"]
    assert (within, texts) == ("not proven", 3000)
    assert run(check_time=0.0, torch_bf16=FakeWorkers()) == {}, "no time, no row"


def test_one_nan_refutes_a_variant(run):
    class OneNan(FakeWorkers):
        def call(self, *arguments):
            [(indices, answers)] = super().call(*arguments)
            answers.answers[0, 0] = np.nan if self.texts == 64 else answers.answers[0, 0]
            return [(indices, answers)]

    assert run(torch_bf16=OneNan())["torch_bf16"][0] == "no"


def test_a_variant_slower_than_a_proven_one_is_not_checked_further(run):
    found = run(torch_bf16=FakeWorkers(), openvino_bf16=FakeWorkers(wrong=125))
    assert found["torch_bf16"][0] == "yes" and found["openvino_bf16"][0] == "not proven"
    assert found["openvino_bf16"][1] == found["torch_bf16"][1]
    found = run(torch_bf16=FakeWorkers(wrong=20), openvino_bf16=FakeWorkers())
    assert [within for within, *_ in found.values()] == ["no", "yes"], "it is checked if the faster one is wrong"


def test_a_check_continues_from_the_batching_that_changed_most():
    columns = {"variant": "onnx-int8", "workers": 1, "batch_tokens": 0, "batching": "sorted", "decisions": 512}
    rows = [
        columns
        | {
            "batch_size": size,
            "flips": changed / 512,
            "messages/s": 9 - size,
            "max_diff": size / 100,
            "stage": "forward",
        }
        for size, changed in ((1, 1), (2, 2), (4, 0))
    ]
    tokens = SimpleNamespace(reference=np.zeros((256, 2)))
    begun = continue_check(make_sweep(model=SimpleNamespace(task=TASK), tokens=tokens, exports={}), pd.DataFrame(rows))
    assert (begun.cell.batching, begun.cell.stage) == (Batching("sorted", 2), "check")
    assert (begun.parity.changed, begun.parity.decisions, begun.parity.max_diff) == (2, 512, 0.04)


def test_more_texts_are_the_ones_not_compared_yet_without_duplicates():
    tokens = SimpleNamespace(texts=lambda: ["a", "b", "c"], sample=[0, 2])
    assert sorted(more_texts(["a", "b", "c", "d", "d", "a"], tokens)) == ["b", "d"]
