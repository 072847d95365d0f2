"""Gold labels: how they may be written, and scores that were counted by hand or by scikit-learn."""

import json

import numpy as np
import pytest
from conftest import refused

from bench.export.gold import best_thresholds, check_gold, cross_validate, score
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


def rates(gold: list, answers: np.ndarray, asked: Classification, rule: str = "default") -> dict[str, tuple]:
    """Return precision, recall and F1 of each label of a model that answers the same as its export."""
    scores = score(gold, answers, answers, asked)["scores"]
    assert all(entry["export F1"] == entry["F1"] for entry in scores)
    names = "precision", "recall", "F1"
    return {entry["label"]: tuple(entry[name] for name in names) for entry in scores if entry["rule"] == rule}


def names_of(truth: np.ndarray) -> list[list[str]]:
    return [[name for name, is_true in zip(LABELS, row, strict=True) if is_true] for row in truth]


def test_scores_agree_with_a_count_by_hand():
    gold = ["joy", "joy,fear", "fear", None]
    probs = np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [np.nan, np.nan, np.nan], [0.9, 0.9, 0.9]])
    by_hand = {
        "joy": (1, 1, 1),
        "fear": (0, 0, 0),  # one false positive, two missed
        "a, b": (0, 0, 0),
        "all decisions": (2 / 3, 2 / 4, 4 / 7),
        "mean of labels": (1 / 3, 1 / 3, 1 / 3),
    }
    assert rates(gold, probs, task()) == {label: pytest.approx(values) for label, values in by_hand.items()}
    low = np.where(probs == 0.1, 0.4, probs)
    assert rates(gold, low, task(threshold="0.3"), "in use")["fear"] == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    found = score(gold, probs, low, task(threshold="0.3"))
    [fear] = [entry for entry in found["scores"] if (entry["label"], entry["rule"]) == ("fear", "in use")]
    assert found["texts"] == 3 and fear["texts"] == 2 and fear["threshold"] == 0.3
    assert (fear["F1"], fear["export F1"]) == (0, pytest.approx(1 / 2))


def test_scores_agree_with_scikit_learn():
    """Computed by precision_recall_fscore_support(..., zero_division=0) and accuracy_score of scikit-learn 1.9.1."""
    rng = np.random.default_rng(0)
    probs, truth = rng.random((50, 3)), rng.random((50, 3)) > 0.7
    gold = names_of(truth)
    found = rates(gold, probs, task())
    assert found["joy"] == pytest.approx((0.46153846, 0.57142857, 0.51063830))
    assert found["fear"] == pytest.approx((0.33333333, 0.66666667, 0.44444444))
    assert found["a, b"] == pytest.approx((0.48148148, 0.59090909, 0.53061224))
    assert found["all decisions"] == pytest.approx((0.42168675, 0.60344828, 0.49645390))
    assert found["mean of labels"] == pytest.approx((0.42545109, 0.60966811, 0.49523166))
    assert rates(gold, probs, task(threshold="0.3"), "in use")["fear"] == pytest.approx((0.325, 0.86666667, 0.47272727))
    best = rates(gold, probs, task(), "best")  # the largest F1 on precision_recall_curve
    assert [best[label][2] for label in LABELS] == pytest.approx([0.60869565, 0.49056604, 0.65517241])
    single = rates([LABELS[i] for i in truth.argmax(axis=1)], probs, task(SINGLE), "most probable")
    assert single["all decisions"] == pytest.approx((0.36, 0.36, 0.36)), "the accuracy"
    assert single["fear"] == pytest.approx((0.19047619, 0.5, 0.27586207))
    assert single["mean of labels"] == pytest.approx((0.36251167, 0.38888889, 0.33385879))


def test_the_best_thresholds_are_taken_by_the_option_and_rare_labels_keep_the_default(tmp_path):
    """Ties, adjacent numbers and nan are no thresholds between two texts."""
    rng = np.random.default_rng(1)
    truth = np.zeros((60, 3), dtype=bool)
    truth[:20, 0] = truth[:9, 1] = truth[5:15, 2] = True
    probs = np.clip(0.2 * truth + rng.choice([0.1, 0.2, np.nextafter(0.2, 1), 0.3, np.nan], (60, 3)), 0, 1)
    found = score(names_of(truth), probs, probs, task())
    assert found["rare"] == ["fear"] and found["thresholds"]["fear"] == 0.5
    (tmp_path / "best.json").write_text(json.dumps(found["thresholds"]))
    chosen = task(threshold=str(tmp_path / "best.json"))
    assert chosen.thresholds == tuple(found["thresholds"].values())
    in_use, best = (rates(names_of(truth), probs, chosen, rule) for rule in ("in use", "default"))
    for i in (0, 2):
        every = [
            2 * (truth[:, i] & (probs[:, i] > t)).sum() / (truth[:, i].sum() + (probs[:, i] > t).sum())
            for t in probs[:, i]
        ]
        assert in_use[LABELS[i]][2] == pytest.approx(np.nanmax(every)) and in_use[LABELS[i]][2] > best[LABELS[i]][2]


def test_the_cross_validated_decision_on_a_text_does_not_depend_on_its_gold_label():
    rng = np.random.default_rng(2)
    truth, is_rare = rng.random((40, 1)) > 0.6, np.array([False])
    both = np.stack([rng.random((40, 1))] * 2)
    decisions = cross_validate(truth, both, is_rare)
    in_sample = both > best_thresholds(truth, both[0], is_rare)
    assert (decisions != in_sample).any()
    for i in range(40):
        changed = truth.copy()
        changed[i] = ~changed[i]
        assert cross_validate(changed, both, is_rare)[0, i] == decisions[0, i]


def test_invalid_gold_labels_are_named():
    message = refused(check_gold, ["jyo"], task())
    assert all(label in message for label in ("jyo", *LABELS))
    assert "7" in refused(check_gold, ["7"], task())
    assert "joy,fear" in refused(check_gold, ["joy,fear"], task(SINGLE))
    assert "--label-column" in refused(check_gold, [None], task())
    message = refused(check_gold, ["1"], task(REGRESSION))
    assert "--label-column" in message and "regression" in message
    assert "--label-column" in refused(check_gold, ["1"], Task(("a number",))), "a task without labels"
