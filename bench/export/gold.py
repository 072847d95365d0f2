"""Gold labels -> F1 or accuracy of a model's decisions, by scikit-learn."""

import json

import numpy as np

from bench.inputs.model import Model
from utils import UserError


def score(gold: list, probs: np.ndarray, model: Model) -> dict[str, float]:
    """Scores the decisions that follow from probabilities [texts, labels] by the gold labels of their texts.

    `gold`: as parse_gold() takes them, None where a text has none. Returns `texts` (how many have gold labels) and, for
    a model of which several labels may hold, `micro F1` and `macro F1`, else `accuracy`. What is not finite decides
    for no label. Raises UserError as check_gold().
    """
    from sklearn.metrics import accuracy_score, f1_score

    given = [i for i, value in enumerate(gold) if value is not None]
    truth = check_gold(gold, model)
    decided = model.rule.decide(probs)[given] & np.isfinite(probs[given])
    if model.problem_type == "single_label_classification":
        return {"texts": len(given), "accuracy": float(accuracy_score(truth, decided))}
    averages = {
        f"{average} F1": float(f1_score(truth, decided, average=average, zero_division=0.0))
        for average in ("micro", "macro")
    }
    return {"texts": len(given), **averages}


def check_gold(gold: list, model: Model) -> np.ndarray:
    """Returns what the gold labels say, bool [texts that have any, labels].

    Raises UserError where one can't be read, where no text has any, and for a regression.
    """
    if model.problem_type == "regression":
        raise UserError("--label-column: a regression has no labels")
    truth = [parse_gold(value, model) for value in gold if value is not None]
    if not truth:
        raise UserError("--label-column: no text has a gold label")
    return np.array(truth)


def parse_gold(value, model: Model) -> list[bool]:
    """Says which of a model's labels a gold value names.

    It is a label's name or number, or several with commas between them, as a string or a list (`joy,anger`, `2,18`,
    `["joy"]`); an empty one is no label. Raises UserError for a label that the model doesn't have, and where a model
    of which one label holds has none or several.
    """
    names = value
    if isinstance(value, str):
        try:
            names = json.loads(value) if value.strip().startswith("[") else [value]
        except json.JSONDecodeError:
            names = [value]
    names = names if isinstance(names, list) else [names]
    if len(names) == 1 and isinstance(names[0], str) and names[0].strip() not in model.labels:
        names = names[0].split(",")
    places = [place_of(str(name).strip(), model.labels) for name in names if str(name).strip()]
    if model.problem_type == "single_label_classification" and len(places) != 1:
        raise UserError(f"the gold label {value!r} is not one label, and of this model one holds")
    return [i in places for i in range(len(model.labels))]


def place_of(name: str, labels: list[str]) -> int:
    if name in labels:
        return labels.index(name)
    if name.isdecimal() and int(name) < len(labels):
        return int(name)
    raise UserError(f"the gold label {name!r} is none of the model's: {', '.join(labels)}")
