"""Energy of one device over a window, from its counter, checked by the integral of its power.

Both use the same sensor, so their agreement shows consistency, not accuracy. The sensor covers the
device (a GPU board, or the processor packages), not the rest of the machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

# A window is refused if the times of the counter's first and last tick are so uncertain that the
# energy between them is uncertain by more than this share.
WORST_RESOLUTION = 0.05
# Beyond this, the counter and the integral of power contradict each other. Our choice: in 72 cells
# with windows of 3 to 5 s on an H200 they differed by -6.3 to +2.4 % (docs/results.md), and longer
# windows differ less. On a GH200 the counter covers the whole module including processor and
# memory, but the power only the GPU (github.com/ml-energy/zeus, pull request 172).
MOST_DISAGREEMENT_PCT = 10.0
# nvmlDeviceGetPowerUsage returns a mean over the last second on Ampere and newer.
SHORTEST_INTEGRAL_S = 2.0


@dataclass(frozen=True)
class Reading:
    """Mean power between the first and the last tick of an energy counter in a window.

    Attributes:
        power_w: the counter's increase between the two ticks, divided by the time between them.
        ticks: how often the counter moved.
    """

    power_w: float
    ticks: int


@dataclass(frozen=True)
class Energy:
    """Energy over a window, J; None, with the reason, if it is unknown.

    Attributes:
        counter_j: the counter's mean power between its ticks, times the window's length.
        integral_j: the integral of sampled power; None for a window not much longer than the time
            over which NVML averages.
        disagreement_pct: difference of the integral from the counter.
        ticks: ticks of the counter in the window.
        refused: why there is no energy from the counter.
    """

    counter_j: float | None
    integral_j: float | None
    disagreement_pct: float | None
    ticks: int | None
    refused: str | None


def window_energy(rows: Sequence[Row], window_s: float) -> Energy:
    """Return the energy of one device in a window.

    Args:
        rows: its samples inside the window, in the order of time.
        window_s: length of the window, s.
    """
    reading = read_counter(rows)
    power = time_mean(rows, "power_w")
    counter = reading.power_w * window_s if isinstance(reading, Reading) else None
    integral = None
    if power is not None and window_s >= SHORTEST_INTEGRAL_S:
        integral = power * window_s
    return Energy(
        counter_j=counter,
        integral_j=integral,
        disagreement_pct=100 * (integral - counter) / counter if integral and counter else None,
        ticks=reading.ticks if isinstance(reading, Reading) else None,
        refused=reading if isinstance(reading, str) else None,
    )


def read_counter(rows: Sequence[Row]) -> Reading | str:
    """Return the counter's reading, or why there is none.

    The counter only moves in ticks (every 100 ms for NVML on an H200, measured), so a difference
    between arbitrary moments is off by up to a tick at either end. Therefore this measures from
    tick to tick. A tick shows at the first sample after it, so its time is uncertain by the time
    since the previous sample.
    """
    points = [(row["monotonic_s"], row["energy_j"]) for row in rows]
    if not points:
        return "no sample of the device fell into the window"
    if any(energy is None for _, energy in points):
        return "the device has no energy counter that can be read"
    ticks: list[tuple[float, float, float]] = []
    for (previous_s, before), (now_s, energy) in itertools.pairwise(points):
        if energy < before:
            return "the energy counter ran backwards"
        if energy > before:
            ticks.append((now_s, energy, now_s - previous_s))
    if len(ticks) < 2:
        return "the window is shorter than two ticks of the energy counter"
    (begin, first, before), (end, last, after) = ticks[0], ticks[-1]
    # Uncertainty of the two ends, as a share of the time between them.
    resolution = max(before, after) / (end - begin)
    if resolution > WORST_RESOLUTION:
        return (
            f"the window holds {end - begin:.2f} s of the energy counter, whose ticks are known to "
            f"{1000 * max(before, after):.0f} ms: uncertain by {100 * resolution:.0f} %, more than "
            f"{100 * WORST_RESOLUTION:.0f} %"
        )
    return Reading((last - first) / (end - begin), len(ticks))


def time_mean(rows: Sequence[Row], key: str) -> float | None:
    """Return the mean over time (trapezoids), not over samples; None if no sample has a value."""
    points = [(row["monotonic_s"], row[key]) for row in rows]
    known = [
        (time_s, value)
        for time_s, value in points
        if time_s is not None and value is not None and math.isfinite(value)
    ]
    if not known:
        return None
    if len(known) == 1:
        return float(known[0][1])
    area = sum((v0 + v1) / 2 * (t1 - t0) for (t0, v0), (t1, v1) in itertools.pairwise(known))
    return float(area / (known[-1][0] - known[0][0]))
