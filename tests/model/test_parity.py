"""Probabilities, changed decisions and their statistics."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench.judge import NOT_WITHIN, UNPROVEN, WITHIN
from bench.model.answers import combine_windows
from bench.model.classification import Classification, resolve_problem_type
from bench.model.parity import N_WORST_TEXTS, ParityCounter, worst_texts
from bench.report.verdict import judge_row

PROBLEMS = ("multi_label_classification", "single_label_classification", "regression")


def test_probabilities_by_problem_type():
    logits = np.array([[0.0, np.log(3)]])
    assert probabilities(logits, "multi_label_classification") == pytest.approx(np.array([[0.5, 0.75]]))
    assert probabilities(logits, "single_label_classification") == pytest.approx(np.array([[0.25, 0.75]]))
    assert (probabilities(logits, "regression") == logits).all()
    huge = probabilities(np.array([[1e4, -1e4]], dtype=np.float32), "single_label_classification")
    assert huge.tolist() == [[1, 0]]
    infinite = np.array([[np.inf, -np.inf, 0]], dtype=np.float16)
    assert np.isnan(probabilities(infinite, "multi_label_classification")).tolist() == [[True, True, False]]


def task(problem_type: str, labels: int = 2) -> Classification:
    return Classification(tuple(f"label {i}" for i in range(labels)), problem_type, (0.5,) * labels)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    return task(problem_type, logits.shape[1]).activate(logits)


def statistics(probs: np.ndarray, reference: np.ndarray, problem_type: str) -> dict:
    parity = ParityCounter(task(problem_type, probs.shape[1]))
    parity.add(probs, reference)
    return parity.statistics()


def flips(probs, reference, problem_type: str) -> float:
    return task(problem_type, probs.shape[1]).flips(probs, reference).mean()


def test_flips_are_the_share_of_changed_decisions():
    reference = np.array([[0.4, 0.6], [0.1, 0.9]])
    assert flips(reference, reference, "multi_label_classification") == 0
    one_label = np.array([[0.51, 0.6], [0.1, 0.9]])
    assert flips(one_label, reference, "multi_label_classification") == 1 / 4
    assert flips(one_label, reference, "single_label_classification") == 0
    assert flips(reference[:, ::-1], reference, "single_label_classification") == 1
    assert flips(np.array([[np.nan, 0.6], [0.1, 0.9]]), reference, "multi_label_classification") == 1 / 4
    moved = reference + np.array([0, 0.02])  # the second label's standard deviation is 0.15
    assert flips(moved, reference, "regression") == 1 / 2


@pytest.mark.parametrize(
    ("declared", "labels", "resolved"),
    [
        (None, 1, "multi_label_classification"),
        ("single_label_classification", 1, "multi_label_classification"),
        ("regression", 1, "regression"),
        (None, 3, "single_label_classification"),
        ("multi_label_classification", 3, "multi_label_classification"),
    ],
)
def test_a_missing_problem_type_is_resolved_from_the_labels(declared, labels, resolved):
    assert resolve_problem_type(SimpleNamespace(problem_type=declared, num_labels=labels)) == resolved


def test_statistics_of_hand_computed_arrays():
    reference = np.array([[0.1, 0.2], [0.4, 0.6], [0.5, 0.9], [0.3, 0.3]])
    probs = np.array([[0.1, 0.3], [0.6, 0.6], [0.5, 0.5], [np.nan, 0.3]])
    stats = statistics(probs, reference, "multi_label_classification")
    largest = stats["largest_difference"]
    assert largest["mean"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert (largest["min"], largest["median"], largest["max"]) == pytest.approx((0.1, 0.2, 0.4))
    assert largest["p75"] == pytest.approx(0.3)
    assert stats["mean_over_labels"] == pytest.approx(0.7 / 6)
    assert stats["flips"] == 3 / 8  # 0.4 -> 0.6, 0.9 -> 0.5 and the nan
    assert stats["non_finite_texts"] == 1
    assert statistics(probs[:3], reference[:3], "regression")["flips"] == 3 / 6
    worst = worst_texts(probs, reference, list("abcd"), ["x", "y"])
    assert [text["excerpt"] for text in worst] == ["d", "c", "b"]
    assert [row["label"] for row in worst[1]["labels"]] == ["y", "x"]


def test_rows_from_before_decisions_were_counted_are_judged_by_their_share():
    row = {"within": "", "variant": "onnx-int8", "max_diff": 0.01, "decisions": 800}
    assert judge_row(row | {"flips": 1 / 800}) == UNPROVEN
    assert judge_row(row | {"flips": 8 / 800}) == NOT_WITHIN
    assert judge_row(row | {"flips": 0, "decisions": 3149}) == WITHIN
    assert judge_row(row | {"flips": 0.002, "decisions": np.nan}) == NOT_WITHIN
    assert judge_row(row | {"flips": np.nan, "decisions": np.nan}) == UNPROVEN, "its outputs were not compared"
    assert judge_row(row | {"flips": 0, "variant": "onnx", "max_diff": 1e-6}) == WITHIN, "rounding needs no proof"
    assert judge_row(row | {"flips": 0, "within": "no"}) == NOT_WITHIN, "the column `within` wins over the figures"


def with_thresholds(text: str | None, problem_type: str = PROBLEMS[0]) -> Classification:
    return Classification(("joy", "fear"), problem_type, (0.5, 0.5)).with_thresholds(text)


def test_a_label_is_predicted_above_its_threshold(tmp_path):
    probs = np.array([[0.2, 0.4]])
    assert with_thresholds(None).decide(probs).tolist() == [[False, False]]
    low = with_thresholds("0.3")
    assert low.decide(probs).tolist() == [[False, True]] and low.rule_id == "0.3" and "0.3" in low.decision_words
    assert low.flips(probs, np.array([[0.2, 0.29]])).sum() == 1, "a threshold of 0.5 would miss it"
    (tmp_path / "own.json").write_text('{"joy": 0.1}')
    own = with_thresholds(str(tmp_path / "own.json"))
    assert own.thresholds == (0.1, 0.5) and own.decide(probs).tolist() == [[True, False]]
    assert own.rule_id not in ("", "0.1", "0.5") and {"0.1", "0.5"} < set(own.decision_words.split())
    assert with_thresholds("0.3").rule_id != with_thresholds("0.3000001").rule_id
    assert with_thresholds("0.5").rule_id == "", "0.5 is the default"


def test_texts_whose_scores_are_far_from_any_other_decision_hardly_test_a_model():
    """Of 2,000 decisions fewer than two may change within a tolerance of 0.1%."""
    multi, single = with_thresholds(None), with_thresholds(None, PROBLEMS[1])
    far = np.tile([0.01, 0.99], (1000, 1))
    near = np.where(np.arange(1000)[:, None] < 3, [0.47, 0.53], far)
    unknown = [[np.nan, 0.5]]
    assert re.search(r"\b0 of 2,000\b", multi.weak_test(far, 0.001))
    assert re.search(r"\b0 of 1,000\b", single.weak_test(far, 0.001))
    assert re.search(r"\b1 of 2,000\b", multi.weak_test(np.vstack([[[0.47, 0.99]], far[1:], unknown]), 0.001))
    assert not multi.weak_test(np.vstack([near[:1], far[1:]]), 0.001) and not multi.weak_test(far[:0], 0.001)
    assert not multi.weak_test(near, 0.001) and not single.weak_test(near, 0.001)
    assert not with_thresholds("0.02").weak_test(far, 0.001) and multi.weak_test(near, 0.01)
    assert not with_thresholds(None, PROBLEMS[2]).weak_test(far, 0.001)


def test_windows_of_a_text_are_combined_by_maximum_or_mean():
    """The second text has two windows, the third none, and the fourth one that is not finite."""
    windows, owners = np.array([[0.1], [0.2], [0.6], [np.nan], [0.5]]), np.array([0, 1, 1, 3, 3])
    largest = combine_windows(windows, owners, 4, mean=False)
    assert largest[:2].tolist() == [[0.1], [0.6]] and np.isnan(largest[2:]).all()
    mean = combine_windows(windows, owners, 4, mean=True)
    assert mean[:2].ravel() == pytest.approx([0.1, 0.4]) and np.isnan(mean[2:]).all()
    assert combine_windows(windows[:2], np.array([2, 0]), 3, mean=False)[[0, 2]].tolist() == [[0.2], [0.1]]


def test_calls_add_up_and_what_the_reference_cannot_answer_is_left_out():
    parity, reference = ParityCounter(task(PROBLEMS[0])), np.array([[0.4, 0.6], [0.1, 0.9], [np.nan, np.nan]])
    parity.add(reference, reference)
    assert (parity.verdict(), parity.columns()["within"]) == (UNPROVEN, "not proven")
    parity.add(np.array([[0.6, 0.6], [0.1, 0.8], [0.5, 0.5]]), reference)
    assert (parity.items, parity.changed, parity.decisions, parity.non_finite) == (4, 1, 8, 0)
    assert parity.max_diff == pytest.approx(0.2) and parity.verdict() == UNPROVEN
    assert parity.columns() == {"max_diff": parity.max_diff, "flips": 1 / 8, "decisions": 8, "within": "not proven"}
    parity.add(np.full((3, 2), np.nan), reference)
    assert parity.non_finite == 2 and parity.verdict() == NOT_WITHIN and np.isnan(parity.columns()["max_diff"])


@pytest.mark.parametrize(
    ("given", "problem_type", "names"),
    [
        ("0", PROBLEMS[0], "--threshold joy 0.0"),
        ("1.5", PROBLEMS[0], "--threshold joy 1.5"),
        ("nan", PROBLEMS[0], "--threshold joy nan"),
        ('{"jyo": 0.3}', PROBLEMS[0], "--threshold own.json jyo joy fear"),
        ('{"joy": "0.3"}', PROBLEMS[0], "--threshold own.json joy '0.3'"),
        ('{"joy": true}', PROBLEMS[0], "--threshold own.json joy True"),
        ("[0.3]", PROBLEMS[0], "own.json"),
        ("nowhere", PROBLEMS[0], "nowhere"),
        ("0.3", PROBLEMS[1], f"--threshold {PROBLEMS[1]}"),
        ("0.3", PROBLEMS[2], f"--threshold {PROBLEMS[2]}"),
    ],
)
def test_an_invalid_threshold_is_named(given, problem_type, names, tmp_path):
    if given[0] in "[{":
        (tmp_path / "own.json").write_text(given)
        given = str(tmp_path / "own.json")
    message = refused(with_thresholds, given, problem_type)
    assert all(name in message for name in names.split()), message


@st.composite
def pairs(draw):
    """A problem type and two arrays of logits [texts, labels], the second with values that are not finite."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    logits = draw(arrays.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)))
    others = draw(arrays.arrays(np.float32, shape, elements=st.floats(width=32), fill=st.just(np.float32(0))))
    return draw(st.sampled_from(PROBLEMS)), logits, others


@pytest.mark.filterwarnings("error")
@given(pairs())
def test_parity_and_its_statistics(pair):
    problem, logits, others = pair
    reference, probs = probabilities(logits, problem), probabilities(others, problem)
    if problem != "regression":
        assert ((reference >= 0) & (reference <= 1)).all()
        assert not ((probs < 0) | (probs > 1)).any()
    if problem == "single_label_classification":
        assert reference.sum(axis=1) == pytest.approx(np.ones(len(reference)))

    assert flips(reference, reference, problem) == 0
    changed = flips(probs, reference, problem)
    assert 0 <= changed <= 1
    lost = ~np.isfinite(probs)
    assert changed >= (lost.any(axis=1) if problem == "single_label_classification" else lost).mean() - 1e-12
    if problem != "regression" and not lost.any():
        assert flips(reference, probs, problem) == changed

    unchanged = statistics(reference, reference, problem)
    assert set(unchanged["largest_difference"].values()) == {0.0}
    assert (unchanged["mean_over_labels"], unchanged["flips"], unchanged["non_finite_texts"]) == (0, 0, 0)
    stats = statistics(probs, reference, problem)
    assert stats["non_finite_texts"] == lost.any(axis=1).sum()
    largest = stats["largest_difference"]
    ordered = [largest[key] for key in ("min", "p25", "median", "p75", "p90", "p95", "p99", "max")]
    if stats["non_finite_texts"] == len(probs):
        assert np.isnan([*largest.values(), stats["mean_over_labels"]]).all()
    else:
        assert ordered == pytest.approx(sorted(ordered)) and ordered[0] >= 0
        assert ordered[0] <= largest["mean"] * (1 + 1e-9) and largest["mean"] <= ordered[-1] * (1 + 1e-9)
        assert stats["mean_over_labels"] <= largest["mean"] * (1 + 1e-9)
    parity = ParityCounter(task(problem, probs.shape[1]), tolerance=1)
    parity.add(probs, reference)
    assert (parity.verdict() == NOT_WITHIN) == bool(lost.any())
    worst = worst_texts(probs, reference, ["a text"] * len(probs), ["label"] * probs.shape[1])
    assert len(worst) == min(N_WORST_TEXTS, len(probs))


@given(pairs())
def test_changes_are_those_of_each_item_alone(pair):
    """Whatever the task and however many items change; what the reference cannot answer is left out."""
    problem, logits, others = pair
    reference, probs = probabilities(logits, problem), probabilities(others, problem)
    reference, probs = np.tile(reference, (50, 1)), np.tile(probs, (50, 1))
    reference[0] = np.nan
    parity = ParityCounter(task(problem, probs.shape[1]))
    parity.add(probs, reference, [f"text {i}" for i in range(len(probs))])
    spread = reference[1:].std(axis=0)
    counts = [parity.task.flips(probs[i : i + 1], reference[i : i + 1], spread).sum() for i in range(1, len(probs))]
    assert list(parity.changes.values()) == counts and sum(counts) == parity.changed
