"""Find the steady state from step times, and summarise the steps of its window."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

# The two halves of the steps so far count as equally fast if their medians differ by less than
# this. Our choice: where a GPU was the limit, first steps took a quarter to a third longer, and
# settled steps varied within 1 %.
MOST_MEDIAN_DIFFERENCE = 0.05
# Batch means vary nearly independently where single steps do not (a slow host slows many in a row).
BATCHES = 20
# 97.5 % quantile of Student's t with 19 degrees of freedom.
T_QUANTILE = 2.0930


def is_stationary(step_ms: Sequence[float]) -> bool:
    """Whether the later half of the steps is as fast as the earlier half, by their medians."""
    half = len(step_ms) // 2
    if half < 2:
        return False
    earlier = statistics.median(step_ms[-2 * half : -half])
    later = statistics.median(step_ms[-half:])
    return abs(later - earlier) <= MOST_MEDIAN_DIFFERENCE * earlier


def batch_means(step_ms: Sequence[float]) -> list[float] | None:
    """Return the means of 20 consecutive batches of steps; None if there are fewer steps."""
    count = len(step_ms)
    if count < BATCHES:
        return None
    bounds = [count * batch // BATCHES for batch in range(BATCHES + 1)]
    return [statistics.fmean(step_ms[begin:end]) for begin, end in itertools.pairwise(bounds)]


def half_width_pct(step_ms: Sequence[float]) -> float | None:
    """Return the 95 % half-width of the mean step, % of the mean; None if there are too few steps.

    It comes from the 20 batch means (Student's t with 19 degrees of freedom).
    """
    means = batch_means(step_ms)
    if means is None:
        return None
    error = statistics.stdev(means) / math.sqrt(BATCHES)
    return 100 * T_QUANTILE * error / statistics.fmean(means)


class Drift(NamedTuple):
    """How much slower the last third of a window is than its first, and the standard error, %."""

    pct: float | None
    error_pct: float | None


def measure_drift(step_ms: Sequence[float]) -> Drift:
    """Return the trend of the steps; nulls if there are too few.

    It is the rise of a straight line through the batch means, from the middle of the first third of
    the window to the middle of the last third. Single stragglers and steps that alternate between
    two speeds raise the standard error, not the trend.
    """
    means = batch_means(step_ms)
    if means is None:
        return Drift(None, None)
    places = range(BATCHES)
    slope, intercept = statistics.linear_regression(places, means)
    squares = sum(
        (mean - intercept - slope * place) ** 2 for place, mean in zip(places, means, strict=True)
    )
    place_squares = sum((place - (BATCHES - 1) / 2) ** 2 for place in places)
    error = math.sqrt(squares / (BATCHES - 2) / place_squares)
    pct_per_slope = 100 * (2 / 3 * BATCHES) / statistics.fmean(means)
    return Drift(pct_per_slope * slope, pct_per_slope * error)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of ascending values; ``share`` in 0 ... 1."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise_steps(step_ms_by_rank: Sequence[Sequence[float]], items: int) -> dict[str, Any]:
    """Return throughput and step times of the slowest rank.

    Args:
        step_ms_by_rank: for each rank the duration of every step of the window, ms.
        items: what one step trains on, over all replicas.

    Returns:
        The fields of ``metrics.Throughput`` that follow from the step times.
    """
    totals = [sum(steps) for steps in step_ms_by_rank]
    slowest = max(range(len(totals)), key=totals.__getitem__)
    steps = sorted(step_ms_by_rank[slowest])
    window_s = totals[slowest] / 1000
    trend = measure_drift(step_ms_by_rank[slowest])
    return {
        "items_per_s": items * len(steps) / window_s,
        "step_ms_mean": totals[slowest] / len(steps),
        "step_ms_p50": percentile(steps, 0.50),
        "step_ms_p90": percentile(steps, 0.90),
        "step_ms_p99": percentile(steps, 0.99),
        "steps": len(steps),
        "window_s": window_s,
        "slowest_rank": slowest,
        "half_width_pct": half_width_pct(step_ms_by_rank[slowest]),
        "drift_pct": trend.pct,
        "drift_error_pct": trend.error_pct,
    }
