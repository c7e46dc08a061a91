"""Energy of one device over a window, from its counter, with the integral of power beside it.

Both read the same sensor: that they agree shows consistency, not accuracy. What is metered is the
device (a GPU board, or the processor packages), not the machine around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

# A window is refused where the moments of the counter's first and last tick are known so badly
# that the energy between them is uncertain by more than this.
WORST_RESOLUTION = 0.05
# Beyond this the counter and the integral of power contradict each other. Chosen: in 72 cells with
# windows of 3 to 5 s on an H200 they differed by -6.3 to +2.4 % (docs/example), and longer windows
# differ less. On a GH200 the counter is of the whole module, its processor and memory included, and
# the power of the GPU alone (github.com/ml-energy/zeus, pull request 172).
MOST_DISAGREEMENT_PCT = 10.0
# nvmlDeviceGetPowerUsage is a mean over the last second on Ampere and newer.
SHORTEST_INTEGRAL_S = 2.0


@dataclass(frozen=True)
class Reading:
    """Mean power between the first and the last tick of an energy counter in a window.

    Attributes:
        power_w: the counter's difference between the two, over the time between them.
        ticks: times that the counter moved.
    """

    power_w: float
    ticks: int


@dataclass(frozen=True)
class Energy:
    """Energy over a window, J; None, with the reason, where it cannot be told.

    Attributes:
        counter_j: the counter's mean power between its ticks, times the window.
        integral_j: the integral of sampled power; None for a window that is mostly what NVML
            averages over.
        disagreement_pct: of the integral from the counter.
        ticks: of the counter in the window.
        refused: why there is no energy of the counter.
    """

    counter_j: float | None
    integral_j: float | None
    disagreement_pct: float | None
    ticks: int | None
    refused: str | None


def energy_of(rows: Sequence[Row], window_s: float) -> Energy:
    """Energy of one device in a window.

    Args:
        rows: its samples inside the window, in the order of time.
        window_s: length of the window, s.
    """
    read = read_counter(rows)
    power = time_mean(rows, "power_w")
    counter = read.power_w * window_s if isinstance(read, Reading) else None
    integral = None
    if power is not None and window_s >= SHORTEST_INTEGRAL_S:
        integral = power * window_s
    return Energy(
        counter_j=counter,
        integral_j=integral,
        disagreement_pct=100 * (integral - counter) / counter if integral and counter else None,
        ticks=read.ticks if isinstance(read, Reading) else None,
        refused=read if isinstance(read, str) else None,
    )


def read_counter(rows: Sequence[Row]) -> Reading | str:
    """The counter's reading, or why it has none.

    Between two ticks the counter stands still (NVML's on an H200 moves every 100 ms, measured), so
    a difference between arbitrary moments is off by up to a tick at either end: it is taken from
    tick to tick. A tick is seen at the first sample after it, so its moment is known to within the
    time since the sample before.
    """
    points = [(row["monotonic_s"], row["energy_j"]) for row in rows]
    if not points:
        return "no sample of the device fell into the window"
    if any(energy is None for _, energy in points):
        return "the device has no energy counter that can be read"
    ticks: list[tuple[float, float, float]] = []
    for (then, before), (now, energy) in itertools.pairwise(points):
        if energy < before:
            return "the energy counter ran backwards"
        if energy > before:
            ticks.append((now, energy, now - then))
    if len(ticks) < 2:
        return "the window is shorter than two ticks of the energy counter"
    (begin, first, before), (end, last, after) = ticks[0], ticks[-1]
    # Share of that time by which its two ends are uncertain.
    resolution = max(before, after) / (end - begin)
    if resolution > WORST_RESOLUTION:
        return (
            f"the window holds {end - begin:.2f} s of the energy counter, whose ticks are known to "
            f"{1000 * max(before, after):.0f} ms: uncertain by {100 * resolution:.0f} %, more than "
            f"{100 * WORST_RESOLUTION:.0f} %"
        )
    return Reading((last - first) / (end - begin), len(ticks))


def time_mean(rows: Sequence[Row], key: str) -> float | None:
    """Mean over time (trapezoids), not over samples; None where no sample has the value."""
    points = [(row["monotonic_s"], row[key]) for row in rows]
    known = [(t, v) for t, v in points if t is not None and v is not None and math.isfinite(v)]
    if not known:
        return None
    if len(known) == 1:
        return float(known[0][1])
    area = sum((v0 + v1) / 2 * (t1 - t0) for (t0, v0), (t1, v1) in itertools.pairwise(known))
    return float(area / (known[-1][0] - known[0][0]))
