"""Probabilities, changed decisions and their statistics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench import parity
from bench.judge import (
    NOT_WITHIN,
    UNPROVEN,
    WITHIN,
    binomial_cdf,
    decisions_needed,
    judge_export,
    judge_row,
    within_tolerance,
)
from bench.parity import count_flips, probabilities, resolve_problem_type, statistics, worst_texts

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


def flips(*arguments) -> float:
    changed, decisions = count_flips(*arguments)
    return changed / decisions


def test_flips_counts_flips():
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
def test_problem_type_of_none_is_resolved_from_the_labels(declared, labels, resolved):
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


@given(n=st.integers(1, 300), k=st.integers(-1, 300), p=st.floats(0.001, 0.999))
def test_binomial_chances_are_exact(n, k, p):
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n) + 1))
    assert binomial_cdf(min(k, n), n, p) == pytest.approx(exact, abs=1e-9)


def test_a_verdict_needs_enough_decisions():
    """The bounds of 0.1% at 95%: none of 2,995, or the larger counts of a table of the binomial distribution."""
    assert within_tolerance(0, 2994) is None and within_tolerance(0, 2995) is True
    assert within_tolerance(1, 800) is None, "one changed decision of 800 is no proof"
    assert within_tolerance(3, 800) is False and within_tolerance(2, 800) is None
    assert within_tolerance(7, 1792) is False
    assert within_tolerance(28, 280_000) is True and within_tolerance(1000, 280_000) is False
    assert (within_tolerance(0, 10, 0), within_tolerance(1, 10, 0), within_tolerance(10, 10, 1)) == (True, False, True)
    assert decisions_needed(0, 800) == pytest.approx(2995, rel=0.1)
    assert within_tolerance(1, decisions_needed(0, 800)) is None and decisions_needed(1, 1000) is None
    words = {"non_finite_texts": 0, "changed": 0, "decisions": 2995}
    assert judge_export(words, 0.001)[0] == WITHIN
    assert judge_export(words | {"changed": 30}, 0.001) == (
        NOT_WITHIN,
        "30 of 2,995 decisions changed, more than the tolerance of 0.100% with 95% confidence",
    )
    undecided, why = judge_export(words | {"decisions": 800}, 0.001)
    assert undecided == UNPROVEN and "0 of 800" in why and "about 3.8 times as many" in why
    assert "more would hardly tell" in judge_export(words | {"changed": 1, "decisions": 1000}, 0.001)[1]
    assert judge_export(words | {"non_finite_texts": 1}, 1)[0] == NOT_WITHIN


def test_rows_from_before_decisions_were_counted_are_judged_by_their_share():
    assert judge_row({"flips": 1 / 800, "decisions": np.nan}) is False
    assert judge_row({"flips": 1 / 800, "decisions": 800}) is None
    assert judge_row({"flips": 3 / 800, "decisions": 800}) is False
    assert judge_row({"flips": np.nan, "decisions": np.nan}) is True


@st.composite
def pairs(draw):
    """A problem and two arrays of logits [texts, labels], the second with values that are not finite."""
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

    same = statistics(reference, reference, problem)
    assert set(same["largest_difference"].values()) == {0.0}
    assert (same["mean_over_labels"], same["flips"], same["non_finite_texts"]) == (0, 0, 0)
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
    assert (judge_export(stats, 1)[0] == NOT_WITHIN) == bool(lost.any())
    worst = worst_texts(probs, reference, ["a text"] * len(probs), ["label"] * probs.shape[1])
    assert len(worst) == min(parity.N_WORST_TEXTS, len(probs))
