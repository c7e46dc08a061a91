"""Tier 1: the joint sign-flip test with step-down max-t (Westfall & Young 1993).

If two strategies are equally fast, each log-ratio might as well have had the other sign. All
log-ratios of one block are flipped together, which preserves the correlation of the strategies
within a block. The largest |t| over the strategies then shows what chance alone can produce in the
whole family, so one test corrects for all of its comparisons and loses little power.

A strategy that lacks a block has NaN there. Its t uses only its own blocks. The flips are shared,
so the p-values stay exact, unless blocks are missing because of the sign of their log-ratio.

All functions take arrays of shape (..., blocks, strategies), so that simulations run the same code.
"""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

# Up to here all 2^n flips are counted; beyond, as many as these are drawn from a fixed seed.
MOST_EXACT = 14
DRAWN = 20_000
SEED = 14
# Log-values closer than this are equal: far less than a measurement can tell apart, far more than
# subtraction in float64 leaves behind.
DECIMALS = 12
# Equal log-ratios have no spread; this keeps their t finite, and larger than any measured one.
_LEAST_REMAINDER = 1e-12
# Relative: two statistics that differ by less are equal.
_ROUNDING = 1e-9


@functools.lru_cache(maxsize=64)
def flips(blocks: int) -> FloatArray:
    """Return the signs of the blocks, shape (flips, blocks); the first row flips nothing.

    Each row also represents its opposite, whose t has the opposite sign.
    """
    if blocks <= MOST_EXACT:
        others = np.arange(2 ** (blocks - 1))[:, None] >> np.arange(blocks - 1) & 1
        return np.hstack([np.ones((len(others), 1)), 1.0 - 2.0 * others])
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], (DRAWN, blocks))
    signs[0] = 1
    return signs


def adjusted_p(
    differences: FloatArray, *, two_sided: bool = True, corrected: bool = True
) -> FloatArray:
    """Return the p of each strategy.

    Args:
        differences: log-ratios less the shift of the hypothesis, shape (..., blocks, strategies).
        two_sided: whether shifts to both sides count; else only those above zero.
        corrected: whether to correct for all comparisons together, by step-down.

    Returns:
        Shape (..., strategies).
    """
    t_of_flips = _t_of_flips(differences)
    t_of_flips = (
        np.abs(t_of_flips) if two_sided else np.concatenate([t_of_flips, -t_of_flips], axis=-2)
    )
    # A copy: no flip is the first of the flips.
    observed = t_of_flips[..., :1, :].copy()
    if not corrected:
        return _share_at_least(t_of_flips, observed)
    order = np.argsort(-observed, axis=-1)
    t_of_flips = np.take_along_axis(t_of_flips, order, axis=-1)
    # The largest over the strategy itself and all that step down later.
    largest = np.maximum.accumulate(t_of_flips[..., ::-1], axis=-1)[..., ::-1]
    stepwise = _share_at_least(largest, np.take_along_axis(observed, order, axis=-1))
    p = np.empty_like(stepwise)
    monotone = np.maximum.accumulate(stepwise, axis=-1)
    np.put_along_axis(p, order[..., 0, :], monotone, axis=-1)
    return p


def half_widths(
    differences: FloatArray, level: float = 0.95, *, corrected: bool = True
) -> FloatArray:
    """Return half-widths of intervals that cover all means together with probability ``level``.

    They use the quantile of the largest |t| over the flips of the centred log-ratios.

    Args:
        differences: log-ratios, shape (..., blocks, strategies).
        level: the confidence.
        corrected: whether to correct for all strategies together.

    Returns:
        Shape (..., strategies).
    """
    count = _counts(differences)
    mean, sd = np.nanmean(differences, axis=-2), np.nanstd(differences, axis=-2, ddof=1)
    centred = np.round(differences - mean[..., None, :], DECIMALS)
    t_of_flips = np.abs(_t_of_flips(centred))
    if corrected:
        t_of_flips = t_of_flips.max(axis=-1, keepdims=True)
    place = math.ceil(level * t_of_flips.shape[-2]) - 1
    quantile = np.partition(t_of_flips, place, axis=-2)[..., place, :]
    return np.asarray(quantile * sd / np.sqrt(count))


def _t_of_flips(differences: FloatArray) -> FloatArray:
    """Return Student's t of every flip, shape (..., flips, strategies)."""
    known = np.nan_to_num(differences)
    count = _counts(differences)[..., None, :]
    squares = (known**2).sum(axis=-2)[..., None, :]
    sums = flips(differences.shape[-2]) @ known
    # A flip leaves the sum of squares as it is, so t follows from the sum alone.
    with np.errstate(invalid="ignore"):
        share = np.where(squares > 0, sums / np.sqrt(count * squares), 0.0)
    return np.asarray(share * np.sqrt((count - 1) / np.maximum(1 - share**2, _LEAST_REMAINDER)))


def _counts(differences: FloatArray) -> npt.NDArray[np.int_]:
    return np.asarray((~np.isnan(differences)).sum(axis=-2))


def _share_at_least(t_of_flips: FloatArray, observed: FloatArray) -> FloatArray:
    return np.asarray((t_of_flips >= observed - _ROUNDING * np.abs(observed)).mean(axis=-2))
