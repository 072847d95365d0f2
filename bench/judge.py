"""Decides whether a variant or an export changes no more decisions than tolerated. All such judgments are made here.

The changed decisions are tested exactly, with the binomial distribution (Clopper and Pearson, 1934), as if decisions
were independent. "Within" and "not within" are each wrong with a probability of at most 5%. The benchmark tests a
growing number of decisions several times, so it splits these 5%: test k may be wrong with a probability of 5% / 2^k.
The last test, when time or texts run out, gets the rest, so the total stays at 5%.
"""

import numpy as np

TOLERANCE = 0.001  # share of changed decisions that is tolerated
ALPHA = 0.05  # the largest probability of a wrong verdict
MIN_SAMPLE = 32  # of N_SAMPLE, if each text has many parts, such as hypotheses
N_SAMPLE = 256  # texts, at most, on which every cell of a sweep is compared: seconds of work for the reference
MAX_FACTOR = 5  # give up suggesting more texts beyond this factor and report the interval instead
ROUNDING = 1e-4  # largest difference of a probability that FP32 rounding explains (sums in another order)
WITHIN, UNPROVEN, NOT_WITHIN = "within tolerance", "not proven yet", "NOT WITHIN TOLERANCE"
VERDICTS = {"yes": WITHIN, "not proven": UNPROVEN, "no": NOT_WITHIN}  # values of the column `within`


def within_tolerance(changed: int, decisions: int, tolerance: float = TOLERANCE, alpha: float = ALPHA) -> bool | None:
    """Test whether at most a share of `tolerance` of all decisions changes; None if there are too few to decide.

    True and False are each wrong with a probability of at most `alpha`. A tolerance of 0 or 1 is compared with the
    observed share.
    """
    if not 0 < tolerance < 1:
        return changed / decisions <= tolerance
    if 1 - binomial_cdf(changed - 1, decisions, tolerance) < alpha:
        return False
    return True if binomial_cdf(changed, decisions, tolerance) < alpha else None


def judge(
    changed: int, decisions: int, tolerance: float = TOLERANCE, alpha: float = ALPHA, rounded: bool = False
) -> str:
    """Return WITHIN, UNPROVEN or NOT_WITHIN. `rounded`: all differences are FP32 rounding, see is_rounded."""
    if rounded and not changed:
        return WITHIN
    return {True: WITHIN, False: NOT_WITHIN, None: UNPROVEN}[within_tolerance(changed, decisions, tolerance, alpha)]


def is_rounded(precision: str, max_diff: float) -> bool:
    """True if the differences are FP32 rounding: same arithmetic, other summation order."""
    return precision == "fp32" and max_diff <= ROUNDING


def alpha_for_look(look: int, last: bool = False) -> float:
    """Return the error probability of test `look` (1, 2, ...); the last test gets all that is left."""
    return ALPHA / 2 ** (look - last)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return the probability of at most k successes in n trials with success probability p, 0 < p < 1."""
    if k < 0:
        return 0.0
    i = np.arange(k + 1)
    log_choices = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])  # log of "n choose i"
    return float(np.exp(log_choices + i * np.log(p) + (n - i) * np.log1p(-p)).sum())


def interval(changed: int, decisions: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of the share of changed decisions, with confidence 1 - alpha."""
    low = bisect(lambda p: 1 - binomial_cdf(changed - 1, decisions, p) < alpha / 2) if changed else 0.0
    high = bisect(lambda p: binomial_cdf(changed, decisions, p) > alpha / 2) if changed < decisions else 1.0
    return low, high


def bisect(is_below) -> float:
    """Return the largest number from 0 to 1 for which is_below(number) is true."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def decisions_needed(changed: int, decisions: int, tolerance: float = TOLERANCE, alpha: float = ALPHA) -> int | None:
    """Estimate how many decisions give a verdict if the share of changes stays.

    None if some changed and it takes more than MAX_FACTOR times as many."""
    if not changed and 0 < tolerance < 1:
        return int(np.ceil(np.log(alpha) / np.log1p(-tolerance)))
    needed = decisions
    while needed <= MAX_FACTOR * decisions:
        if within_tolerance(round(changed / decisions * needed), needed, tolerance, alpha) is not None:
            return needed
        needed = int(needed * 1.05) + 1
    return None


def share_words(changed: int, decisions: int, tolerance: float = TOLERANCE) -> str:
    """Describe an undecided result: the confidence interval of the share, wide enough to contain the tolerance."""
    alpha, (low, high) = ALPHA, interval(changed, decisions)
    while not low <= tolerance <= high:
        alpha /= 2
        low, high = interval(changed, decisions, alpha)
    share = f"{low:.2%} to {high:.2%} of the decisions change ({100 * (1 - alpha):.3g}% confidence)"
    return f"{share}, the tolerance is {tolerance:.2%}"
