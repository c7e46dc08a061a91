"""From a sampler's rows to what each device did in the steady window."""

from __future__ import annotations

import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmark.metrics import Device, Efficiency

# The counter of an H200 moves every 100 ms; a window of fewer than ten ticks is known to no
# better than a tenth, so no energy is reported for it.
SHORTEST_ENERGY_WINDOW_S = 1.0
# nvml.h, nvmlClocksEventReasons: those that slow a device below what was asked of it. Idle and
# the clocks that an application asks for are not among them.
THROTTLE_REASONS = {
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000020: "sw_thermal_slowdown",
    0x0000000000000040: "hw_thermal_slowdown",
    0x0000000000000080: "hw_power_brake_slowdown",
}

Row = dict[str, float | None]


def read_samples(path: Path) -> dict[str, list[Row]]:
    """The rows of each device, in the order of time; a row cut off by the end is left out."""
    by_device: dict[str, list[Row]] = defaultdict(list)
    with path.open(newline="") as file:
        for raw in csv.DictReader(file):
            if None in raw.values():
                continue
            device = raw.pop("device")
            by_device[device].append({key: _number(value) for key, value in raw.items()})
    return dict(by_device)


def summarise_device(
    rows: Sequence[Row], begin_s: float, end_s: float, known: Mapping[str, Any]
) -> Device:
    """What one device did between two times of the monotonic clock.

    Args:
        rows: its samples.
        begin_s: begin of the steady window.
        end_s: its end.
        known: fields of Device that the samples do not tell.
    """
    inside = [row for row in rows if begin_s <= (row["monotonic_s"] or 0.0) <= end_s]
    window_s = end_s - begin_s
    counter_w = _counter_power_w(inside)
    enough = window_s >= SHORTEST_ENERGY_WINDOW_S
    power_w = _mean(inside, "power_w")
    if power_w is None:
        power_w = counter_w
    integral = _mean(inside, "power_w")
    masks = [int(row["throttle_mask"]) for row in inside if row["throttle_mask"] is not None]
    seen = sorted(
        name for bit, name in THROTTLE_REASONS.items() if any(mask & bit for mask in masks)
    )
    return Device(
        **known,
        utilization_pct=_mean(inside, "utilization_pct"),
        memory_used_peak_bytes=_largest_int(inside, "memory_used_bytes"),
        power_mean_w=power_w if enough else None,
        energy_counter_j=counter_w * window_s if enough and counter_w is not None else None,
        energy_integral_j=integral * window_s if enough and integral is not None else None,
        sm_clock_mean_mhz=_mean(inside, "sm_clock_mhz"),
        temperature_max_c=_largest(inside, "temperature_c"),
        throttle_reasons=seen if masks else None,
        samples=len(inside),
    )


def summarise_cell(devices: Sequence[Device], images: int) -> Efficiency:
    """Figures of the whole cell; null as soon as one device does not know its part.

    Args:
        devices: all devices of the cell.
        images: images trained on in the steady window, over all devices.
    """
    energies = [device.energy_counter_j for device in devices]
    powers = [device.power_mean_w for device in devices]
    shares = [device.utilization_pct for device in devices]
    peaks = [device.memory_used_peak_bytes for device in devices]
    energy = _sum(energies)
    load = _sum(shares)
    known = [peak for peak in peaks if peak is not None]
    return Efficiency(
        energy_per_image_j=energy / images if energy is not None and images else None,
        power_w=_sum(powers),
        utilization_pct=load / len(shares) if load is not None else None,
        memory_peak_bytes=max(known) if known and len(known) == len(peaks) else None,
    )


def _counter_power_w(rows: Sequence[Row]) -> float | None:
    """Mean power between the first and the last tick of the energy counter, W.

    Differences are taken from tick to tick, since between two ticks the counter stands still. A
    counter that runs backwards has wrapped, and tells nothing.
    """
    ticks: list[tuple[float, float]] = []
    previous = None
    for row in rows:
        energy, moment = row["energy_j"], row["monotonic_s"]
        if energy is None or moment is None:
            return None
        if previous is not None and energy < previous:
            return None
        if previous is not None and energy > previous:
            ticks.append((moment, energy))
        previous = energy
    if len(ticks) < 2:
        return None
    return (ticks[-1][1] - ticks[0][1]) / (ticks[-1][0] - ticks[0][0])


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Mean over time (trapezoids), not over samples; None where no sample has the value."""
    points = [(row["monotonic_s"], row[key]) for row in rows]
    known = [(t, v) for t, v in points if t is not None and v is not None and math.isfinite(v)]
    if not known:
        return None
    if len(known) == 1:
        return known[0][1]
    area = sum((v0 + v1) / 2 * (t1 - t0) for (t0, v0), (t1, v1) in itertools.pairwise(known))
    return area / (known[-1][0] - known[0][0])


def _largest(rows: Sequence[Row], key: str) -> float | None:
    return max((value for row in rows if (value := row[key]) is not None), default=None)


def _largest_int(rows: Sequence[Row], key: str) -> int | None:
    value = _largest(rows, key)
    return None if value is None else int(value)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _number(text: str) -> float | None:
    return float(text) if text else None
