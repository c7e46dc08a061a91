"""Tier 2: Student's paired t on log-ratios, and Holm's correction for several comparisons.

This tier assumes normal log-ratios, which three to five runs cannot confirm. All functions take
arrays of shape (..., blocks, strategies), as in ``sign_flips``.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from shardmark.statistics.sign_flips import FloatArray

# Equal log-ratios have no spread; this keeps their t finite.
_LEAST_ERROR = 1e-12


def p_value(t: FloatArray, degrees: FloatArray, *, two_sided: bool = True) -> FloatArray:
    """Return the p of t, for a shift to either side, or only for one above zero."""
    return np.asarray(2 * stats.t.sf(np.abs(t), degrees) if two_sided else stats.t.sf(t, degrees))


def paired_p(differences: FloatArray, *, two_sided: bool = True) -> FloatArray:
    """Return the p of each strategy, not corrected, shape (..., strategies)."""
    count = (~np.isnan(differences)).sum(axis=-2)
    t = np.nanmean(differences, axis=-2) / np.maximum(standard_errors(differences), _LEAST_ERROR)
    return p_value(t, count - 1, two_sided=two_sided)


def standard_errors(differences: FloatArray) -> FloatArray:
    """Return standard errors of mean log-ratios, shape (..., strategies); NaN for one block."""
    count = (~np.isnan(differences)).sum(axis=-2)
    variance = np.nansum((differences - np.nanmean(differences, axis=-2, keepdims=True)) ** 2, -2)
    return np.asarray(np.sqrt(variance / np.where(count > 1, count - 1, np.nan) / count))


def quantile(degrees: FloatArray, comparisons: int, level: float = 0.95) -> FloatArray:
    """Return the quantile of |t| for intervals that hold jointly with ``level`` (Bonferroni)."""
    return np.asarray(stats.t.ppf(1 - (1 - level) / (2 * comparisons), degrees))


def holm(p: FloatArray, comparisons: int | None = None) -> FloatArray:
    """Return Holm's adjusted p-values (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        p: shape (..., m).
        comparisons: size of the family, if it is larger than m.

    Returns:
        Shape (..., m), in the order given.
    """
    order = np.argsort(p, axis=-1, kind="stable")
    steps = (comparisons or p.shape[-1]) - np.arange(p.shape[-1])
    stepwise = np.minimum(1.0, np.take_along_axis(p, order, axis=-1) * steps)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(stepwise, axis=-1), axis=-1)
    return adjusted
