"""Summarise a sampler's rows: what each device did in the steady window."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmark.measurement.energy import (
    MOST_DISAGREEMENT_PCT,
    Reading,
    Row,
    read_counter,
    time_mean,
    window_energy,
)
from shardmark.metrics import Device, Efficiency

# From nvml.h, nvmlClocksEventReasons: the reasons that slow a device below the requested clocks.
# Idle and clocks set by an application are not among them.
THROTTLE_REASONS = {
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000020: "sw_thermal_slowdown",
    0x0000000000000040: "hw_thermal_slowdown",
    0x0000000000000080: "hw_power_brake_slowdown",
}
# Throttling counts as unknown if fewer of the window's samples than this report the reasons. Our
# choice.
LEAST_KNOWN = 0.9
_TEXTS = ("device", "processes")


def read_samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of each device, in the order of time; skip an incomplete last row."""
    by_device: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with path.open(newline="") as file:
        for raw in csv.DictReader(file):
            if None in raw.values():
                continue
            row = {
                key: (value or None) if key in _TEXTS else float(value) if value else None
                for key, value in raw.items()
            }
            by_device[raw["device"]].append(row)
    return dict(by_device)


def summarise_device(
    rows: Sequence[Row],
    begin_s: float,
    end_s: float,
    known: Mapping[str, Any],
    own_processes: Iterable[int] = (),
) -> Device:
    """Return what one device did between two times on the monotonic clock.

    Args:
        rows: its samples.
        begin_s: begin of the steady window.
        end_s: its end.
        known: fields of Device that do not come from the samples.
        own_processes: process ids of the cell's ranks on the device.
    """
    inside = [row for row in rows if begin_s <= row["monotonic_s"] <= end_s]
    before = [row for row in rows if row.get("idle")]
    window_s = end_s - begin_s
    energy = window_energy(inside, window_s)
    energy_j = energy.integral_j if energy.counter_j is None else energy.counter_j
    idle_w = _idle_power_w(before)
    net_j = None
    if energy.counter_j is not None and idle_w is not None:
        net_j = energy.counter_j - idle_w * window_s
        # More power when idle than under load: one of the two must be wrong.
        net_j = net_j if net_j >= 0 else None
    shares = _throttled_pct(inside)
    return Device(
        **known,
        utilization_pct=time_mean(inside, "utilization_pct"),
        memory_used_peak_bytes=_to_int(_largest(inside, "memory_used_bytes")),
        power_mean_w=energy_j / window_s if energy_j is not None else None,
        power_limit_w=_smallest(inside, "power_limit_w"),
        energy_counter_j=energy.counter_j,
        energy_integral_j=energy.integral_j,
        energy_disagreement_pct=energy.disagreement_pct,
        energy_net_j=net_j,
        energy_ticks=energy.ticks,
        energy_refused=energy.refused,
        idle_power_w=idle_w,
        idle_memory_bytes=_to_int(_largest(before, "memory_used_bytes")),
        idle_utilization_pct=time_mean(before, "utilization_pct"),
        sm_clock_mean_mhz=time_mean(inside, "sm_clock_mhz"),
        sm_clock_min_mhz=_smallest(inside, "sm_clock_mhz"),
        temperature_max_c=_largest(inside, "temperature_c"),
        throttle_reasons=sorted(shares) if shares is not None else None,
        throttled_pct=shares,
        ecc_errors=_to_int(_increase(rows, "ecc_errors")),
        foreign_processes=foreign_processes([*before, *inside], set(own_processes)),
        samples=len(inside),
        longest_gap_pct=100 * _longest_gap_s(inside, begin_s, end_s) / window_s,
    )


def summarise_cell(devices: Sequence[Device], items: int, items_per_epoch: int) -> Efficiency:
    """Return the figures of the whole cell; null if any device lacks its value.

    Args:
        devices: all devices of the cell, each once.
        items: images or tokens trained on in the steady window, over all devices.
        items_per_epoch: those of one pass over the training data.
    """
    shares = [device.utilization_pct for device in devices]
    peaks = [device.memory_used_peak_bytes for device in devices]
    gross = _sum([device.energy_counter_j for device in devices])
    net = _sum([device.energy_net_j for device in devices])
    integral = _sum([device.energy_integral_j for device in devices])
    disagreement = 100 * (integral - gross) / gross if integral and gross else None
    utilization = _sum(shares)
    known = [peak for peak in peaks if peak is not None]
    refused = next((one.energy_refused for one in devices if one.energy_refused), None)
    power = _sum([device.power_mean_w for device in devices])
    if contradiction := describe_contradicted_energy(devices):
        refused, gross, net, power = contradiction, None, None, None
    energy_per_item_j = gross / items if gross is not None and items else None
    return Efficiency(
        energy_per_item_j=energy_per_item_j,
        energy_per_epoch_j=energy_per_item_j * items_per_epoch
        if energy_per_item_j is not None
        else None,
        energy_net_per_item_j=net / items if net is not None and items else None,
        energy_disagreement_pct=disagreement,
        energy_refused=refused,
        power_w=power,
        utilization_pct=utilization / len(shares) if utilization is not None else None,
        memory_peak_bytes=max(known) if known and len(known) == len(peaks) else None,
    )


def describe_contradicted_energy(devices: Sequence[Device]) -> str:
    """Describe the largest contradiction of energy counter and power integral; empty if none."""
    contradicting = [
        (abs(device.energy_disagreement_pct), device)
        for device in devices
        if device.energy_disagreement_pct is not None
        and abs(device.energy_disagreement_pct) > MOST_DISAGREEMENT_PCT
    ]
    if not contradicting:
        return ""
    most, device = max(contradicting, key=lambda one: one[0])
    return (
        f"energy counter and power of {device.title} contradict each other: the integral of power "
        f"is off by {most:.0f} %, more than {MOST_DISAGREEMENT_PCT:g} %"
    )


def foreign_processes(rows: Sequence[Row], own: set[int]) -> int | None:
    """Return the largest number of foreign processes on a device at once; None if unknown.

    Before the cell begins, every process is foreign. If NVML's process ids are from another
    namespace (a container), the cell's own processes are subtracted by number. A list with fewer
    processes than the cell's own is incomplete, as in a container that hides processes.
    """
    counts, is_known = [0], False
    for row in rows:
        if row.get("processes") is None:
            continue
        listed = {int(pid) for pid in row["processes"].split(";") if pid.isdigit()}
        if row.get("idle"):
            counts.append(len(listed))
        elif own & listed:
            counts.append(len(listed - own))
            is_known = True
        elif len(listed) >= len(own):
            counts.append(len(listed) - len(own))
            is_known = True
    # That there were none before the cell began says nothing about the window.
    return max(counts) if is_known or max(counts) else None


def _idle_power_w(rows: Sequence[Row]) -> float | None:
    """Return idle power from the counter, or from power samples if the idle time is too short."""
    reading = read_counter(rows)
    return reading.power_w if isinstance(reading, Reading) else time_mean(rows, "power_w")


def _throttled_pct(rows: Sequence[Row]) -> dict[str, float] | None:
    """Return the share of samples with each throttle reason; None if too few samples report it."""
    masks = [int(row["throttle_mask"]) for row in rows if row["throttle_mask"] is not None]
    if not masks or len(masks) < LEAST_KNOWN * len(rows):
        return None
    counts = {
        name: sum(bool(mask & bit) for mask in masks) for bit, name in THROTTLE_REASONS.items()
    }
    return {name: 100 * count / len(masks) for name, count in counts.items() if count}


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := row.get(key)) is not None]


def _largest(rows: Sequence[Row], key: str) -> float | None:
    return max(_values(rows, key), default=None)


def _smallest(rows: Sequence[Row], key: str) -> float | None:
    return min(_values(rows, key), default=None)


def _increase(rows: Sequence[Row], key: str) -> float | None:
    """Return the increase of a counter; None if it was read only once or was reset."""
    values = _values(rows, key)
    return values[-1] - values[0] if len(values) > 1 and values[-1] >= values[0] else None


def _longest_gap_s(rows: Sequence[Row], begin_s: float, end_s: float) -> float:
    times = [begin_s, *(row["monotonic_s"] for row in rows), end_s]
    return float(max(after - before for before, after in itertools.pairwise(times)))


def _to_int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
