"""Several comparisons at once: Holm's correction, and what a size of sample can show under it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from shardmark.statistics.shift import FloatArray


def holm(p: Sequence[float]) -> FloatArray:
    """Holm's adjusted p-values (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    They hold the chance of one false claim or more in the family, whatever the dependence.

    Args:
        p: one p a comparison, shape (m,).

    Returns:
        The adjusted p-values, shape (m,), in the order given.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.arange(values.size, 0, -1) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def pairs_for_significance(comparisons: int, alpha: float = 0.05) -> int:
    """The least number of pairs at which each of so many comparisons can be significant.

    6 pairs for one comparison at 0.05, 9 for seven.
    """
    return next(n for n in itertools.count(1) if comparisons * 2.0 ** (1 - n) <= alpha)
