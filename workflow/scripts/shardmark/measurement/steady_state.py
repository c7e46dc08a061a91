"""Find the steady state from step times, and summarise the steps of its window."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

# The two halves of the recent steps count as equally fast if their medians differ by less than
# this. Our choice: where a GPU was the limit, first steps took a quarter to a third longer, and
# settled steps varied within 1 %.
STATIONARY_WITHIN = 0.05
# A third of the window with fewer steps says little.
SHORTEST_THIRD = 10


def is_stationary(step_ms: Sequence[float]) -> bool:
    """Whether the later half of the steps is as fast as the earlier half, by their medians."""
    half = len(step_ms) // 2
    if half < 2:
        return False
    earlier = statistics.median(step_ms[-2 * half : -half])
    later = statistics.median(step_ms[-half:])
    return abs(later - earlier) <= STATIONARY_WITHIN * earlier


def drift_pct(step_ms: Sequence[float]) -> float | None:
    """Return how much slower the last third of the steps is than the first, %; None if too few.

    Each third counts by the mean of its middle half. Single stragglers do not change it, and
    neither do steps that alternate between two speeds, which would make a median jump.
    """
    third = len(step_ms) // 3
    if third < SHORTEST_THIRD:
        return None
    return 100 * (_middle_mean(step_ms[-third:]) / _middle_mean(step_ms[:third]) - 1)


def _middle_mean(values: Sequence[float]) -> float:
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter : len(values) - quarter])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of ascending values; ``share`` in 0 ... 1."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise_steps(step_ms_by_rank: Sequence[Sequence[float]], images: int) -> dict[str, Any]:
    """Return throughput and step times of the slowest rank.

    Args:
        step_ms_by_rank: for each rank the duration of every step of the window, ms.
        images: the global batch.

    Returns:
        The fields of ``metrics.Throughput`` that follow from the step times.
    """
    totals = [sum(steps) for steps in step_ms_by_rank]
    slowest = max(range(len(totals)), key=totals.__getitem__)
    steps = sorted(step_ms_by_rank[slowest])
    window_s = totals[slowest] / 1000
    return {
        "images_per_s": images * len(steps) / window_s,
        "step_ms_mean": totals[slowest] / len(steps),
        "step_ms_p50": percentile(steps, 0.50),
        "step_ms_p90": percentile(steps, 0.90),
        "step_ms_p99": percentile(steps, 0.99),
        "steps": len(steps),
        "window_s": window_s,
        "slowest_rank": slowest,
        "drift_pct": drift_pct(step_ms_by_rank[slowest]),
    }
