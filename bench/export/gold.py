"""Gold labels -> F1 or accuracy of a model's decisions, by scikit-learn."""

import json

import numpy as np

from bench.model.classification import REGRESSION, SINGLE
from bench.model.model import Model
from utils import UserError


def score(gold: list, probs: np.ndarray, model: Model) -> dict[str, float]:
    """Scores the decisions that follow from probabilities [texts, labels] by the gold labels of their texts.

    `gold`: see check_gold. Returns `texts` (how many have gold labels) and, for a model of which several labels may
    hold, `micro F1` and `macro F1`, or `F1` where it has one label; else `accuracy`. What is not finite decides for no
    label. Raises UserError as check_gold().
    """
    from sklearn.metrics import accuracy_score, f1_score

    given = [i for i, value in enumerate(gold) if not is_missing(value, model)]
    truth = check_gold(gold, model)
    decided = model.task.decide(probs)[given] & np.isfinite(probs[given])
    if model.task.problem_type == SINGLE:
        return {"texts": len(given), "accuracy": float(accuracy_score(truth, decided))}
    if len(model.labels) == 1:
        return {"texts": len(given), "F1": float(f1_score(truth[:, 0], decided[:, 0], zero_division=0.0))}
    averages = {
        f"{average} F1": float(f1_score(truth, decided, average=average, zero_division=0.0))
        for average in ("micro", "macro")
    }
    return {"texts": len(given), **averages}


def check_gold(gold: list, model: Model) -> np.ndarray:
    """Returns what the gold labels say, bool [texts that have any, labels].

    A value is a label's name or number, or several with commas between them, as a string or a list (`joy,anger`,
    `2,18`, `["joy"]`); all of a column are names, or all are numbers. An empty string is no label, or for a model of
    which one label holds no gold label, as null is. Raises UserError where one can't be read, where no text has any,
    and for a regression.
    """
    if model.task.problem_type == REGRESSION:
        raise UserError("--label-column: a regression has no labels")
    values = [names_of(value, model.labels) for value in gold if not is_missing(value, model)]
    if not values:
        raise UserError("--label-column: no text has a gold label")
    one_holds = model.task.problem_type == SINGLE
    if odd := [names for names in values if one_holds and len(names) != 1]:
        raise UserError(f"the gold label {','.join(odd[0])!r} is not one label, and of this model one holds")
    places = {name: i for i, name in enumerate(model.labels)}
    if not all(name in places for names in values for name in names):
        numbers = {str(i): i for i in range(len(model.labels))}
        if unknown := [name for names in values for name in names if name not in numbers]:
            strange = next((name for name in unknown if name not in places), unknown[0])
            raise UserError(f"the gold label {strange!r} is none of the model's: {', '.join(model.labels)}")
        places = numbers
    truth = np.zeros((len(values), len(model.labels)), dtype=bool)
    for row, names in zip(truth, values, strict=True):
        row[[places[name] for name in names]] = True
    return truth


def is_missing(value, model: Model) -> bool:
    """Says whether a value of the gold column is none: null, not a number, or an empty string where one label holds."""
    empty = isinstance(value, str) and not value.strip() and model.task.problem_type == SINGLE
    return value is None or empty or (isinstance(value, float) and np.isnan(value))


def names_of(value, labels: list[str]) -> list[str]:
    """Returns the names or numbers in a gold value, as strings."""
    names = [value]
    if isinstance(value, str) and value.strip() not in labels:
        try:
            names = json.loads(value) if value.strip().startswith("[") else value.split(",")
        except json.JSONDecodeError:
            names = value.split(",")
    elif isinstance(value, list):
        names = value
    whole = [int(name) if isinstance(name, float) and name.is_integer() else name for name in names]
    return [str(name).strip() for name in whole if str(name).strip()]
