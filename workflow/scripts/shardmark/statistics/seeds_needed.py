"""How many seeds would settle an open comparison."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from shardmark.statistics.shift import FloatArray, ShiftTest

IntArray: TypeAlias = npt.NDArray[np.int_]

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
    numbers = np.arange(test.n + 1, MOST + 1)
    enough = settling_power(test, numbers, spread, margin, level) >= POWER
    return int(numbers[enough.argmax()]) if enough.any() else None


def settling_power(
    test: ShiftTest, n: IntArray, spread: float, margin: float, level: float
) -> FloatArray:
    """The chance that n seeds show a difference, or equivalence.

    The two chances add up: both at once happens only with so many seeds that one is certain.

    Args:
        test: the comparison so far, whose estimate is taken as the truth.
        n: numbers of seeds, shape (k,).
        spread: standard deviation of one difference.
        margin: of the equivalence test, as a share of the ratio.
        level: of either test.

    Returns:
        Shape (k,).
    """
    shift, bound = abs(test.estimate), math.log1p(margin)
    smallest = np.array([test.smallest_p_at(int(number)) for number in n])
    differ = np.where(smallest <= level, _t_power(shift, n, spread, level / 2), 0.0)
    # Equivalence is tested one-sided, whose smallest p is half of the two-sided one.
    misses = sum(1 - _t_power(bound + side, n, spread, level) for side in (-shift, shift))
    equal = np.where(smallest / 2 <= level, np.maximum(0.0, 1 - misses), 0.0)
    return np.asarray(np.minimum(1.0, differ + equal))


def _t_power(shift: float, n: IntArray, spread: float, level: float) -> FloatArray:
    """Power of the one-sided test at ``level`` to see a shift, by the t-test's formula."""
    if shift <= 0:
        return np.zeros(n.shape)
    if spread == 0:
        return np.ones(n.shape)
    seen = shift * np.sqrt(n * EFFICIENCY) / spread
    return np.asarray(stats.nct.sf(stats.t.ppf(1 - level, n - 1), n - 1, seen))
