"""Judges whether a variant or an export changes no more decisions than tolerated: the one room that does."""

import numpy as np

TOLERANCE = 0.001  # share of changed decisions that is tolerated
ALPHA = 0.05  # the largest chance that a verdict is wrong
MAX_SAMPLE = 10**8  # decisions: nobody would check more
WITHIN, UNPROVEN, NOT_WITHIN = "within tolerance", "not enough texts to tell", "NOT WITHIN TOLERANCE"
FAILED = {NOT_WITHIN, "NOT GOOD"}  # the second is how reports of before November 26, 2026 put it


def within_tolerance(changed: int, decisions: int, tolerance: float = TOLERANCE) -> bool | None:
    """Says whether at most a share of `tolerance` of all decisions changes, from those that were checked.

    True and False are wrong with a chance of at most 5%, by the exact binomial test (Clopper and Pearson, 1934), as if
    decisions were independent; None where so few can't tell. A tolerance of 0 or 1 is judged by these alone.
    """
    if not 0 < tolerance < 1:
        return changed / decisions <= tolerance
    if 1 - binomial_cdf(changed - 1, decisions, tolerance) < ALPHA:
        return False
    return True if binomial_cdf(changed, decisions, tolerance) < ALPHA else None


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Returns the chance of at most k successes in n trials that succeed with a chance of p each."""
    i = np.arange(k + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])  # log of n over i
    return float(np.exp(ways + i * np.log(p) + (n - i) * np.log1p(-p)).sum()) if k >= 0 else 0.0


def decisions_needed(changed: int, decisions: int, tolerance: float = TOLERANCE) -> int | None:
    """Returns about how many decisions would tell, if as large a share of them changed; None if no number would."""
    needed = decisions
    while needed < MAX_SAMPLE:
        if within_tolerance(round(changed / decisions * needed), needed, tolerance) is not None:
            return needed
        needed = int(needed * 1.1) + 1
    return None


def judge_row(row) -> bool | None:
    """Judges a row of results as within_tolerance() does; one from before decisions were counted, by their share."""
    if np.isfinite(row["decisions"]):
        return within_tolerance(round(row["flips"] * row["decisions"]), int(row["decisions"]))
    return not row["flips"] > TOLERANCE


def judge_export(stats: dict, tolerance: float) -> tuple[str, str]:
    """Returns the verdict on an export with these parity.statistics (WITHIN, UNPROVEN or NOT_WITHIN), and why."""
    if stats["non_finite_texts"]:
        return NOT_WITHIN, f"{stats['non_finite_texts']} texts have outputs that are not finite"
    changed, decisions = stats["changed"], stats["decisions"]
    within, words = within_tolerance(changed, decisions, tolerance), f"{changed:,} of {decisions:,} decisions changed, "
    if within is None:
        needed = decisions_needed(changed, decisions, tolerance)
        often = f"about {needed / decisions:.1f} times as many texts would do" if needed else "more would hardly tell"
        return UNPROVEN, f"{words}the tolerance is {tolerance:.3%}; {often}"
    than = "at most" if within else "more than"
    confidence = " with 95% confidence" if 0 < tolerance < 1 else ""
    return WITHIN if within else NOT_WITHIN, f"{words}{than} the tolerance of {tolerance:.3%}{confidence}"
