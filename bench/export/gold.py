"""Gold labels -> F1 or accuracy of a classifier's decisions."""

import contextlib
import json

import numpy as np

from bench.model.classification import REGRESSION, SINGLE, Classification
from bench.model.task import Task
from utils import UserError


def score(gold: list, answers: np.ndarray, task: Task) -> dict[str, float]:
    """Score the decisions that follow from answers [texts, labels] by the gold labels of their texts.

    Returns `texts`, the number with gold labels, and `accuracy` if the model predicts exactly one label, `F1` if it
    has only one, otherwise `micro F1` and `macro F1`. A label whose answer is not finite is not predicted.
    """
    truth = check_gold(gold, task)
    known = [i for i, value in enumerate(gold) if not is_missing(value, task)]
    predicted = task.decide(answers)[known] & np.isfinite(answers[known])
    if task.problem_type == SINGLE:
        return {"texts": len(known), "accuracy": float((predicted == truth).all(axis=1).mean())}
    correct = (predicted & truth).sum(axis=0)
    wrong = (predicted ^ truth).sum(axis=0)
    if len(task.labels) == 1:
        return {"texts": len(known), "F1": float(f1(correct, wrong)[0])}
    micro, macro = f1(correct.sum(), wrong.sum()), f1(correct, wrong).mean()
    return {"texts": len(known), "micro F1": float(micro), "macro F1": float(macro)}


def f1(correct: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return F1 from counts of true positives and of errors; 0 if a label is neither predicted nor in the gold."""
    return 2 * correct / np.maximum(2 * correct + wrong, 1)


def check_gold(gold: list, task: Task) -> np.ndarray:
    """Return the gold labels of the texts that have any, bool [texts, labels].

    A value is the name or number of a label, or several separated by commas, as a string or a list (`joy,anger`,
    `2,18`, `["joy"]`). A column has either names or numbers. Null means no gold label. So does an empty string if the
    model predicts exactly one label; otherwise it means that no label applies. Raises UserError for a value that is
    neither, if no text has a gold label, and for a task without labels.
    """
    if not isinstance(task, Classification) or task.problem_type == REGRESSION:
        raise UserError(f"--label-column is for classifiers; this model: {task.summary}")
    values = [split_labels(value, task.labels) for value in gold if not is_missing(value, task)]
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


def is_missing(value, task: Classification) -> bool:
    """True for null, NaN and, if the model predicts exactly one label, an empty string."""
    if isinstance(value, str):
        return task.problem_type == SINGLE and not value.strip()
    return value is None or (isinstance(value, float) and np.isnan(value))


def split_labels(value, labels: tuple[str, ...]) -> list[str]:
    """Return the names or numbers of labels in a gold value."""
    names = value if isinstance(value, list) else [value]
    if isinstance(value, str) and value.strip() not in labels:
        names = value.split(",")
        if value.strip().startswith("["):
            with contextlib.suppress(json.JSONDecodeError):
                names = json.loads(value)
    whole = [int(name) if isinstance(name, float) and name.is_integer() else name for name in names]
    return [str(name).strip() for name in whole if str(name).strip()]
