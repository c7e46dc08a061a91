"""Labels, which explain a cell's figures but do not exclude it. No torch import."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from shardmark.measurement.devices import contradicted_energy
from shardmark.metrics import Device, HostUse, Metrics, StepSplit

# Our choice: strategies often differ by less than a tenth, so waiting a tenth of the time can
# change their order.
LEAST_HOST_WAIT_PCT = 10.0
# Our choice: the same limit as for a throttled GPU (validity.py).
MOST_PERIODS_THROTTLED_PCT = 1.0


def cell_labels(metrics: Metrics) -> list[str]:
    """Return the labels of one cell, in words."""
    return [*_host_wait(metrics), *_quota(metrics), *_few_cpus(metrics), *_energy(metrics)]


def unchecked_labels(metrics: Metrics) -> Iterator[tuple[str, str]]:
    """Yield each label that could not be checked for the cell, and why."""
    if not metrics.profile:
        yield "waiting for the host", "no step was profiled"
    if not metrics.host or any(use.cpu_periods is None for use in metrics.host):
        yield "CPU quota", "the control groups of a rank could not be read"
    if not metrics.host or any(use.cpus is None for use in metrics.host):
        yield "sharing of CPUs", "the CPUs that a rank may use were not recorded"
    lacking = sorted((why, one.title) for one in metrics.devices if (why := _energy_lacks(one)))
    for why, group in itertools.groupby(lacking, key=lambda one: one[0]):
        yield "energy", f"{why} ({', '.join(title for _, title in group)})"


def throttled_periods_pct(use: HostUse) -> float | None:
    """Return the share of periods in which the CPU quota ran out, percent; 0 without a quota."""
    if use.cpu_periods is None or use.cpu_periods_throttled is None:
        return None
    return 100 * use.cpu_periods_throttled / use.cpu_periods if use.cpu_periods else 0.0


def _host_wait(metrics: Metrics) -> Iterator[str]:
    waits = host_wait_pct(metrics)
    if waits is not None and waits >= LEAST_HOST_WAIT_PCT:
        yield f"waits for its host during {waits:.0f} % of a step"


def _quota(metrics: Metrics) -> Iterator[str]:
    use = max(metrics.host, key=lambda use: throttled_periods_pct(use) or 0.0, default=None)
    if use and (throttled_periods_pct(use) or 0.0) > MOST_PERIODS_THROTTLED_PCT:
        yield (
            f"its quota of {use.cpu_quota:g} CPUs ran out in {use.cpu_periods_throttled} of "
            f"{use.cpu_periods} periods"
        )


def _few_cpus(metrics: Metrics) -> Iterator[str]:
    """Yield labels for nodes with fewer CPUs than ranks; a node's ranks are consecutive."""
    each = metrics.cell.processes // metrics.cell.nodes
    for _, group in itertools.groupby(metrics.host, key=lambda use: use.rank // each):
        ranks = list(group)
        # Ranks bound to different CPUs do not compete for them.
        sharing = Counter(use.cpu_list for use in ranks)
        for use in ranks:
            if use.cpus is not None and use.cpus < sharing[use.cpu_list]:
                plural = "" if use.cpus == 1 else "s"
                yield f"{sharing[use.cpu_list]} ranks share {use.cpus} CPU{plural}"
                return


def _energy(metrics: Metrics) -> Iterator[str]:
    if contradiction := contradicted_energy(metrics.devices):
        yield contradiction


def _energy_lacks(device: Device) -> str:
    """Return why a GPU's energy is unknown or unconfirmed."""
    if device.kind != "gpu":
        return ""
    if device.energy_refused:
        return device.energy_refused
    if device.energy_counter_j is None:
        return "its energy counter was not recorded"
    if device.energy_disagreement_pct is None:
        return "nothing confirms the counter: the window is under 2 s, or power cannot be read"
    idle_w, mean_w = device.idle_power_w, device.power_mean_w
    if idle_w is not None and mean_w is not None and idle_w > mean_w:
        return "it took more power before the cell began than in the window"
    return ""


def host_wait_pct(metrics: Metrics) -> float | None:
    """Return the share of a timed step in which the slowest rank's device is idle, percent.

    Tracing slows the host, which makes the device wait longer. So the extra time of a traced step
    over a timed one is subtracted from the idle time.
    """
    slowest = slowest_host(metrics.profile)
    if slowest is None or metrics.throughput is None:
        return None
    step_ms = metrics.throughput.step_ms_mean
    waits_ms = slowest.host_gap_ms - max(0.0, slowest.step_ms - step_ms)
    return 100 * max(0.0, waits_ms) / step_ms


def exposed_communication_pct(metrics: Metrics) -> float | None:
    """Return the share of a traced step in which that device only communicates, percent."""
    slowest = slowest_host(metrics.profile)
    return None if slowest is None else 100 * slowest.exposed_communication_ms / slowest.step_ms


def slowest_host(profile: Sequence[StepSplit]) -> StepSplit | None:
    """Return the split of the rank that waits longest for its host; None without a profile.

    The other ranks wait for it in their collectives, which looks like communication.
    """
    return max(profile, key=lambda split: split.host_gap_ms, default=None)
