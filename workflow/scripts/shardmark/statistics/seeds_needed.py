"""How many runs would settle an open comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from shardmark.statistics.family import ALPHA, FEWEST_LIKELY
from shardmark.statistics.sign_flips import FloatArray

IntArray: TypeAlias = npt.NDArray[np.int_]

POWER = 0.8
MOST = 200


def seeds_needed(
    estimate: float, spread: float, n: int, margin: float, comparisons: int = 1
) -> int | None:
    """Return how many runs in total would settle a comparison, by a difference or by equivalence.

    It takes the estimate as the truth. The spread of so few runs is itself uncertain, so its upper
    80 % confidence limit is used (Browne 1995, Statistics in Medicine 14, 1933-1940). The formula
    is that of the t-test, its level divided by the size of the family.

    Args:
        estimate: the log-ratio so far.
        spread: standard deviation of one log-ratio.
        n: runs of each side so far.
        margin: the margin of equivalence, as a share of the ratio.
        comparisons: size of the family.

    Returns:
        The number of runs of each side; None where fewer than three leave the spread unknown, or
        where more than 200 would be needed.
    """
    return _fewest(
        n,
        spread,
        lambda numbers, own: _settling_power(estimate, numbers, own, margin, ALPHA / comparisons),
    )


def seeds_to_decide(distance: float, spread: float, n: int, comparisons: int = 1) -> int | None:
    """Return how many runs in total would show on which side of a bound a log-ratio is.

    Args:
        distance: distance of the estimate from the bound.
        spread: standard deviation of one log-ratio.
        n: runs of each side so far.
        comparisons: size of the family.
    """
    return _fewest(
        n, spread, lambda numbers, own: _t_power(abs(distance), numbers, own, ALPHA / comparisons)
    )


def _fewest(n: int, spread: float, power: Callable[[IntArray, float], FloatArray]) -> int | None:
    if n < FEWEST_LIKELY or math.isnan(spread):
        return None
    likely = spread * math.sqrt((n - 1) / stats.chi2.ppf(1 - POWER, n - 1))
    numbers = np.arange(n + 1, MOST + 1)
    enough = power(numbers, likely) >= POWER
    return int(numbers[enough.argmax()]) if enough.any() else None


def _settling_power(
    estimate: float, n: IntArray, spread: float, margin: float, level: float
) -> FloatArray:
    """Return the chance that n runs show a difference or equivalence.

    The two chances are added, since both happen at once only with so many runs that one of them is
    certain.
    """
    shift, bound = abs(estimate), math.log1p(margin)
    misses = sum(1 - _t_power(bound + side, n, spread, level) for side in (-shift, shift))
    differ = _t_power(shift, n, spread, level / 2)
    return np.asarray(np.minimum(1.0, differ + np.maximum(0.0, 1 - misses)))


def _t_power(shift: float, n: IntArray, spread: float, level: float) -> FloatArray:
    """Return the power of the one-sided t-test at ``level`` to detect a shift."""
    if shift <= 0:
        return np.zeros(n.shape)
    if spread == 0:
        return np.ones(n.shape)
    return np.asarray(
        stats.nct.sf(stats.t.ppf(1 - level, n - 1), n - 1, shift * np.sqrt(n) / spread)
    )
