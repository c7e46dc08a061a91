"""Device faults: the only measurements that exclude a run from the comparisons. No torch import.

Each reason contains the figure that broke the limit.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator

from shardmark.measurement.rules import Others, Rule, gpus_of
from shardmark.metrics import Device, Metrics

# Throttle reasons that mean heat or a fault. The power cap is not one of them: a healthy GPU under
# load runs at its power limit.
FAULTS = (
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
)
POWER_CAP = "sw_power_cap"
# Limits without a source are our choice. They are well above the spread of undisturbed runs: 0.3 %
# for one DDP cell on an H200 (docs/results.md).
MOST_THROTTLED_PCT = 1.0
# The driver itself uses less than this; a CUDA context uses more.
MOST_IDLE_MEMORY_BYTES = 256 * 2**20
MOST_IDLE_UTILIZATION_PCT = 10.0
# Longest stretch of the window without a sample. Our choice: throttling that is shorter than this
# share of the window changes throughput by less than this share.
LONGEST_GAP_PCT = 10.0
# GPUs of one model differ by 8 % on average, some by more than 20 % (arXiv 2208.11035).
MOST_BELOW_PEERS_PCT = 10.0


def _throttled(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        for reason, share in (device.throttled_pct or {}).items():
            if reason in FAULTS and share > MOST_THROTTLED_PCT:
                yield f"{name} was slowed down by {reason} for {share:.0f} % of the window"


def _throttling_unknown(device: Device) -> str:
    return "the driver reports reasons rarely or not" if device.throttled_pct is None else ""


def capped_pct(device: Device) -> float:
    """Return the share of the window in which a GPU ran at its power limit, percent."""
    return (device.throttled_pct or {}).get(POWER_CAP, 0.0)


def _power_capped(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        limit, peers = device.power_limit_w, _limits_of_peers(metrics, device, others)
        if capped_pct(device) <= MOST_THROTTLED_PCT or limit is None or not peers:
            continue
        if limit < (median_w := statistics.median(peers)):
            yield (
                f"{name} was limited to {limit:.0f} W for {capped_pct(device):.0f} % of the "
                f"window; the limit of its peers is {median_w:.0f} W"
            )


def _power_cap_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        if capped_pct(device) <= MOST_THROTTLED_PCT:
            continue
        if device.power_limit_w is None:
            yield f"power is capped, and the driver does not report the limit ({name})"
        elif others is not None and not _limits_of_peers(metrics, device, others):
            yield f"power is capped, and there is no other GPU to compare the limit with ({name})"


def _limits_of_peers(metrics: Metrics, device: Device, others: Others) -> list[float]:
    limits = [
        peer.power_limit_w
        for peer in _peers_in_cell(metrics, device)
        if peer.power_limit_w is not None
    ]
    return limits + (others.limits_w(metrics, device) if others else [])


def _peers_in_cell(metrics: Metrics, device: Device) -> list[Device]:
    """Return the cell's other GPUs that have the same name as a GPU."""
    return [gpu for _, gpu in gpus_of(metrics) if gpu is not device and gpu.name == device.name]


def _shared(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        if device.foreign_processes:
            yield f"{name} had {device.foreign_processes} processes that are not the cell's"
        memory, load = device.idle_memory_bytes, device.idle_utilization_pct
        if memory is not None and memory > MOST_IDLE_MEMORY_BYTES:
            yield f"{name} had {memory / 2**20:.0f} MiB in use before the cell began"
        if load is not None and load > MOST_IDLE_UTILIZATION_PCT:
            yield f"{name} was busy for {load:.0f} % of the time before the cell began"


def _sharing_unknown(device: Device) -> str:
    if device.foreign_processes is None:
        return "the driver does not list all its processes, for example inside a container"
    if device.idle_memory_bytes is None or device.idle_utilization_pct is None:
        return "its memory and load before the cell began are not known"
    return ""


def _no_telemetry(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        if not device.samples:
            yield f"{name} has no sample in the window"


def _telemetry_unknown(device: Device) -> str:
    if device.longest_gap_pct is None:
        return "how often it was sampled was not recorded"
    if device.longest_gap_pct > LONGEST_GAP_PCT:
        return f"one gap between samples lasted {device.longest_gap_pct:.0f} % of the window"
    return ""


def _ecc_errors(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        if device.ecc_errors:
            yield f"{name} had {device.ecc_errors} uncorrected memory errors"


def _ecc_unknown(device: Device) -> str:
    if device.ecc_errors is None:
        return "it has no ECC, or the driver does not count errors throughout"
    return ""


def _low_clocks(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        own_mhz, peers = device.sm_clock_mean_mhz, _clocks_of_peers(metrics, device, others)
        if own_mhz is None or not peers:
            continue
        below = 100 * (1 - own_mhz / (median_mhz := statistics.median(peers)))
        if below > MOST_BELOW_PEERS_PCT:
            yield (
                f"{name} ran at {own_mhz:.0f} MHz, {below:.0f} % below the {median_mhz:.0f} MHz of "
                "its peers under the same load"
            )


def _clocks_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        if not device.samples:
            yield f"no sample fell into the window ({name})"
        elif device.sm_clock_mean_mhz is None:
            yield f"the driver does not report the clock ({name})"
        elif others is not None and not _clocks_of_peers(metrics, device, others):
            yield f"no other GPU of that name ran the same strategy and GPU count ({name})"


def _clocks_of_peers(metrics: Metrics, device: Device, others: Others) -> list[float]:
    means = [peer.sm_clock_mean_mhz for peer in _peers_in_cell(metrics, device)]
    clocks = [clock for clock in means if clock]
    return clocks + (others.clocks_mhz(metrics, device) if others else [])


def _unknown_of_gpus(why: Callable[[Device], str]) -> Callable[[Metrics, Others], Iterator[str]]:
    """Return a function that yields why a rule cannot be checked, once per reason.

    Args:
        why: returns why the rule cannot be checked on one GPU; empty if it can.
    """

    def unknown(metrics: Metrics, others: Others) -> Iterator[str]:
        lacking: dict[str, list[str]] = defaultdict(list)
        gpus = list(gpus_of(metrics))
        for name, device in gpus:
            if reason := why(device) if device.samples else "no sample fell into the window":
                lacking[reason].append(name)
        for reason, names in lacking.items():
            every = len(names) == len(gpus) > 1
            yield f"{reason} ({f'all {len(gpus)} GPUs' if every else ', '.join(names)})"

    return unknown


DEVICE_FAULTS = (
    Rule(
        "throttled",
        f"heat or a fault slowed a GPU down for more than {MOST_THROTTLED_PCT:g} % of the window",
        _throttled,
        _unknown_of_gpus(_throttling_unknown),
    ),
    Rule(
        "power-capped",
        f"a GPU ran at its power limit for more than {MOST_THROTTLED_PCT:g} % of the window, and "
        "that limit is below the median limit of the other GPUs of its name",
        _power_capped,
        _power_cap_unknown,
    ),
    Rule(
        "shared GPU",
        "another process used a GPU; or, before the cell began, more than "
        f"{MOST_IDLE_MEMORY_BYTES // 2**20} MiB of its memory were in use, or it was busy for more "
        f"than {MOST_IDLE_UTILIZATION_PCT:g} % of the time",
        _shared,
        _unknown_of_gpus(_sharing_unknown),
    ),
    Rule(
        "telemetry missing",
        "no sample of a GPU fell into the window",
        _no_telemetry,
        _unknown_of_gpus(_telemetry_unknown),
    ),
    Rule(
        "ECC errors",
        "a GPU counted an uncorrected memory error",
        _ecc_errors,
        _unknown_of_gpus(_ecc_unknown),
    ),
    Rule(
        "low clocks",
        f"a GPU's mean clock in the window is more than {MOST_BELOW_PEERS_PCT:g} % below the "
        "median of the other GPUs of its name under the same load (workload, strategy and GPU "
        "count)",
        _low_clocks,
        _clocks_unknown,
    ),
)
