"""Probabilities, changed decisions and their statistics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench import parity
from bench.judge import (
    ALPHA,
    NOT_WITHIN,
    UNPROVEN,
    WITHIN,
    alpha_for_look,
    binomial_cdf,
    decisions_needed,
    interval,
    judge,
    judge_export,
    within_tolerance,
)
from bench.parity import (
    DecisionRule,
    probabilities,
    read_thresholds,
    resolve_problem_type,
    statistics,
    worst_texts,
)
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


def rule(problem_type: str, labels: int = 2) -> DecisionRule:
    return DecisionRule(problem_type, (0.5,) * labels)


def flips(probs, reference, problem_type: str) -> float:
    changed, decisions = rule(problem_type, probs.shape[1]).count_flips(probs, reference)
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
    stats = statistics(probs, reference, rule("multi_label_classification"))
    largest = stats["largest_difference"]
    assert largest["mean"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert (largest["min"], largest["median"], largest["max"]) == pytest.approx((0.1, 0.2, 0.4))
    assert largest["p75"] == pytest.approx(0.3)
    assert stats["mean_over_labels"] == pytest.approx(0.7 / 6)
    assert stats["flips"] == 3 / 8  # 0.4 -> 0.6, 0.9 -> 0.5 and the nan
    assert stats["non_finite_texts"] == 1
    assert statistics(probs[:3], reference[:3], rule("regression"))["flips"] == 3 / 6
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
    assert decisions_needed(0, 800) == 2995 and decisions_needed(1, 1000) is None
    assert within_tolerance(2, decisions_needed(2, 10_000)) is True and within_tolerance(3, 7000) is None
    words = {"non_finite_texts": 0, "changed": 0, "decisions": 2995, "largest_difference": {"max": 0.01}}
    assert judge_export(words, 0.001)[0] == WITHIN
    assert judge_export(words | {"changed": 30}, 0.001) == (
        NOT_WITHIN,
        "30 of 2,995 decisions changed, more than the tolerance of 0.100% with 95% confidence",
    )
    undecided, why = judge_export(words | {"decisions": 800}, 0.001)
    assert undecided == UNPROVEN and "0 of 800" in why and "about 3.7 times as many" in why
    near = judge_export(words | {"changed": 19, "decisions": 21_600}, 0.001)
    assert near[0] == UNPROVEN and "0.05% to 0.14% of the decisions change" in near[1] and "near the toler" in near[1]
    assert judge_export(words | {"non_finite_texts": 1}, 1)[0] == NOT_WITHIN


def test_rows_from_before_decisions_were_counted_are_judged_by_their_share():
    row = {"within": "", "variant": "onnx-int8", "max_diff": 0.01, "decisions": 800}
    assert judge_row(row | {"flips": 1 / 800}) == UNPROVEN
    assert judge_row(row | {"flips": 3 / 800}) == NOT_WITHIN
    assert judge_row(row | {"flips": 0, "decisions": 2995}) == WITHIN
    assert judge_row(row | {"flips": 0.002, "decisions": np.nan}) == NOT_WITHIN
    assert judge_row(row | {"flips": np.nan, "decisions": np.nan}) == UNPROVEN, "nobody compared its outputs"
    assert judge_row(row | {"flips": 0, "variant": "onnx", "max_diff": 1e-6}) == WITHIN, "rounding needs no proof"
    assert judge_row(row | {"flips": 0, "within": "no"}) == NOT_WITHIN, "a row knows better than its figures"


def test_several_looks_together_are_wrong_no_more_often_than_one():
    """A variant that changes exactly as much as tolerated, looked at as often as a check may: 3,000 of them."""
    assert sum(alpha_for_look(look) for look in range(1, 60)) <= ALPHA
    numbers, proven, refuted = np.random.default_rng(0), 0, 0
    for _ in range(3000):
        changed, decisions, look, said = 0, 0, 0, None
        while look < 6 and said is None:
            look += 1
            more = 1000 * 2 ** (look - 1)
            changed, decisions = changed + numbers.binomial(more, 0.001), decisions + more
            said = within_tolerance(changed, decisions, alpha=alpha_for_look(look))
        proven, refuted = proven + (said is True), refuted + (said is False)
    assert 0 < proven < 3000 * ALPHA and 0 < refuted < 3000 * ALPHA
    assert (
        judge(0, 10) == UNPROVEN and judge(0, 10, rounded=True) == WITHIN and judge(5, 10, rounded=True) == NOT_WITHIN
    )


@given(changed=st.integers(0, 30), decisions=st.integers(30, 3000))
def test_an_interval_holds_the_share_and_no_more_than_it_must(changed, decisions):
    low, high = interval(changed, decisions)
    assert low <= changed / decisions <= high
    if changed:
        assert 1 - binomial_cdf(changed - 1, decisions, low) == pytest.approx(ALPHA / 2, rel=1e-6)
    if changed < decisions:
        assert binomial_cdf(changed, decisions, high) == pytest.approx(ALPHA / 2, rel=1e-6)


def test_a_label_holds_above_its_threshold(tmp_path):
    probs, labels = np.array([[0.2, 0.4]]), ["joy", "fear"]
    multi = "multi_label_classification"
    assert read_thresholds(None, labels, multi).decide(probs).tolist() == [[False, False]]
    low = read_thresholds("0.3", labels, multi)
    assert low.decide(probs).tolist() == [[False, True]] and (low.name, low.words) == ("0.3", "labels that cross 0.3")
    assert low.count_flips(probs, np.array([[0.2, 0.29]])) == (1, 2), "which 0.5 would not see"
    (tmp_path / "own.json").write_text('{"joy": 0.1}')
    own = read_thresholds(str(tmp_path / "own.json"), labels, multi)
    assert own.thresholds == (0.1, 0.5) and own.decide(probs).tolist() == [[True, False]]
    assert own.name.startswith("labels ") and "threshold of each" in own.words
    assert read_thresholds("0.5", labels, multi).name == "", "as nothing was said"


@pytest.mark.parametrize(
    ("given", "problem_type", "message"),
    [
        ("0", PROBLEMS[0], "joy has 0.0, where a number between 0 and 1 is needed"),
        ("1.5", PROBLEMS[0], "between 0 and 1"),
        ("nan", PROBLEMS[0], "between 0 and 1"),
        ('{"jyo": 0.3}', PROBLEMS[0], "has no label 'jyo'; it has joy, fear"),
        ('{"joy": "0.3"}', PROBLEMS[0], "joy has '0.3'"),
        ('{"joy": true}', PROBLEMS[0], "joy has True"),
        ("[0.3]", PROBLEMS[0], "own.json"),
        ("nowhere", PROBLEMS[0], "nowhere"),
        ("0.3", PROBLEMS[1], "for models of which several labels may hold"),
        ("0.3", PROBLEMS[2], "for models of which several labels may hold"),
    ],
)
def test_what_can_be_no_threshold_is_said(given, problem_type, message, tmp_path):
    if given[0] in "[{":
        (tmp_path / "own.json").write_text(given)
        given = str(tmp_path / "own.json")
    assert message in refused(read_thresholds, given, ["joy", "fear"], problem_type)


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

    same = statistics(reference, reference, rule(problem, reference.shape[1]))
    assert set(same["largest_difference"].values()) == {0.0}
    assert (same["mean_over_labels"], same["flips"], same["non_finite_texts"]) == (0, 0, 0)
    stats = statistics(probs, reference, rule(problem, reference.shape[1]))
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
