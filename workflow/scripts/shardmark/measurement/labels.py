"""Labels: what explains a cell's figures and excludes none of them. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from shardmark.metrics import Metrics, StepSplit

# Chosen: strategies often differ by less than a tenth, so a tenth of waiting can decide.
LEAST_HOST_WAIT_PCT = 10.0


def labels_of(metrics: Metrics) -> list[str]:
    """The labels of one cell, in words."""
    waits = host_wait_pct(metrics.profile)
    if waits is None or waits < LEAST_HOST_WAIT_PCT:
        return []
    return [f"waits for its host during {waits:.0f} % of a step"]


def host_wait_pct(profile: Sequence[StepSplit]) -> float | None:
    """Share of a step in which the slowest rank's device has nothing to do, percent."""
    slowest = slowest_host(profile)
    return None if slowest is None else 100 * slowest.host_gap_ms / slowest.step_ms


def exposed_communication_pct(profile: Sequence[StepSplit]) -> float | None:
    """Share of a step in which that device communicates and computes nothing, percent."""
    slowest = slowest_host(profile)
    return None if slowest is None else 100 * slowest.exposed_communication_ms / slowest.step_ms


def slowest_host(profile: Sequence[StepSplit]) -> StepSplit | None:
    """The split of the rank that waits longest for its host; None without a profile.

    The others wait for it in their collectives, which looks like communication.
    """
    return max(profile, key=lambda split: split.host_gap_ms, default=None)
