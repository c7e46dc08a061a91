"""Compare two groups of runs that form no pairs, within the devices that both ran on.

GPUs of one model differ by several per cent, so only runs on the same devices say something about
the strategies. These tests are made within each set of devices, and the largest p counts:

- the labels of the runs are permuted, which is exact if the two sides scatter alike (from six runs
  on, see ``family``);
- Welch's t on the log-values, which allows each side a spread of its own and assumes normal
  log-values;
- Student's t with one spread for both, which includes how much the difference of the two sides
  varies between devices. A single run on a set of devices contributes to the spread here, but not
  in Welch's t.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from shardmark.statistics.sign_flips import DECIMALS, FloatArray
from shardmark.statistics.t_tests import p_value, quantile

# Up to here all permutations are counted; beyond, as many as these are drawn from a fixed seed.
MOST = 20_000
SEED = 16
_ROUNDING = 1e-9

Sides = Sequence[tuple[FloatArray, FloatArray]]


@functools.lru_cache(maxsize=16)
def labellings(sizes: tuple[tuple[int, int], ...]) -> FloatArray:
    """Return the ways to choose the runs of the first side within each set of devices.

    Args:
        sizes: runs of the first and of the second side, one pair per set of devices.

    Returns:
        1 for the first side and 0 for the second, shape (ways, runs). Runs are in the order of the
        sets, those of the first side first. The first way is the one that was measured.
    """
    if math.prod(math.comb(first + second, first) for first, second in sizes) <= MOST:
        choices = [itertools.combinations(range(sum(size)), size[0]) for size in sizes]
        blocks = [_chosen(list(ways), sum(size)) for ways, size in zip(choices, sizes, strict=True)]
        rows = itertools.product(*blocks)
        return np.array([np.concatenate(row) for row in rows])
    generator = np.random.default_rng(SEED)
    drawn = []
    for first, second in sizes:
        places = generator.random((MOST, first + second)).argsort(axis=1)
        # The first way is the measured labelling, which is not drawn.
        places[0] = np.arange(first + second)
        drawn.append((places < first).astype(float))
    return np.hstack(drawn)


def _chosen(ways: Sequence[tuple[int, ...]], size: int) -> FloatArray:
    rows = np.zeros((len(ways), size))
    rows[np.arange(len(ways))[:, None], np.array(ways)] = 1
    return rows


class Stratified:
    """The comparison of two groups of runs.

    Args:
        first: log-values of the runs in question, by the devices they ran on.
        second: log-values of the runs that they are compared with, likewise.

    Raises:
        ValueError: if they have no devices in common.
    """

    def __init__(
        self, first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
    ) -> None:
        shared = [devices for devices in first if devices in second]
        if not shared:
            raise ValueError("the two sides have no devices in common")
        self.sides: Sides = [
            (np.array(first[name], dtype=float), np.array(second[name], dtype=float))
            for name in shared
        ]
        self.sizes = tuple((len(one), len(other)) for one, other in self.sides)
        self.n = sum(one for one, _ in self.sizes)
        self.n_baseline = sum(other for _, other in self.sizes)
        sizes = np.array(self.sizes, dtype=float)
        weights = sizes.prod(axis=1) / sizes.sum(axis=1)
        self.weights = weights / weights.sum()
        means = np.array([one.mean() - other.mean() for one, other in self.sides])
        self.estimate = float(self.weights @ means)
        self.errors = list(self._errors(sizes))

    def _errors(self, sizes: FloatArray) -> Iterator[tuple[float, float]]:
        """Yield standard errors of the estimate, with their degrees of freedom."""
        squares = np.array(
            [[((side - side.mean()) ** 2).sum() for side in sides] for sides in self.sides]
        )
        own = (sizes - 1).sum(axis=0)
        shares = (self.weights[:, None] ** 2 / sizes).sum(axis=0)
        if own.min() > 0:
            parts = shares * squares.sum(axis=0) / own
            # Welch & Satterthwaite.
            known = parts.any()
            degrees = parts.sum() ** 2 / (parts**2 / own).sum() if known else own.sum()
            yield math.sqrt(parts.sum()), float(degrees)
        degrees = float(sizes.sum() - len(sizes) - 1)
        if degrees >= 1:
            middle = [one.mean() - other.mean() - self.estimate for one, other in self.sides]
            between = (sizes.prod(axis=1) / sizes.sum(axis=1) * np.square(middle)).sum()
            spread = (squares.sum() + between) / degrees
            yield math.sqrt(spread * shares.sum()), degrees

    @property
    def standard_error(self) -> float:
        """The larger of the standard errors; NaN if there are too few runs for any."""
        return max((error for error, _ in self.errors), default=math.nan)

    def half_width(self, comparisons: int) -> float:
        """Return the half-width of the wider 95 % interval, corrected for this many comparisons."""
        return max(
            float(quantile(np.asarray(degrees), comparisons)) * error
            for error, degrees in self.errors
        )

    def permutation_p(self, sign: float = 1.0, shift: float = 0.0, *, two_sided: bool) -> float:
        """Return the share of labellings that are at least as far from the hypothesis as the runs.

        Args:
            sign: -1 to ask for a shift below the hypothesis.
            shift: the log-ratio of the hypothesis.
            two_sided: whether both directions count.
        """
        parts = []
        for one, other in self.sides:
            values = sign * np.concatenate([one - shift, other])
            parts.append(np.round(values - values.mean(), DECIMALS))
        distances = labellings(self.sizes) @ np.concatenate(parts)
        distances = np.abs(distances) if two_sided else distances
        return float((distances >= distances[0] - _ROUNDING * abs(distances[0])).mean())

    def t_p(self, sign: float = 1.0, shift: float = 0.0, *, two_sided: bool) -> float:
        """Return the larger p of the t-tests."""
        distance = sign * (self.estimate - shift)
        return max(
            float(
                p_value(
                    np.asarray(distance / max(error, 1e-12)),
                    np.asarray(degrees),
                    two_sided=two_sided,
                )
            )
            for error, degrees in self.errors
        )
