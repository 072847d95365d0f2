"""The tolerance test: its error however often one looks, and the numbers that it needs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.judge import ALPHA, NOT_WITHIN, TOLERANCE, UNPROVEN, WITHIN, decisions_needed, judge, within_tolerance

# flips -> the decisions that prove them, found in a trial of this test (in steps of half a percent)
PROVING = {0: 3149, 1: 7711, 2: 10_311, 3: 12_594}


def written_out(changed: int, decisions: int, tolerance: float) -> bool | None:
    """The same test with sums of plain logarithms: Robbins' mixture against the likeliest share of the other side."""

    def log_l(p: float) -> float:
        if p == 0:
            return 0.0 if changed == 0 else -math.inf
        return changed * math.log(p) + (decisions - changed) * math.log(1 - p)

    def ratio(shares: list[tuple[float, float]], other: float) -> float:
        return math.fsum(weight * math.exp(min(log_l(p) - log_l(other), 500)) for p, weight in shares)

    share = changed / decisions
    steps = [1e-6 * (tolerance / 1e-6) ** (i / 39) for i in range(40)]
    if ratio([(0.0, 0.5), *((p, 0.5 / 40) for p in steps)], max(tolerance, share)) >= 20:
        return True
    steps = [tolerance * (0.5 / tolerance) ** (i / 59) for i in range(60)]
    return False if ratio([(p, 1 / 60) for p in steps], min(tolerance, share)) >= 20 else None


def test_the_decisions_that_prove_a_few_flips():
    for flips, decisions in PROVING.items():
        assert within_tolerance(flips, decisions) is True
        assert within_tolerance(flips, int(0.99 * decisions)) is None
    assert 3131 <= decisions_needed(0, 800) < 3170 and 3131 <= decisions_needed(0, 0) < 3170
    needed = decisions_needed(4, 20_000)
    assert within_tolerance(4 * needed / 20_000, needed) is True and within_tolerance(4, 20_000) is not None
    assert decisions_needed(1, 1000) is None, "at the tolerance nothing decides"
    assert within_tolerance(7, 800) is False and within_tolerance(3, 800) is None


@given(decisions=st.integers(1, 30_000), changed=st.integers(0, 60), tolerance=st.sampled_from([0.001, 0.005, 0.05]))
def test_the_test_equals_one_that_is_written_out(decisions, changed, tolerance):
    changed = min(changed, decisions)
    if changed / decisions < 0.5:
        assert within_tolerance(changed, decisions, tolerance) == written_out(changed, decisions, tolerance)


@pytest.mark.parametrize(("share", "wrong"), [(TOLERANCE, True), (TOLERANCE, False), (0.0012, True), (0.0008, False)])
def test_whoever_looks_after_every_block_is_wrong_in_less_than_five_percent(share, wrong):
    """1,000 variants at the tolerance or on the wrong side of it, 150 looks each, after blocks of 64 texts."""
    flips = np.random.default_rng(0).binomial(64 * 8, share, (1000, 150)).cumsum(axis=1)
    known = {}

    def verdict(changed: int, look: int) -> bool | None:
        key = changed, look
        if key not in known:
            known[key] = within_tolerance(changed, 64 * 8 * (look + 1))
        return known[key]

    decided = [any(verdict(changed, look) is wrong for look, changed in enumerate(row.tolist())) for row in flips]
    assert sum(decided) < 1000 * ALPHA


def test_variants_far_from_the_tolerance_are_decided():
    assert within_tolerance(3, 10_752 * 2) is True and within_tolerance(40, 12_800) is False
    assert (within_tolerance(0, 10, 0), within_tolerance(1, 10, 0), within_tolerance(10, 10, 1)) == (True, False, True)
    assert within_tolerance(60, 100, 0.5) is None and within_tolerance(600, 1000, 0.5) is False


def test_what_is_no_matter_of_chance():
    assert judge(0, 10) == UNPROVEN and judge(0, 10, rounded=True) == WITHIN
    assert judge(9, 10, rounded=True) == NOT_WITHIN and judge(0, 9000, non_finite=1) == NOT_WITHIN
    assert judge(0, 0) == UNPROVEN


def test_decisions_that_all_changed_are_judged_without_a_warning(recwarn):
    assert within_tolerance(10, 10) is False and not recwarn.list
