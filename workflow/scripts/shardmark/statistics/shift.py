"""What any exact test of a shift says: its p, the interval that inverts it, equivalence.

A shift is a difference of log-values, so a ratio: exp(shift). Everything here comes from one test,
so that the p, the interval and the equivalence test cannot contradict one another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]

# Log-values closer than this are ties: far under what a measurement can tell apart, far over what
# subtraction in float64 leaves behind.
RESOLUTION_DECIMALS = 12


class ShiftTest(Protocol):
    """An exact test of H0: the shift is so much."""

    @property
    def n(self) -> int:
        """Pairs, or runs of the smaller side."""

    @property
    def estimate(self) -> float:
        """The Hodges-Lehmann estimate: the shift that the test would reject last."""

    @property
    def spread(self) -> float:
        """Standard deviation of the difference of one run from another; NaN from one run."""

    @property
    def breakpoints(self) -> FloatArray:
        """Shifts at which the statistic changes, ascending, each once."""

    @property
    def smallest_p(self) -> float:
        """The least two-sided p that data of this size can give."""

    def smallest_p_at(self, n: int) -> float:
        """The same for n pairs, or n runs a side."""

    def tails(self, shift: float) -> tuple[float, float]:
        """P(statistic <= seen) and P(statistic >= seen) under H0: the shift is ``shift``."""


def p_less(test: ShiftTest, shift: float = 0.0) -> float:
    """The one-sided p of H0: the true shift is at least ``shift``."""
    return max(test.tails(point)[0] for point in _around(test, shift))


def p_greater(test: ShiftTest, shift: float = 0.0) -> float:
    """The one-sided p of H0: the true shift is at most ``shift``."""
    return max(test.tails(point)[1] for point in _around(test, shift))


def two_sided_p(test: ShiftTest, shift: float = 0.0) -> float:
    """The p of H0: the true shift is ``shift``; twice the smaller one-sided p."""
    return min(1.0, 2 * min(p_less(test, shift), p_greater(test, shift)))


def interval(test: ShiftTest, level: float = 0.95) -> tuple[float, float]:
    """All shifts that the two-sided test does not reject at 1 - level.

    Args:
        test: the test.
        level: the confidence, for instance 0.95.

    Returns:
        Its ends, which are infinite where n is too small for the test to reject anything.
    """
    alpha = (1 - level) / 2
    points = test.breakpoints
    low = _lowest(points, lambda shift: test.tails(shift)[1] > alpha)
    high = -_lowest(-points[::-1], lambda shift: test.tails(-shift)[0] > alpha)
    return low, high


def equivalence_p(test: ShiftTest, margin: float) -> float:
    """The p of two one-sided tests (TOST; Schuirmann 1987) of equivalence.

    Args:
        test: the test.
        margin: of the ratio, for instance 0.02. The bounds are 1 / 1.02 and 1.02, so that the
            answer does not depend on which side is called the baseline.

    Returns:
        The p of H0: the ratio lies on or beyond a bound.
    """
    bound = math.log1p(margin)
    return max(p_greater(test, -bound), p_less(test, bound))


def _around(test: ShiftTest, shift: float) -> Sequence[float]:
    """The shift, and both its sides where the statistic jumps there.

    At a jump (a difference is zero, two are tied) the data leave the statistic open; the largest p
    of the three is the one that stays consistent with the interval, whose ends are jumps.
    """
    points = test.breakpoints
    gaps = np.abs(points - shift)
    if gaps.min() > 10.0**-RESOLUTION_DECIMALS / 4:
        return [shift]
    others = np.delete(gaps, gaps.argmin())
    step = float(others.min()) / 2 if others.size else 1.0
    return [shift - step, shift, shift + step]


def _lowest(points: FloatArray, accepted: Callable[[float], bool]) -> float:
    """The infimum of the accepted shifts; the test is constant between two breakpoints."""
    if accepted(float(points[0]) - 1):
        return -math.inf
    for here, after in itertools.pairwise([*points.tolist(), float(points[-1]) + 2]):
        if accepted(here) or accepted((here + after) / 2):
            return float(here)
    return math.inf
