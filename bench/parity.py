"""Logits -> probabilities -> how far they are from the reference, and what counts as a changed decision.

Changed decisions are called flips, as by Dutta et al., "Accuracy is Not All You Need", 2024.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.files import digest, read_json
from utils import UserError

PERCENTILES = {"p25": 25, "median": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
N_WORST_TEXTS = 3  # that a report shows
EXCERPT = 200  # characters of each
# what `flips` counts
DECISIONS = {
    "multi_label_classification": "labels that cross {threshold}",
    "single_label_classification": "texts with another most probable label",
    "regression": "values that move by more than a tenth of the original's standard deviation",
}


def resolve_problem_type(config) -> str:
    """Returns `regression`, `single_label_classification` or `multi_label_classification` of a transformers config.

    As transformers' text-classification pipeline has it: unless it is a regression, a single label gets a sigmoid, and
    several labels a softmax where the config doesn't say. Raises UserError for any other word.
    """
    if config.problem_type not in (None, *DECISIONS):
        raise UserError(f"config.json has an unknown problem_type {config.problem_type!r}: {', '.join(DECISIONS)}")
    if config.problem_type != "regression" and config.num_labels == 1:
        return "multi_label_classification"
    return config.problem_type or "single_label_classification"


def combine_windows(probs: np.ndarray, owners: np.ndarray, texts: int, mean: bool) -> np.ndarray:
    """Returns the largest probability of each label in any window of a text, or the mean: [texts, labels].

    `owners`: the text of each window. A text without windows has nan, and so has one with nan in a window.
    """
    found = np.full((texts, probs.shape[1]), 0.0 if mean else -np.inf)
    (np.add if mean else np.maximum).at(found, owners, probs)
    counts = np.bincount(owners, minlength=texts)[:, None]
    return np.where(counts, found / np.maximum(counts, 1) if mean else found, np.nan)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Turns logits [texts, labels] into what a user gets, in float64: sigmoid, softmax, or a regression's raw value.

    An infinite logit becomes nan, not 0 or 1.
    """
    logits = np.where(np.isfinite(logits), logits, np.nan).astype(np.float64)
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification":
        return 1 / (1 + np.exp(-np.maximum(logits, -700)))  # below, exp overflows
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become decisions, by a model's problem_type.

    thresholds: above which a label of a multi-label model holds, one for each label.
    """

    problem_type: str
    thresholds: tuple[float, ...]

    @property
    def name(self) -> str:
        """What rows say of the thresholds: nothing of 0.5, another one of all labels, or a digest of several."""
        if len(set(self.thresholds)) > 1:
            return f"labels {digest([str(self.thresholds).encode()])}"
        return "" if self.thresholds[0] == 0.5 else f"{self.thresholds[0]:g}"

    @property
    def words(self) -> str:
        """What counts as a changed decision, in words."""
        several = len(set(self.thresholds)) > 1
        threshold = "the threshold of each" if several else f"{self.thresholds[0]:g}"
        return DECISIONS[self.problem_type].format(threshold=threshold)

    def decide(self, probs: np.ndarray) -> np.ndarray:
        """Returns which labels hold, bool [texts, labels]: those above their threshold, or the most probable one.

        Raises UserError for a regression, which decides nothing.
        """
        if self.problem_type == "regression":
            raise UserError("a regression has no labels that hold or don't")
        if self.problem_type == "multi_label_classification":
            return probs > np.array(self.thresholds)
        return np.arange(probs.shape[1]) == probs.argmax(axis=1)[:, None]

    def count_flips(
        self, probs: np.ndarray, reference: np.ndarray, spread: np.ndarray | None = None
    ) -> tuple[int, int]:
        """Returns (changed decisions, all decisions) of two [texts, labels]: see DECISIONS.

        In a regression, a value counts as changed if it moves by more than a tenth of the reference's standard
        deviation (at least 0.0001), or of the `spread` [labels] if that is given. What is not finite is a change.
        """
        lost = ~np.isfinite(probs)
        if self.problem_type == "regression":
            changed = np.abs(probs - reference) > np.maximum(
                (reference.std(axis=0) if spread is None else spread) / 10, 1e-4
            )
        else:
            changed = self.decide(probs) != self.decide(reference)
        if self.problem_type == "single_label_classification":
            changed, lost = changed.any(axis=1), lost.any(axis=1)
        return int((changed | lost).sum()), changed.size


def read_thresholds(text: str | None, labels: list[str], problem_type: str) -> DecisionRule:
    """Makes the rule of `--threshold`: a number for all labels, or a JSON file of label -> number, 0.5 for the others.

    Raises UserError for anything else, and where a model has no thresholds: the most probable of its labels holds.
    """
    if text is None:
        return DecisionRule(problem_type, (0.5,) * len(labels))
    if problem_type != "multi_label_classification":
        raise UserError(f"--threshold is for models of which several labels may hold; this one is {problem_type}")
    try:
        given = dict.fromkeys(labels, float(text))
    except ValueError:
        given = read_json(Path(text))
    if unknown := [label for label in given if label not in labels]:
        raise UserError(f"--threshold {text}: the model has no label {unknown[0]!r}; it has {', '.join(labels)}")
    for label, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"--threshold {text}: {label} has {value!r}, where a number between 0 and 1 is needed")
    return DecisionRule(problem_type, tuple(float(given.get(label, 0.5)) for label in labels))


def statistics(probs: np.ndarray, reference: np.ndarray, rule: DecisionRule) -> dict:
    """Describes the differences of two [texts, labels].

    `largest_difference`: the distribution over the texts of the largest absolute difference of any label;
    `mean_over_labels`; `flips`, the share of `changed` among the `decisions`; `non_finite_texts`: how many texts have a
    value that is not finite. Those are left out of the differences, and count as changed.
    """
    finite = np.isfinite(probs).all(axis=1)
    differences = np.abs(probs - reference)[finite]
    largest = differences.max(axis=1) if finite.any() else np.array([np.nan])
    summary = {"mean": largest.mean(), "std": largest.std(), "min": largest.min(), "max": largest.max()}
    summary |= {name: np.percentile(largest, p) for name, p in PERCENTILES.items()}
    changed, decisions = rule.count_flips(probs, reference)
    return {
        "largest_difference": {name: float(value) for name, value in summary.items()},
        "mean_over_labels": float(differences.mean()) if finite.any() else float("nan"),
        "flips": changed / decisions,
        "changed": changed,
        "decisions": decisions,
        "non_finite_texts": int((~finite).sum()),
    }


def worst_texts(probs: np.ndarray, reference: np.ndarray, texts: list[str], labels: list[str]) -> list[dict]:
    """Returns the texts whose labels differ most, each with its labels, the most different first."""
    differences = np.nan_to_num(np.abs(probs - reference), nan=np.inf)
    found = []
    for i in np.argsort(-differences.max(axis=1), kind="stable")[:N_WORST_TEXTS]:
        table = [
            {
                "label": labels[j],
                "original": float(reference[i, j]),
                "export": float(probs[i, j]),
                "difference": float(probs[i, j] - reference[i, j]),
            }
            for j in np.argsort(-differences[i], kind="stable")
        ]
        excerpt = " ".join(texts[i].split())
        found.append({"excerpt": excerpt[:EXCERPT] + "…" * (len(excerpt) > EXCERPT), "labels": table})
    return found
