"""Runs that are not pairs: the Wilcoxon-Mann-Whitney rank-sum test, exact, with ties too.

Asks of the data that under the hypothesis the runs of both sides might as well have been swapped.
That holds where runs fall on devices as chance has it; it does not where each side has devices of
its own, which ``shardmark.statistics.eligibility`` refuses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np
from scipy import stats

from shardmark.statistics.shift import RESOLUTION_DECIMALS, FloatArray


@functools.lru_cache(maxsize=4096)
def null_distribution(doubled_ranks: tuple[int, ...], chosen: int) -> FloatArray:
    """Probability of each sum of ``chosen`` of the doubled ranks, every choice being as likely.

    Args:
        doubled_ranks: ranks of all runs times two, which makes a rank shared by a tie an integer.
        chosen: runs of one side.

    Returns:
        Shape (sum of doubled_ranks + 1,): the probability of the sums 0, 1, 2, ...
    """
    size = sum(doubled_ranks) + 1
    ways = np.zeros((chosen + 1, size))
    ways[0, 0] = 1.0
    for rank in doubled_ranks:
        # Right to left over the number chosen, so that no run is chosen twice.
        for number in range(chosen, 0, -1):
            ways[number, rank:] += ways[number - 1, : size - rank]
    return np.asarray(ways[chosen] / math.comb(len(doubled_ranks), chosen))


class RankSum:
    """The test of the shift of one group of runs from another.

    Args:
        first: log-values of the runs in question, n of them.
        second: log-values of the runs they are compared to, m of them.

    Raises:
        ValueError: if a side has no value, or one that is not finite.
    """

    def __init__(self, first: Iterable[float], second: Iterable[float]) -> None:
        sides = [np.asarray(list(side), dtype=np.float64) for side in (first, second)]
        if not all(side.size and np.isfinite(side).all() for side in sides):
            raise ValueError(f"needs finite values, got {[side.tolist() for side in sides]}")
        self.first, self.second = (np.round(side, RESOLUTION_DECIMALS) for side in sides)

    @property
    def n(self) -> int:
        """Runs of the smaller side."""
        return int(min(self.first.size, self.second.size))

    @functools.cached_property
    def differences(self) -> FloatArray:
        """Every run of the first side less every run of the second, shape (n * m,)."""
        return np.subtract.outer(self.first, self.second).ravel()

    @functools.cached_property
    def estimate(self) -> float:
        """The median of all differences between a run of either side."""
        return float(np.median(self.differences))

    @property
    def spread(self) -> float:
        """Standard deviation of the difference of two runs, one a side; NaN from one run a side."""
        if self.n < 2:
            return float("nan")
        return math.sqrt(np.var(self.first, ddof=1) + np.var(self.second, ddof=1))

    @functools.cached_property
    def breakpoints(self) -> FloatArray:
        """The distinct differences."""
        return np.unique(np.round(self.differences, RESOLUTION_DECIMALS + 1))

    @property
    def smallest_p(self) -> float:
        """Two over the number of choices: all runs of one side beyond the other's."""
        return min(1.0, 2 / math.comb(self.first.size + self.second.size, self.first.size))

    def smallest_p_at(self, n: int) -> float:
        """The same for n runs a side."""
        return min(1.0, 2 / math.comb(2 * n, n))

    def tails(self, shift: float) -> tuple[float, float]:
        """P(W <= seen) and P(W >= seen), W the rank sum of the first side less ``shift``."""
        pooled = np.round(
            np.concatenate([self.first - shift, self.second]), 1 + RESOLUTION_DECIMALS
        )
        ranks = np.rint(2 * stats.rankdata(pooled)).astype(int)
        seen = int(ranks[: self.first.size].sum())
        chance = null_distribution(tuple(sorted(ranks.tolist())), int(self.first.size))
        # Where every choice has this sum, rounding must not make its probability 1 + 1e-16.
        return min(1.0, float(chance[: seen + 1].sum())), min(1.0, float(chance[seen:].sum()))
