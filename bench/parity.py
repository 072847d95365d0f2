"""Logits -> probabilities -> how far they are from the reference, and what counts as a changed decision."""

import numpy as np

TOLERANCE = 0.001  # of changed decisions, up to which an export is good
DOUBT = 0.05  # the largest chance of a verdict that is wrong
MOST_DECISIONS = 10**8  # that anybody would check
PERCENTILES = {"p25": 25, "median": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
WORST = 3  # texts that a report shows
EXCERPT = 200  # characters of each
# what `flips` counts
DECISIONS = {
    "multi_label_classification": "labels that cross 0.5",
    "single_label_classification": "texts with another most probable label",
    "regression": "values that move by more than a tenth of the original's standard deviation",
}


def problem_type(config) -> str:
    """Returns `regression`, `single_label_classification` or `multi_label_classification` of a transformers config.

    As transformers' text-classification pipeline has it: unless it is a regression, a single label gets a sigmoid, and
    several labels a softmax where the config doesn't say.
    """
    if config.problem_type != "regression" and config.num_labels == 1:
        return "multi_label_classification"
    return config.problem_type or "single_label_classification"


def probabilities(logits: np.ndarray, problem: str) -> np.ndarray:
    """Turns logits [texts, labels] into what a user gets, in float64: sigmoid, softmax, or a regression's raw value.

    An infinite logit becomes nan, not 0 or 1.
    """
    logits = np.where(np.isfinite(logits), logits, np.nan).astype(np.float64)
    if problem == "regression":
        return logits
    if problem == "multi_label_classification":
        return 1 / (1 + np.exp(-np.maximum(logits, -700)))  # below, exp overflows
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def count_flips(probs: np.ndarray, reference: np.ndarray, problem: str) -> tuple[int, int]:
    """Returns (changed decisions, all decisions) of two [texts, labels]: see DECISIONS.

    In a regression, a value counts as changed if it moves by more than a tenth of the reference's standard deviation
    (at least 0.0001). A value that is not finite is a change.
    """
    lost = ~np.isfinite(probs)
    if problem == "single_label_classification":
        changed, lost = probs.argmax(axis=1) != reference.argmax(axis=1), lost.any(axis=1)
    elif problem == "multi_label_classification":
        changed = (probs > 0.5) != (reference > 0.5)
    else:
        changed = np.abs(probs - reference) > np.maximum(reference.std(axis=0) / 10, 1e-4)
    return int((changed | lost).sum()), changed.size


def judge(changed: int, decisions: int, tolerance: float = TOLERANCE) -> bool | None:
    """Says whether at most a share of `tolerance` of all decisions changes, from those that were checked.

    True and False are wrong with a chance of at most 5%, by the exact binomial test (Clopper and Pearson, 1934), as if
    decisions were independent; None where so few can't tell. A tolerance of 0 or 1 is judged by these alone.
    """
    if not 0 < tolerance < 1:
        return changed / decisions <= tolerance
    if 1 - binomial_cdf(changed - 1, decisions, tolerance) < DOUBT:
        return False
    return True if binomial_cdf(changed, decisions, tolerance) < DOUBT else None


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Returns the chance of at most k successes in n trials that succeed with a chance of p each."""
    i = np.arange(k + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])  # log of n over i
    return float(np.exp(ways + i * np.log(p) + (n - i) * np.log1p(-p)).sum()) if k >= 0 else 0.0


def decisions_needed(changed: int, decisions: int, tolerance: float = TOLERANCE) -> int | None:
    """Returns about how many decisions would tell, if as large a share of them changed; None if no number would."""
    needed = decisions
    while needed < MOST_DECISIONS:
        if judge(round(changed / decisions * needed), needed, tolerance) is not None:
            return needed
        needed = int(needed * 1.1) + 1
    return None


def judge_row(row) -> bool | None:
    """Judges a row of results as judge() does; one from before decisions were counted, by their share."""
    if np.isfinite(row["decisions"]):
        return judge(round(row["flips"] * row["decisions"]), int(row["decisions"]))
    return not row["flips"] > TOLERANCE


def is_wrong(row) -> bool:
    """Says whether a row of results is known to change too many decisions."""
    return judge_row(row) is False


def statistics(probs: np.ndarray, reference: np.ndarray, problem: str) -> dict:
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
    changed, decisions = count_flips(probs, reference, problem)
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
    for i in np.argsort(-differences.max(axis=1), kind="stable")[:WORST]:
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


def verdict_of(stats: dict, tolerance: float) -> tuple[str, str]:
    """Returns the verdict on an export with these statistics, `good`, `NOT GOOD` or undecided, and why."""
    if stats["non_finite_texts"]:
        return "NOT GOOD", f"{stats['non_finite_texts']} texts have outputs that are not finite"
    changed, decisions = stats["changed"], stats["decisions"]
    good, words = judge(changed, decisions, tolerance), f"{changed:,} of {decisions:,} decisions changed, "
    if good is None:
        needed = decisions_needed(changed, decisions, tolerance)
        often = f"about {needed / decisions:.1f} times as many texts would do" if needed else "more would hardly tell"
        return "not enough texts to tell", f"{words}the tolerance is {tolerance:.3%}; {often}"
    than = "at most" if good else "more than"
    confidence = " with 95% confidence" if 0 < tolerance < 1 else ""
    return "good" if good else "NOT GOOD", f"{words}{than} the tolerance of {tolerance:.3%}{confidence}"
