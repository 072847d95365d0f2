"""Gold labels: how they may be written, and scores that were counted by hand or by scikit-learn."""

import numpy as np
import pytest
from conftest import refused

from bench.export.gold import check_gold, score
from bench.model.classification import MULTI, REGRESSION, SINGLE, Classification
from bench.model.task import Task

LABELS = ["joy", "fear", "a, b"]


def task(problem_type: str = MULTI, threshold: str | None = None, labels=LABELS) -> Classification:
    return Classification(tuple(labels), problem_type, (0.5,) * len(labels)).with_thresholds(threshold)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("joy", [True, False, False]),
        ("joy,fear", [True, True, False]),
        ("0, 1", [True, True, False]),
        ("a, b", [False, False, True]),
        ('["a, b", "joy"]', [True, False, True]),
        (["fear"], [False, True, False]),
        ([0, 2], [True, False, True]),
        (1, [False, True, False]),
        (1.0, [False, True, False]),
        (float("nan"), None),
        ("", [False, False, False]),
        ([], [False, False, False]),
    ],
)
def test_gold_labels_are_names_or_numbers(value, expected):
    truth = check_gold([value, None, ["2"] if expected is None else None], task())
    assert truth.tolist() == [expected or [False, False, True]]


def test_a_column_has_either_names_or_numbers():
    """Otherwise labels whose names are numbers would be taken for indices."""
    digits = task(labels=["1", "2", "3"])
    assert check_gold(["1", "3"], digits).tolist() == [[True, False, False], [False, False, True]]
    assert check_gold(["0", "1"], digits).tolist() == [[True, False, False], [False, True, False]]
    assert all(label in refused(check_gold, ["joy", "1"], task()) for label in LABELS)


def test_a_model_of_one_label_has_its_own_f1():
    one = task(labels=["spam"])
    gold = ["spam", *[""] * 9]
    assert score(gold, np.full((10, 1), 0.1), one) == {"texts": 10, "F1": 0.0}
    assert score(gold, np.array([[0.9], [0.9], *[[0.1]] * 8]), one)["F1"] == pytest.approx(2 / 3)


def test_scores_agree_with_a_count_by_hand():
    gold = ["joy", "joy,fear", "fear", None]
    probs = np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [np.nan, np.nan, np.nan], [0.9, 0.9, 0.9]])
    found = score(gold, probs, task())
    joy, fear = 1.0, 0.0  # fear: one false positive, two missed; no text has the third label
    assert found == {
        "texts": 3,
        "micro F1": pytest.approx(2 * 2 / (2 * 2 + 1 + 2)),
        "macro F1": pytest.approx((joy + fear + 0) / 3),
    }
    assert score(gold, np.where(probs == 0.1, 0.4, probs), task(threshold="0.3"))["micro F1"] > found["micro F1"]
    gold = ["joy", "fear", "fear", None, ""]
    single = score(gold, np.vstack([probs, probs[:1]]), task(SINGLE))
    assert single == {"texts": 3, "accuracy": pytest.approx(1 / 3)}


def test_scores_agree_with_scikit_learn():
    """Computed by f1_score(..., zero_division=0) and accuracy_score of scikit-learn 1.9.1."""
    rng = np.random.default_rng(0)
    probs, truth = rng.random((50, 3)), rng.random((50, 3)) > 0.7
    gold = [[name for name, is_true in zip(LABELS, row, strict=True) if is_true] for row in truth]
    multi = score(gold, probs, task())
    assert multi["micro F1"] == pytest.approx(0.49645390) and multi["macro F1"] == pytest.approx(0.49523166)
    single = score([LABELS[i] for i in truth.argmax(axis=1)], probs, task(SINGLE))
    assert single["accuracy"] == pytest.approx(0.36000000)


def test_invalid_gold_labels_are_named():
    message = refused(check_gold, ["jyo"], task())
    assert all(label in message for label in ("jyo", *LABELS))
    assert "7" in refused(check_gold, ["7"], task())
    assert "joy,fear" in refused(check_gold, ["joy,fear"], task(SINGLE))
    assert "--label-column" in refused(check_gold, [None], task())
    message = refused(check_gold, ["1"], task(REGRESSION))
    assert "--label-column" in message and "regression" in message
    assert "--label-column" in refused(check_gold, ["1"], Task(("a number",))), "a task without labels"
