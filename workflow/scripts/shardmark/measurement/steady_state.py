"""From step times to steady state: when the warm-up ends, and what the window's steps say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

# Two halves of the recent steps whose medians differ by less than this are the same speed. Chosen:
# where a GPU was the limit, first steps took a quarter to a third longer, settled ones within 1 %.
STATIONARY_WITHIN = 0.05
# Steps without which a third of the window says little.
SHORTEST_THIRD = 10


def is_stationary(step_ms: Sequence[float]) -> bool:
    """Whether the later half of the steps is as fast as the earlier one, by their medians."""
    half = len(step_ms) // 2
    if half < 2:
        return False
    earlier = statistics.median(step_ms[-2 * half : -half])
    later = statistics.median(step_ms[-half:])
    return abs(later - earlier) <= STATIONARY_WITHIN * earlier


def drift_pct(step_ms: Sequence[float]) -> float | None:
    """How much slower the last third of the steps is than the first, percent; None for few steps.

    Each third by the mean of its middle half: single stragglers do not move it, and steps that
    alternate between two speeds do not either, as they would a median.
    """
    third = len(step_ms) // 3
    if third < SHORTEST_THIRD:
        return None
    return 100 * (_middle_mean(step_ms[-third:]) / _middle_mean(step_ms[:third]) - 1)


def _middle_mean(values: Sequence[float]) -> float:
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter : len(values) - quarter])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values; ``share`` in 0 ... 1."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise_steps(step_ms_by_rank: Sequence[Sequence[float]], images: int) -> dict[str, Any]:
    """Throughput and step times of the slowest rank.

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
