"""How many seeds would settle an open comparison."""

from __future__ import annotations

import math

from scipy import stats

from shardmark.shift import ShiftTest

ASSUMPTION = (
    "if the true ratio is the one estimated here and further runs scatter like these; the chance "
    "is then 80 %"
)
POWER = 0.8
MOST = 200
# A spread from fewer runs says next to nothing.
FEWEST = 3
# Asymptotic efficiency of both Wilcoxon tests relative to the t-test on normal data, 3 / pi
# (Hodges & Lehmann 1956).
EFFICIENCY = 3 / math.pi


def seeds_needed(
    test: ShiftTest, margin: float, comparisons: int = 1, alpha: float = 0.05
) -> int | None:
    """The total number of seeds that settles a comparison: a difference shown, or equivalence.

    The spread of so few runs is itself uncertain, so its upper 80 % confidence limit is used
    (Browne 1995, Statistics in Medicine 14, 1933-1940).

    Args:
        test: the comparison so far.
        margin: of the equivalence test, as a share of the ratio.
        comparisons: size of the family, each step of Holm's taken as its first, which is the
            hardest.
        alpha: the level of the family.

    Returns:
        The number of seeds; None where fewer than three runs leave the spread unknown, or where
        more than 200 would be needed.
    """
    if test.n < FEWEST:
        return None
    spread = test.spread * math.sqrt((test.n - 1) / stats.chi2.ppf(1 - POWER, test.n - 1))
    level = alpha / comparisons
    for n in range(test.n + 1, MOST + 1):
        if settling_power(test, n, spread, margin, level) >= POWER:
            return n
    return None


def settling_power(test: ShiftTest, n: int, spread: float, margin: float, level: float) -> float:
    """The chance that n seeds show a difference, or equivalence, whichever is likelier.

    Args:
        test: the comparison so far, whose estimate is taken as the truth.
        n: seeds.
        spread: standard deviation of one difference.
        margin: of the equivalence test, as a share of the ratio.
        level: of either test.
    """
    shift, bound = abs(test.estimate), math.log1p(margin)
    # One-sided, as equivalence is tested; the two-sided smallest p is twice that.
    can_differ = test.smallest_p_at(n) <= level
    can_equal = test.smallest_p_at(n) / 2 <= level
    differ = _t_power(shift, n, spread, level / 2) if can_differ else 0.0
    misses = [1 - _t_power(bound + side, n, spread, level) for side in (-shift, shift)]
    return max(differ, 1 - sum(misses) if can_equal else 0.0)


def _t_power(shift: float, n: int, spread: float, level: float) -> float:
    """Power of the one-sided test at ``level`` to see a shift, by the t-test's formula."""
    if shift <= 0:
        return 0.0
    if spread == 0:
        return 1.0
    seen = shift * math.sqrt(n * EFFICIENCY) / spread
    return float(stats.nct.sf(stats.t.ppf(1 - level, n - 1), n - 1, seen))
