"""Labels, which explain a cell's figures but do not exclude it. No torch import."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from shardmark.measurement.device_faults import (
    MOST_BELOW_PEERS_PCT,
    MOST_THROTTLED_PCT,
    capped_pct,
)
from shardmark.measurement.devices import describe_contradicted_energy
from shardmark.measurement.rules import Others, Rule, gpus_of, never_unknown, probed_tflops
from shardmark.metrics import Device, HostUse, Metrics, StepSplit

# Our choice: strategies often differ by less than a tenth, so waiting a tenth of the time can
# change their order.
LEAST_HOST_WAIT_PCT = 10.0
# Our choice: the same limit as for a throttled GPU (device_faults.py).
MOST_PERIODS_THROTTLED_PCT = 1.0
# A trend must be both large and beyond chance: step noise alone often gives a drift of 5 %.
LEAST_DRIFT_PCT = 1.0
LEAST_DRIFT_ERRORS = 4.0
MOST_INPUT_BOUND_PCT = 5.0
# Our choice. A step without an update is faster. torch's loss scaler doubles its scale after 2,000
# steps without an overflow, and then skips at most one step.
MOST_SKIPPED_PCT = 1.0


def throttled_periods_pct(use: HostUse) -> float | None:
    """Return the share of periods in which the CPU quota ran out, percent; 0 without a quota."""
    if use.cpu_periods is None or use.cpu_periods_throttled is None:
        return None
    return 100 * use.cpu_periods_throttled / use.cpu_periods if use.cpu_periods else 0.0


def host_wait_pct(metrics: Metrics) -> float | None:
    """Return the share of a timed step in which the slowest rank's device is idle, percent.

    Tracing slows the host, which makes the device wait longer. So the extra time of a traced step
    over a timed one is subtracted from the idle time.
    """
    slowest = slowest_host(metrics.profile)
    if slowest is None or metrics.throughput is None:
        return None
    step_ms = metrics.throughput.step_ms_mean
    wait_ms = slowest.host_gap_ms - max(0.0, slowest.step_ms - step_ms)
    return 100 * max(0.0, wait_ms) / step_ms


def exposed_communication_pct(metrics: Metrics) -> float | None:
    """Return the share of a step in which slowest_host's device only communicates, percent."""
    slowest = slowest_host(metrics.profile)
    return None if slowest is None else 100 * slowest.exposed_communication_ms / slowest.step_ms


def slowest_host(profile: Sequence[StepSplit]) -> StepSplit | None:
    """Return the split of the rank that waits longest for its host; None without a profile.

    The other ranks wait for it in their collectives, which looks like communication.
    """
    return max(profile, key=lambda split: split.host_gap_ms, default=None)


def updates_weights(metrics: Metrics) -> bool:
    """Whether an inspected step and nearly all timed steps changed a weight; True without steps."""
    inspected = metrics.effective_config
    return not (inspected and inspected.optimizer is None) and not _skips_timed_steps(metrics)


def _skips_timed_steps(metrics: Metrics) -> bool:
    """Whether the loss scaler skipped two or more timed steps, and more than MOST_SKIPPED_PCT."""
    measured = metrics.throughput
    if measured is None or measured.skipped_steps is None:
        return False
    skipped = measured.skipped_steps
    return skipped > 1 and 100 * skipped > MOST_SKIPPED_PCT * measured.steps


def runs_compiled(metrics: Metrics) -> bool:
    """Whether the timed steps ran compiled code, if they were to."""
    return metrics.throughput is None or metrics.throughput.compiled_calls != 0


def is_control(control: Metrics, cell: Metrics) -> bool:
    """Whether ``control`` is the same training on images that cannot limit its speed."""
    return (
        _takes_no_input(control)
        and (control.cell.base, control.cell.gpus) == (cell.cell.base, cell.cell.gpus)
        and control.cell.definition != cell.cell.definition
        and _without_images(control) == _without_images(cell)
    )


def _takes_no_input(metrics: Metrics) -> bool:
    """Whether a cell's images are synthetic and live on the device, so input cannot limit it."""
    definition = metrics.cell.definition
    return definition.generated and not definition.loader_workers


def _without_images(metrics: Metrics) -> dict[str, Any]:
    """Return the settings that a cell and its control must share."""
    cell = metrics.cell
    common: dict[str, Any] = cell.definition.model_dump(exclude={"dataset", "epochs", "schedule"})
    return common | {
        **cell.definition.input_shape,
        "strategy": (cell.base, cell.options),
        "place": (cell.device, cell.gpus, cell.nodes),
        "batch": (cell.global_batch_size, cell.per_gpu_batch_size),
    }


def _host_wait(metrics: Metrics, others: Others) -> Iterator[str]:
    wait_pct = host_wait_pct(metrics)
    if wait_pct is not None and wait_pct >= LEAST_HOST_WAIT_PCT:
        yield f"the device waits for its host during {wait_pct:.0f} % of a step"


def _host_wait_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    if not metrics.profile:
        yield "no step was profiled"


def _quota(metrics: Metrics, others: Others) -> Iterator[str]:
    use = max(metrics.host, key=lambda use: throttled_periods_pct(use) or 0.0, default=None)
    if use and (throttled_periods_pct(use) or 0.0) > MOST_PERIODS_THROTTLED_PCT:
        yield (
            f"its quota of {use.cpu_quota:g} CPUs ran out in {use.cpu_periods_throttled} of "
            f"{use.cpu_periods} periods"
        )


def _quota_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    if not metrics.host or any(use.cpu_periods is None for use in metrics.host):
        yield "the control groups of a rank could not be read"


def _shared_cpus(metrics: Metrics, others: Others) -> Iterator[str]:
    """Compare each node's CPUs with its ranks; the ranks of a node have consecutive numbers."""
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


def _shared_cpus_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    if not metrics.host or any(use.cpus is None for use in metrics.host):
        yield "the CPUs that a rank may use were not recorded"


def _energy(metrics: Metrics, others: Others) -> Iterator[str]:
    if contradiction := describe_contradicted_energy(metrics.devices):
        yield contradiction


def _energy_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    lacking = sorted(
        (why, one.title) for one in metrics.devices if (why := _why_energy_unknown(one))
    )
    for why, group in itertools.groupby(lacking, key=lambda one: one[0]):
        yield f"{why} ({', '.join(title for _, title in group)})"


def _why_energy_unknown(device: Device) -> str:
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
        return "it drew more power before the cell began than in the window"
    return ""


def _imprecise(metrics: Metrics, others: Others) -> Iterator[str]:
    measured, wanted_pct = metrics.throughput, metrics.cell.measure.steady_half_width_pct
    if measured is None or measured.half_width_pct is None:
        return
    if measured.half_width_pct > wanted_pct:
        yield (
            f"after {measured.window_s:.1f} s the mean step is known to within "
            f"{measured.half_width_pct:.1f} %, not to within the {wanted_pct:g} % asked for"
        )


def _drift(metrics: Metrics, others: Others) -> Iterator[str]:
    measured = metrics.throughput
    if measured is None or measured.drift_pct is None or measured.drift_error_pct is None:
        return
    size = abs(measured.drift_pct)
    if size > LEAST_DRIFT_PCT and size > LEAST_DRIFT_ERRORS * measured.drift_error_pct:
        word = "slower" if measured.drift_pct > 0 else "faster"
        yield (
            f"steps became {size:.1f} % {word} from the window's first third to its last "
            f"(standard error {measured.drift_error_pct:.1f} %)"
        )


def _too_few_steps(metrics: Metrics, others: Others) -> Iterator[str]:
    """Say that the window has no batch means, from which precision and drift come."""
    measured = metrics.throughput
    if measured is not None and measured.half_width_pct is None:
        yield f"the window's {measured.steps} steps are too few"


def _low_power_limit(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        limit, default = device.power_limit_w, device.power_limit_default_w
        lowered = limit is not None and default is not None and limit < default
        if lowered and capped_pct(device) > MOST_THROTTLED_PCT:
            yield (
                f"{name} was limited to {limit:.0f} W instead of its default {default:.0f} W for "
                f"{capped_pct(device):.0f} % of the window"
            )


def _power_limit_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    for name, device in gpus_of(metrics):
        limits = (device.power_limit_w, device.power_limit_default_w)
        if capped_pct(device) > MOST_THROTTLED_PCT and None in limits:
            yield (
                "power is capped, and the driver does not report whether below the GPU's default "
                f"({name})"
            )


def _slow_probe(metrics: Metrics, others: Others) -> Iterator[str]:
    own_tflops, rates = probed_tflops(metrics), others.probes(metrics) if others else []
    if own_tflops is None or not rates:
        return
    median_tflops = statistics.median(rates)
    slower = 100 * (1 - own_tflops / median_tflops)
    if slower > MOST_BELOW_PEERS_PCT:
        yield (
            f"{own_tflops:.1f} TFLOP/s in the probe, {slower:.0f} % below the {median_tflops:.1f} "
            f"of {len(rates)} other cells"
        )


def _slow_probe_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    if others is None or metrics.cell.device == "cpu":
        return
    if probed_tflops(metrics) is None:
        yield "the cell has no probe"
    elif not others.probes(metrics):
        yield "no other cell ran on such GPUs in this precision"


def _speeds_of_controls(metrics: Metrics, others: Others) -> list[float]:
    return [
        other.throughput.items_per_s
        for other in (others.others(metrics) if others else ())
        if other.throughput is not None and is_control(other, metrics)
    ]


def _input_bound(metrics: Metrics, others: Others) -> Iterator[str]:
    controls = _speeds_of_controls(metrics, others)
    if metrics.throughput is None or not controls:
        return
    gain = 100 * (statistics.median(controls) / metrics.throughput.items_per_s - 1)
    if gain > MOST_INPUT_BOUND_PCT:
        yield (
            f"the same training on synthetic images is {gain:.1f} % faster ({len(controls)} cells)"
        )


def _input_bound_unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    if others is None or _takes_no_input(metrics):
        return
    if not _speeds_of_controls(metrics, others):
        yield "no workload of the matrix is the same on synthetic images that live on the device"


def _measured_twice(metrics: Metrics, others: Others) -> Iterator[str]:
    other = metrics.other_attempt
    if other is not None and other.attempt == 1:
        yield f"the first measurement had a device fault: {', '.join(other.device_faults)}"
    elif other is not None:
        yield f"the first measurement counts, because the second ended as {other.status}"


def _not_training(metrics: Metrics, others: Others) -> Iterator[str]:
    measured = metrics.throughput
    if measured is not None and _skips_timed_steps(metrics):
        yield (
            f"the loss scaler skipped {measured.skipped_steps} of the {measured.steps} timed "
            "steps, and a step without an update is faster"
        )
    elif metrics.effective_config is not None and not updates_weights(metrics):
        yield (
            "none of the steps inspected after the training changed a weight: the loss scaler had "
            f"skipped {metrics.effective_config.skipped_steps} steps by then, and a step without "
            "an update is faster"
        )


def _not_compiled(metrics: Metrics, others: Others) -> Iterator[str]:
    if not runs_compiled(metrics):
        yield (
            "a step after the timed window ran no compiled code, although the configuration asks "
            "for it: torch's compiler gave up, or something made it run uncompiled"
        )


def _memory_is_full(metrics: Metrics, others: Others) -> Iterator[str]:
    retries = [device.torch_allocation_retries or 0 for device in metrics.devices]
    if any(retries):
        yield (
            f"in the window, an allocation failed {sum(retries)} times, and torch freed its cached "
            "memory and tried again; that takes time"
        )


LABELS = (
    Rule(
        "host wait",
        f"a device waits for its host during at least {LEAST_HOST_WAIT_PCT:g} % of a step",
        _host_wait,
        _host_wait_unknown,
    ),
    Rule(
        "CPU quota",
        f"the CPU quota of a rank ran out in more than {MOST_PERIODS_THROTTLED_PCT:g} % of its "
        "periods",
        _quota,
        _quota_unknown,
    ),
    Rule(
        "shared CPUs",
        "ranks share fewer CPUs than there are ranks",
        _shared_cpus,
        _shared_cpus_unknown,
    ),
    Rule(
        "energy",
        "a GPU's energy counter and the integral of its power contradict each other",
        _energy,
        _energy_unknown,
    ),
    Rule(
        "imprecise",
        "the window ended at measure.steady_max_s before the 95 % confidence interval of the mean "
        "step was as small as measure.steady_half_width_pct",
        _imprecise,
        _too_few_steps,
    ),
    Rule(
        "drift",
        f"the steps have a trend of more than {LEAST_DRIFT_PCT:g} % and of more than "
        f"{LEAST_DRIFT_ERRORS:g} standard errors, from the window's first third to its last",
        _drift,
        _too_few_steps,
    ),
    Rule(
        "low power limit",
        "a GPU ran at a power limit below its default",
        _low_power_limit,
        _power_limit_unknown,
    ),
    Rule(
        "full memory",
        "an allocation in the window failed at first, and torch freed its cached memory and tried "
        "again: the GPU is almost full, which makes steps slower",
        _memory_is_full,
        never_unknown,
    ),
    Rule(
        "slow probe",
        f"the matrix product of its probe is more than {MOST_BELOW_PEERS_PCT:g} % slower than the "
        "median of the other cells on GPUs of that name",
        _slow_probe,
        _slow_probe_unknown,
    ),
    Rule(
        "input-bound",
        "the same cell on synthetic images that live on the device is more than "
        f"{MOST_INPUT_BOUND_PCT:g} % faster",
        _input_bound,
        _input_bound_unknown,
    ),
    Rule(
        "measured twice",
        "the first measurement had a device fault, so the cell ran again at once",
        _measured_twice,
        never_unknown,
    ),
    Rule(
        "not training",
        "the loss scaler skipped every step that was inspected before the window, or more than "
        f"{MOST_SKIPPED_PCT:g} % of the timed ones; such a cell is also excluded, since it does "
        "not train the same model",
        _not_training,
        never_unknown,
    ),
    Rule(
        "not compiled",
        "the model should be compiled, and a step right after the window ran no compiled code; "
        "such a cell is also excluded, since its speed is not that of compiled code",
        _not_compiled,
        never_unknown,
    ),
)
