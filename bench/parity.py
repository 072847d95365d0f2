"""Logits -> probabilities -> how far they are from the reference, and what counts as a changed decision.

Changed decisions are called flips, as by Dutta et al., "Accuracy is Not All You Need", 2024.
"""

import numpy as np

from utils import UserError

PERCENTILES = {"p25": 25, "median": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
N_WORST_TEXTS = 3  # that a report shows
EXCERPT = 200  # characters of each
# what `flips` counts
DECISIONS = {
    "multi_label_classification": "labels that cross 0.5",
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


def count_flips(probs: np.ndarray, reference: np.ndarray, problem_type: str) -> tuple[int, int]:
    """Returns (changed decisions, all decisions) of two [texts, labels]: see DECISIONS.

    In a regression, a value counts as changed if it moves by more than a tenth of the reference's standard deviation
    (at least 0.0001). A value that is not finite is a change.
    """
    lost = ~np.isfinite(probs)
    if problem_type == "single_label_classification":
        changed, lost = probs.argmax(axis=1) != reference.argmax(axis=1), lost.any(axis=1)
    elif problem_type == "multi_label_classification":
        changed = (probs > 0.5) != (reference > 0.5)
    else:
        changed = np.abs(probs - reference) > np.maximum(reference.std(axis=0) / 10, 1e-4)
    return int((changed | lost).sum()), changed.size


def statistics(probs: np.ndarray, reference: np.ndarray, problem_type: str) -> dict:
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
    changed, decisions = count_flips(probs, reference, problem_type)
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
