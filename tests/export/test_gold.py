"""Gold labels: how they may be written, and scores against a count by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused

from bench.export.gold import check_gold, score
from bench.model.classification import Classification

LABELS = ["joy", "fear", "a, b"]


def model(problem_type: str = "multi_label_classification", threshold: str | None = None, labels=LABELS):
    task = Classification(tuple(labels), problem_type, (0.5,) * len(labels)).with_thresholds(threshold)
    return SimpleNamespace(labels=labels, task=task)


@pytest.mark.parametrize(
    ("value", "held"),
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
def test_gold_labels_are_names_or_numbers(value, held):
    found = check_gold([value, None, ["2"] if held is None else None], model())
    assert found.tolist() == [held or [False, False, True]]


def test_a_column_is_of_names_or_of_numbers():
    """Otherwise labels whose names are numbers would be taken for indices."""
    digits = model(labels=["1", "2", "3"])
    assert check_gold(["1", "3"], digits).tolist() == [[True, False, False], [False, False, True]]
    assert check_gold(["0", "1"], digits).tolist() == [[True, False, False], [False, True, False]]
    assert all(label in refused(check_gold, ["joy", "1"], model()) for label in LABELS)


def test_a_model_of_one_label_has_its_own_f1():
    one = model(labels=["spam"])
    gold = ["spam", *[""] * 9]
    assert score(gold, np.full((10, 1), 0.1), one) == {"texts": 10, "F1": 0.0}
    assert score(gold, np.array([[0.9], [0.9], *[[0.1]] * 8]), one)["F1"] == pytest.approx(2 / 3)


def test_scores_are_those_of_a_count_by_hand():
    gold = ["joy", "joy,fear", "fear", None]
    probs = np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [np.nan, np.nan, np.nan], [0.9, 0.9, 0.9]])
    found = score(gold, probs, model())
    joy, fear = 1.0, 0.0  # fear: one false positive, two missed; no text has the third label
    assert found == {
        "texts": 3,
        "micro F1": pytest.approx(2 * 2 / (2 * 2 + 1 + 2)),
        "macro F1": pytest.approx((joy + fear + 0) / 3),
    }
    assert score(gold, np.where(probs == 0.1, 0.4, probs), model(threshold="0.3"))["micro F1"] > found["micro F1"]
    single = score(
        ["joy", "fear", "fear", None, ""], np.vstack([probs, probs[:1]]), model("single_label_classification")
    )
    assert single == {"texts": 3, "accuracy": pytest.approx(1 / 3)}


def test_invalid_gold_labels_are_named():
    message = refused(check_gold, ["jyo"], model())
    assert all(label in message for label in ("jyo", *LABELS))
    assert "7" in refused(check_gold, ["7"], model())
    assert "joy,fear" in refused(check_gold, ["joy,fear"], model("single_label_classification"))
    assert "--label-column" in refused(check_gold, [None], model())
    message = refused(check_gold, ["1"], model("regression"))
    assert "--label-column" in message and "regression" in message
