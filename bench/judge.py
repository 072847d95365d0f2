"""Decides whether a variant or an export changes no more decisions than tolerated. All such judgments are made here.

The test may be repeated after every decision, and evidence of several runs adds up (an e-process; Robbins 1970, Howard
et al. 2021): however often one looks, "within" and "not within" are each wrong with a probability of at most 5%, as if
decisions were independent. A likelihood ratio compares a mixture of shares below the tolerance with the likeliest share
above it; "within" is proven once it reaches 20. For "not within", the two sides are exchanged.
"""

import numpy as np

TOLERANCE = 0.001  # share of changed decisions that is tolerated
ALPHA = 0.05  # the largest probability of a wrong verdict
MIN_SAMPLE = 32  # of N_SAMPLE, if each text has many parts, such as hypotheses
N_SAMPLE = 256  # texts, at most, on which every cell of a sweep is compared: seconds of work for the reference
MOST_DECISIONS = 10**8  # more than anyone would check
ROUNDING = 1e-4  # largest difference of a probability that FP32 rounding explains (sums in another order)
WITHIN, UNPROVEN, NOT_WITHIN = "within tolerance", "not proven yet", "NOT WITHIN TOLERANCE"
VERDICTS = {"yes": WITHIN, "not proven": UNPROVEN, "no": NOT_WITHIN}  # values of the column `within`


def within_tolerance(changed: float, decisions: float, tolerance: float = TOLERANCE) -> bool | None:
    """Test whether at most a share of `tolerance` of all decisions changes; None if there are too few to decide.

    A tolerance of 0 or 1 is compared with the observed share.
    """
    if not 0 < tolerance < 1:
        return changed <= tolerance * decisions
    share = changed / decisions if decisions else 0.0
    lower = np.append(0.0, np.geomspace(min(1e-6, tolerance / 1000), tolerance, 40))
    weights = np.append(0.5, np.full(40, 0.5 / 40))  # half on the share 0: most variants change nothing
    upper = np.geomspace(tolerance, max(0.5, 2 * tolerance / (1 + tolerance)), 60)
    if mean_ratio(lower, max(tolerance, share), changed, decisions, weights) >= 1 / ALPHA:
        return True
    if mean_ratio(upper, min(tolerance, share), changed, decisions) >= 1 / ALPHA:
        return False
    return None


def mean_ratio(shares: np.ndarray, other: float, changed: float, decisions: float, weights=None) -> float:
    """Return the weighted mean, at most e^500, of the likelihoods of shares divided by that of another share."""
    shares = np.minimum(np.append(shares, other), 1 - 1e-12)  # a share of 1 has no logarithm of the others
    with np.errstate(divide="ignore"):  # changes are impossible at a share of 0
        logs = changed * np.log(shares) if changed else np.zeros(len(shares))
    logs += (decisions - changed) * np.log1p(-shares)
    return float(np.average(np.exp(np.minimum(logs[:-1] - logs[-1], 500)), weights=weights))


def judge(
    changed: int, decisions: int, tolerance: float = TOLERANCE, rounded: bool = False, non_finite: int = 0
) -> str:
    """Return WITHIN, UNPROVEN or NOT_WITHIN.

    `rounded`: all differences are FP32 rounding, see is_rounded; `non_finite`: items with an answer that is not finite.
    """
    if not decisions:
        return UNPROVEN
    if non_finite:
        return NOT_WITHIN
    if rounded and not changed:
        return WITHIN
    return {True: WITHIN, False: NOT_WITHIN, None: UNPROVEN}[within_tolerance(changed, decisions, tolerance)]


def is_rounded(precision: str, max_diff: float) -> bool:
    """True if the differences are FP32 rounding: same arithmetic, other summation order."""
    return precision == "fp32" and max_diff <= ROUNDING


def decisions_needed(changed: int, decisions: int, tolerance: float = TOLERANCE) -> int | None:
    """Estimate how many decisions give a verdict if the share of changes stays; None above MOST_DECISIONS."""
    share = changed / decisions if decisions else 0.0
    needed = max(decisions, 1)
    while within_tolerance(share * needed, needed, tolerance) is None and needed < MOST_DECISIONS:
        needed = int(1.01 * needed) + 1
    return needed if needed < MOST_DECISIONS else None


def share_words(changed: int, decisions: int, tolerance: float = TOLERANCE) -> str:
    return f"{changed:,} of {decisions:,} decisions changed, tolerance {100 * tolerance:g}%"
