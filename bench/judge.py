"""Judges whether a variant or an export changes no more decisions than tolerated: the one room that does.

What is counted is tested exactly, by the binomial distribution (Clopper and Pearson, 1934), as if decisions were
independent. "Within" and "not within" are each wrong with a chance of at most 5%. Who looks several times at a growing
number of decisions, as the benchmark does, shares these 5% out: look k may be wrong with a chance of 5% / 2^k, and all
looks together with less than 5%. The last look, when time or texts are over, may use what is left of them.
"""

import numpy as np

TOLERANCE = 0.001  # share of changed decisions that is tolerated
ALPHA = 0.05  # the largest chance that a verdict is wrong
N_SAMPLE = 256  # texts, at most, that every cell of a sweep is compared on: seconds of work for the reference
MAX_FACTOR = 5  # times as many decisions, above which nobody would check: the answer is the interval then
ROUNDING = 1e-4  # of a probability: as far as FP32 is off that multiplies the same numbers in another order
WITHIN, UNPROVEN, NOT_WITHIN = "within tolerance", "not proven yet", "NOT WITHIN TOLERANCE"
VERDICTS = {"yes": WITHIN, "not proven": UNPROVEN, "no": NOT_WITHIN}  # how the column `within` of a row puts it


def within_tolerance(changed: int, decisions: int, tolerance: float = TOLERANCE, alpha: float = ALPHA) -> bool | None:
    """Says whether at most a share of `tolerance` of all decisions changes, from those that were checked.

    True and False are each wrong with a chance of at most `alpha`; None where so few can't tell. A tolerance of 0 or 1
    is judged by these alone.
    """
    if not 0 < tolerance < 1:
        return changed / decisions <= tolerance
    if 1 - binomial_cdf(changed - 1, decisions, tolerance) < alpha:
        return False
    return True if binomial_cdf(changed, decisions, tolerance) < alpha else None


def judge(
    changed: int, decisions: int, tolerance: float = TOLERANCE, alpha: float = ALPHA, rounded: bool = False
) -> str:
    """Returns WITHIN, UNPROVEN or NOT_WITHIN. `rounded`: the differences are rounding alone, see is_rounded."""
    if rounded and not changed:
        return WITHIN
    return {True: WITHIN, False: NOT_WITHIN, None: UNPROVEN}[within_tolerance(changed, decisions, tolerance, alpha)]


def is_rounded(precision: str, max_diff: float) -> bool:
    """Says whether what computes in this precision is the original but for the order of its sums: FP32, and as near."""
    return precision == "fp32" and max_diff <= ROUNDING


def alpha_for_look(look: int, last: bool = False) -> float:
    """Returns how likely the verdict of look 1, 2, ... may be wrong; for the last one that is all of what is left."""
    return ALPHA / 2 ** (look - last)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Returns the chance of at most k successes in n trials that succeed with a chance of p each."""
    if k < 0 or p >= 1:
        return float(k >= n)
    if p <= 0:
        return 1.0
    i = np.arange(k + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])  # log of n over i
    return float(np.exp(ways + i * np.log(p) + (n - i) * np.log1p(-p)).sum())


def interval(changed: int, decisions: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the confidence interval of the share of decisions that change, by Clopper and Pearson.

    `alpha`: how likely the share lies outside, above and below together.
    """
    low = bisect(lambda p: 1 - binomial_cdf(changed - 1, decisions, p) < alpha / 2) if changed else 0.0
    high = bisect(lambda p: binomial_cdf(changed, decisions, p) > alpha / 2) if changed < decisions else 1.0
    return low, high


def bisect(is_below) -> float:
    """Returns the number from 0 to 1 up to which is_below(number) is true."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def decisions_needed(changed: int, decisions: int, tolerance: float = TOLERANCE, alpha: float = ALPHA) -> int | None:
    """Returns about how many decisions would tell, if as large a share changes; None if more than anybody would check.

    Where none changed it is the exact number: 2,995 for a tolerance of 0.1% and one look.
    """
    if not changed and 0 < tolerance < 1:
        return int(np.ceil(np.log(alpha) / np.log1p(-tolerance)))
    needed = decisions
    while needed <= MAX_FACTOR * decisions:
        if within_tolerance(round(changed / decisions * needed), needed, tolerance, alpha) is not None:
            return needed
        needed = int(needed * 1.05) + 1
    return None


def share_words(changed: int, decisions: int, tolerance: float = TOLERANCE) -> str:
    """Says what is known where the decisions that were checked can't tell: the interval, which holds the tolerance.

    After several looks it has more confidence than 95%, as the verdict needs.
    """
    alpha, (low, high) = ALPHA, interval(changed, decisions)
    while not low <= tolerance <= high:
        alpha /= 2
        low, high = interval(changed, decisions, alpha)
    share = f"{low:.2%} to {high:.2%} of the decisions change ({100 * (1 - alpha):.3g}% confidence)"
    return f"{share}, your tolerance is {tolerance:.2%}"
