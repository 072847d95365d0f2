"""Gold labels -> scores of a classifier's decisions, and the thresholds with the best F1."""

import contextlib
import json

import numpy as np

from bench.model.classification import REGRESSION, SINGLE, Classification
from bench.model.task import Task
from utils import UserError

MIN_TEXTS = 10  # with a label, below which it keeps the threshold 0.5
FOLDS = 5  # of the cross-validation
COLUMNS = "label", "texts", "rule", "threshold", "precision", "recall", "F1", "export F1"


def score(gold: list, original: np.ndarray, export: np.ndarray, task: Task) -> dict:
    """Score the decisions that follow from answers [texts, labels] by the gold labels of their texts.

    Returns the number of `texts` with gold labels, and `scores` by rule: for each label, for all decisions (micro; the
    accuracy if the model predicts exactly one label), and the mean of the labels (macro). The rules are the `default`
    thresholds of 0.5, those `in use` if they differ, the `best`, at which each label has its largest F1 on these texts,
    and these `cross-validated`. `thresholds`: the best; `rare` labels, of fewer than MIN_TEXTS, keep 0.5.
    """
    truth, labels = check_gold(gold, task), task.labels
    both = np.stack([original, export])[:, [split_labels(value, task) is not None for value in gold]]
    found, thresholds = {"texts": len(truth)}, {}
    if task.problem_type == SINGLE:
        decisions = {"most probable": np.stack([*map(task.decide, both)]) & np.isfinite(both)}
    else:
        is_rare = truth.sum(axis=0) < MIN_TEXTS
        best = best_thresholds(truth, both[0], is_rare)
        in_use = {"in use": task.thresholds} if set(task.thresholds) != {0.5} else {}
        thresholds = {"default": (0.5,) * len(best), **in_use, "best": best}
        decisions = {rule: both > np.array(values) for rule, values in thresholds.items()}
        decisions["cross-validated"] = cross_validate(truth, both, is_rare)
        found["thresholds"] = dict(zip(labels, best, strict=True))
        found["rare"] = [label for label, rare in zip(labels, is_rare, strict=True) if rare]
    rates = {rule: precision_recall_f1(truth, pair) for rule, pair in decisions.items()}
    support = [*truth.sum(axis=0).tolist(), int(truth.sum()), int(truth.sum())]
    found["scores"] = []
    for i, label in enumerate([*labels, "all decisions", "mean of labels"]):
        for rule, of_both in rates.items():
            threshold = thresholds[rule][i] if rule in thresholds and i < len(labels) else None
            values = label, support[i], rule, threshold, *of_both[:, 0, i].tolist(), float(of_both[2, 1, i])
            found["scores"].append(dict(zip(COLUMNS, values, strict=True)))
    return found


def precision_recall_f1(truth: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """Return the rates of decisions [2, texts, labels]: [3, 2, labels and all of them and their mean]; 0 of 0 is 0."""
    counts = np.array([truth & decisions, decisions, np.stack([truth] * 2)]).sum(axis=2)
    correct, predicted, true = np.concatenate([counts, counts.sum(axis=2, keepdims=True)], axis=2)
    rates = np.array([correct, correct, 2 * correct]) / np.maximum([predicted, true, predicted + true], 1)
    return np.concatenate([rates, rates[:, :, :-1].mean(axis=2, keepdims=True)], axis=2)


def best_thresholds(truth: np.ndarray, answers: np.ndarray, is_rare: np.ndarray) -> tuple[float, ...]:
    """Return the threshold of each label with its largest F1, halfway between two answers; 0.5 if the label is rare."""
    thresholds = np.full(len(is_rare), 0.5)
    for i in np.flatnonzero(~is_rare):
        order = np.argsort(-np.nan_to_num(answers[:, i]), kind="stable")
        high, correct = np.nan_to_num(answers[order, i]), truth[order, i].cumsum()
        low = np.append(high[1:], 0.0)
        f1 = 2 * correct / (correct[-1] + np.arange(1, len(order) + 1))  # if the texts up to each are predicted
        k = np.where(high > low, f1, -1).argmax()
        middle = (low[k] + high[k]) / 2
        thresholds[i] = middle if middle < high[k] else low[k]
    return tuple(thresholds.tolist())


def cross_validate(truth: np.ndarray, both: np.ndarray, is_rare: np.ndarray) -> np.ndarray:
    """Return the decisions [2, texts, labels] on each fold of the texts at the best thresholds of the other folds.

    All are scored together: the mean of the folds' F1 would be biased (Forman and Scholz, 2010).
    """
    folds, decisions = np.random.default_rng(0).permutation(len(truth)) % FOLDS, np.zeros(both.shape, dtype=bool)
    for fold in range(FOLDS):
        others = folds != fold
        decisions[:, ~others] = both[:, ~others] > best_thresholds(truth[others], both[0, others], is_rare)
    return decisions


def check_gold(gold: list, task: Task) -> np.ndarray:
    """Return the gold labels of the texts that have any, bool [texts, labels].

    A value is the name or number of a label, or several separated by commas, as a string or a list (`joy,anger`,
    `2,18`, `["joy"]`). A column has either names or numbers. Null means no gold label. So does an empty string if the
    model predicts exactly one label; otherwise it means that no label applies. Raises UserError for a value that is
    neither, if no text has a gold label, and for a task without labels.
    """
    if not isinstance(task, Classification) or task.problem_type == REGRESSION:
        raise UserError(f"--label-column is for classifiers; this model: {task.summary}")
    values = [names for names in (split_labels(value, task) for value in gold) if names is not None]
    if not values:
        raise UserError("--label-column has no gold label for any text; choose another column")
    for names in values:
        if task.problem_type == SINGLE and len(names) != 1:
            raise UserError(f"gold label {','.join(names)!r} is not one label; this model predicts exactly one")
    by_name = {name: i for i, name in enumerate(task.labels)}
    by_number = {str(i): i for i in range(len(task.labels))}
    given = {name for names in values for name in names}
    index = by_name if given <= by_name.keys() else by_number
    if unknown := given - index.keys():
        name = min(unknown - by_name.keys() or unknown)
        raise UserError(f"the model has no gold label {name!r}; its labels: {', '.join(task.labels)}")
    truth = np.zeros((len(values), len(task.labels)), dtype=bool)
    for row, names in zip(truth, values, strict=True):
        row[[index[name] for name in names]] = True
    return truth


def split_labels(value, task: Classification) -> list[str] | None:
    """Return the names or numbers of labels in a gold value; None if it is missing, see check_gold()."""
    is_empty = task.problem_type == SINGLE and not str(value).strip()
    if value is None or is_empty or (isinstance(value, float) and np.isnan(value)):
        return None
    names = value if isinstance(value, list) else [value]
    if isinstance(value, str) and value.strip() not in task.labels:
        names = value.split(",")
        if value.strip().startswith("["):
            with contextlib.suppress(json.JSONDecodeError):
                names = json.loads(value)
    whole = [int(name) if isinstance(name, float) and name.is_integer() else name for name in names]
    return [str(name).strip() for name in whole if str(name).strip()]
