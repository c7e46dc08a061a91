"""Pairs: Wilcoxon's signed-rank test, exact, whatever ties and zeros there are.

The signed-rank test and not the sign-flip of the mean: the Hodges-Lehmann estimate is its own (the
median of the Walsh averages; Hodges & Lehmann 1963), its interval are two of those averages, and
one stray run moves neither far. Both tests ask the same of the data, that under the hypothesis
each difference might as well have had the other sign, and both have the same smallest p, 2 / 2^n.

Zeros are ranked with the rest and then flip nothing (Pratt 1959); ties share their mean rank. The
null distribution is of the ranks as they are, so it is exact with ties, too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
from scipy import stats

from shardmark.statistics.shift import RESOLUTION_DECIMALS, FloatArray


def walsh_averages(differences: FloatArray) -> FloatArray:
    """Means of all pairs of differences, each with itself too.

    Args:
        differences: shape (..., n).

    Returns:
        Shape (..., n (n + 1) / 2), in no order.
    """
    first, second = np.triu_indices(differences.shape[-1])
    return (differences[..., first] + differences[..., second]) / 2


@functools.lru_cache(maxsize=4096)
def null_distribution(doubled_ranks: tuple[int, ...]) -> FloatArray:
    """Probability of each sum of doubled ranks, each counted or not with probability 1/2.

    Args:
        doubled_ranks: ranks times two, which makes a rank shared by a tie an integer.

    Returns:
        Shape (sum of doubled_ranks + 1,): the probability of the sums 0, 1, 2, ...
    """
    chance = np.zeros(sum(doubled_ranks) + 1)
    chance[0] = 1.0
    for rank in doubled_ranks:
        chance[rank:] = (chance[rank:] + chance[: chance.size - rank]) / 2
        chance[:rank] /= 2
    return chance


class SignedRank:
    """The test of the shift of paired differences.

    Args:
        differences: one log-ratio a pair, n of them.

    Raises:
        ValueError: without a difference, or with one that is not finite.
    """

    def __init__(self, differences: Iterable[float]) -> None:
        values = np.asarray(list(differences), dtype=np.float64)
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"needs finite differences, got {values.tolist()}")
        self.differences = np.round(values, RESOLUTION_DECIMALS)

    @property
    def n(self) -> int:
        """Pairs."""
        return int(self.differences.size)

    @functools.cached_property
    def estimate(self) -> float:
        """The median of the Walsh averages."""
        return float(np.median(walsh_averages(self.differences)))

    @property
    def spread(self) -> float:
        """Standard deviation of the differences; NaN from one."""
        return float(np.std(self.differences, ddof=1)) if self.n > 1 else float("nan")

    @functools.cached_property
    def breakpoints(self) -> FloatArray:
        """The distinct Walsh averages."""
        return np.unique(np.round(walsh_averages(self.differences), RESOLUTION_DECIMALS + 1))

    @property
    def smallest_p(self) -> float:
        """2 / 2^n: all differences on one side."""
        return self.smallest_p_at(self.n)

    def smallest_p_at(self, n: int) -> float:
        """2 / 2^n, and 1 for one pair."""
        return 2.0 ** (1 - n)

    def tails(self, shift: float) -> tuple[float, float]:
        """P(W+ <= seen) and P(W+ >= seen), W+ the rank sum of differences above ``shift``."""
        moved = np.round(self.differences - shift, RESOLUTION_DECIMALS + 1)
        ranks = np.rint(2 * stats.rankdata(np.abs(moved))).astype(int)
        seen = int(ranks[moved > 0].sum())
        chance = null_distribution(tuple(sorted(ranks[moved != 0].tolist())))
        return float(chance[: seen + 1].sum()), float(chance[seen:].sum())
