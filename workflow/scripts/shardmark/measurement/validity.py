"""The rules that mark a cell as suspect. This module does not import torch.

A suspect cell is reported with its reasons, but takes no part in comparisons unless the
configuration says so. Each reason contains the figure that broke the limit. If a reading is
missing, the rule reports that it could not be checked, and why. A cell is valid if no rule that
could be checked marks it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardmark.measurement.labels import unchecked_labels
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
# for one DDP cell on an H200 (README).
MOST_THROTTLED_PCT = 1.0
# A driver keeps less than this for itself; a CUDA context takes more.
MOST_IDLE_MEMORY_BYTES = 256 * 2**20
MOST_IDLE_UTILIZATION_PCT = 10.0
MOST_DRIFT_PCT = 5.0
MOST_INPUT_BOUND_PCT = 5.0
# Longest stretch of the window without a sample. Our choice: throttling that is shorter than this
# share of the window changes throughput by less than this share.
LONGEST_GAP_PCT = 10.0
# GPUs of one model differ by 8 % on average, some by more than 20 % (arXiv 2208.11035).
MOST_SLOWER_PCT = 10.0


@dataclass(frozen=True)
class Rule:
    """A rule that may mark a cell as suspect.

    Attributes:
        name: the problem that it detects.
        says: when it marks a cell, in words.
        reasons: yields why it marks a cell; nothing if it does not.
        unchecked: yields why it could not be checked; nothing if it could.
    """

    name: str
    says: str
    reasons: Callable[[Metrics], Iterator[str]]
    unchecked: Callable[[Metrics], Iterator[str]]


def _gpus(metrics: Metrics) -> Iterator[tuple[str, Device]]:
    for device in metrics.devices:
        if device.kind == "gpu":
            yield device.title, device


def _of_gpus(why: Callable[[Device], str]) -> Callable[[Metrics], Iterator[str]]:
    """Return a function that yields what GPUs lack for a rule; GPUs with the same answer share one.

    Args:
        why: returns what one GPU lacks; empty if nothing.
    """

    def unchecked(metrics: Metrics) -> Iterator[str]:
        lacking: dict[str, list[str]] = defaultdict(list)
        gpus = list(_gpus(metrics))
        for name, device in gpus:
            if reason := why(device) if device.samples else "no sample fell into the window":
                lacking[reason].append(name)
        for reason, names in lacking.items():
            every = len(names) == len(gpus) > 1
            yield f"{reason} ({f'all {len(gpus)} GPUs' if every else ', '.join(names)})"

    return unchecked


def _throttled(metrics: Metrics) -> Iterator[str]:
    for name, device in _gpus(metrics):
        for reason, share in (device.throttled_pct or {}).items():
            if reason in FAULTS and share > MOST_THROTTLED_PCT:
                yield f"{name} was slowed down by {reason} for {share:.0f} % of the window"
        capped = (device.throttled_pct or {}).get(POWER_CAP, 0.0)
        limit, default = device.power_limit_w, device.power_limit_default_w
        lowered = limit is not None and default is not None and limit < default
        if capped > MOST_THROTTLED_PCT and lowered:
            yield (
                f"{name} was held at {limit:.0f} W, of its own {default:.0f} W, for {capped:.0f} % "
                "of the window"
            )


def _throttling_lacks(device: Device) -> str:
    if device.throttled_pct is None:
        return "the driver reports no reasons, or rarely"
    capped = device.throttled_pct.get(POWER_CAP, 0.0) > MOST_THROTTLED_PCT
    if capped and None in (device.power_limit_w, device.power_limit_default_w):
        return "power is capped, and the driver does not say whether below the GPU's own limit"
    return ""


def _shared(metrics: Metrics) -> Iterator[str]:
    for name, device in _gpus(metrics):
        if device.foreign_processes:
            yield f"{name} had {device.foreign_processes} processes that are not the cell's"
        memory, load = device.idle_memory_bytes, device.idle_utilization_pct
        if memory is not None and memory > MOST_IDLE_MEMORY_BYTES:
            yield f"{name} had {memory / 2**20:.0f} MiB in use before the cell began"
        if load is not None and load > MOST_IDLE_UTILIZATION_PCT:
            yield f"{name} was busy for {load:.0f} % of the time before the cell began"


def _sharing_lacks(device: Device) -> str:
    if device.foreign_processes is None:
        return "the driver does not list all processes on it, as in a container that hides them"
    if device.idle_memory_bytes is None or device.idle_utilization_pct is None:
        return "its memory and load before the cell began are not known"
    return ""


def _unwatched(metrics: Metrics) -> Iterator[str]:
    for name, device in _gpus(metrics):
        if not device.samples:
            yield f"{name} was not watched in the window, so that nothing is known of it"


def _watching_lacks(device: Device) -> str:
    if device.longest_gap_pct is None:
        return "how often it was sampled was not recorded"
    if device.longest_gap_pct > LONGEST_GAP_PCT:
        return f"no sample for {device.longest_gap_pct:.0f} % of the window on end"
    return ""


def _memory_errors(metrics: Metrics) -> Iterator[str]:
    for name, device in _gpus(metrics):
        if device.ecc_errors:
            yield f"{name} had {device.ecc_errors} uncorrected memory errors"


def _memory_errors_lack(device: Device) -> str:
    if device.ecc_errors is None:
        return "it has no ECC, or the driver does not count its errors through"
    return ""


def _drifting(metrics: Metrics) -> Iterator[str]:
    drift = metrics.throughput.drift_pct if metrics.throughput else None
    if drift is not None and abs(drift) > MOST_DRIFT_PCT:
        word = "slower" if drift > 0 else "faster"
        yield f"steps became {abs(drift):.1f} % {word} from the window's first third to its last"


def _drift_lacks(metrics: Metrics) -> Iterator[str]:
    measured = metrics.throughput
    if measured is not None and measured.drift_pct is None:
        yield f"the window's {measured.steps} steps are too few"


def _too_short(metrics: Metrics) -> Iterator[str]:
    measured = metrics.throughput
    if measured is not None and not measured.window_complete:
        asked = metrics.cell.measure.steady_s
        yield f"the window was {measured.window_s:.2f} s long, of the {asked:g} s asked for"


def _not_training(metrics: Metrics) -> Iterator[str]:
    settings = metrics.effective_config
    if settings is not None and settings.optimizer is None:
        yield (
            "none of the steps inspected after the training changed a weight: the loss scaler left "
            f"out {settings.skipped_steps} steps by then, and a step without an update is faster"
        )


def _lacks_nothing(metrics: Metrics) -> Iterator[str]:
    yield from ()


RULES = (
    Rule(
        "throttled",
        f"heat or a fault slowed a GPU down for more than {MOST_THROTTLED_PCT:g} % of the window, "
        "or a power limit below its own did",
        _throttled,
        _of_gpus(_throttling_lacks),
    ),
    Rule(
        "shared GPU",
        "another process was on a GPU, or before the cell began more than "
        f"{MOST_IDLE_MEMORY_BYTES // 2**20} MiB were in use on it, or it was busy for more than "
        f"{MOST_IDLE_UTILIZATION_PCT:g} % of the time",
        _shared,
        _of_gpus(_sharing_lacks),
    ),
    Rule(
        "unwatched",
        "no sample of a GPU fell into the window",
        _unwatched,
        _of_gpus(_watching_lacks),
    ),
    Rule(
        "memory errors",
        "a GPU counted an uncorrected memory error",
        _memory_errors,
        _of_gpus(_memory_errors_lack),
    ),
    Rule(
        "drifting",
        "the steps of the window's last third are slower or faster than those of its first by more "
        f"than {MOST_DRIFT_PCT:g} %",
        _drifting,
        _drift_lacks,
    ),
    Rule(
        "window too short",
        "the window is shorter than measure.steady_s",
        _too_short,
        _lacks_nothing,
    ),
    Rule(
        "not training",
        "the loss scaler left out every step that was inspected before the window",
        _not_training,
        _lacks_nothing,
    ),
)
SLOW_GPU = (
    "its matrix product in the probe is slower by more than "
    f"{MOST_SLOWER_PCT:g} % than the median of the other cells on GPUs of that name"
)
INPUT_BOUND = (
    "the same cell on synthetic images that live on the device is faster by more than "
    f"{MOST_INPUT_BOUND_PCT:g} %"
)


def rules_in_words() -> list[tuple[str, str]]:
    """Return the name of each rule, and when it marks a cell."""
    alone = [(rule.name, rule.says) for rule in RULES]
    return [*alone, ("slow GPU", SLOW_GPU), ("input-bound", INPUT_BOUND)]


def reasons_of(metrics: Metrics) -> list[str]:
    """Apply the rules that need no other cell; return reasons as ``<rule>: <reason>``."""
    return [f"{rule.name}: {reason}" for rule in RULES for reason in rule.reasons(metrics)]


_UNCHECKED = " could not be checked: "


def unknown_of(metrics: Metrics, others: Sequence[Metrics] | None) -> list[str]:
    """Return what could not be checked, as ``<rule or label> could not be checked: <why>``.

    Args:
        metrics: result of one cell.
        others: as for judged; None while the other results are not available.
    """
    lacking = [(rule.name, why) for rule in RULES for why in rule.unchecked(metrics)]
    if others is not None:
        lacking += [("slow GPU", why) for why in _slow_gpu_lacks(metrics, others)]
        lacking += [("input-bound", why) for why in _input_bound_lacks(metrics, others)]
    return [f"{name}{_UNCHECKED}{why}" for name, why in [*lacking, *unchecked_labels(metrics)]]


def unchecked_rules(unknown: Iterable[str]) -> list[str]:
    """Return the names of the rules and labels that could not be checked, each once."""
    return list(dict.fromkeys(sentence.partition(_UNCHECKED)[0] for sentence in unknown))


def judged(metrics: Metrics, others: Iterable[Metrics] | None = None) -> Metrics:
    """Return the result with its validity filled in.

    Args:
        metrics: result of one cell.
        others: results of the same matrix. Two rules need them: controls show whether input limits
            this cell, and cells on GPUs of the same name show whether its GPU is slow. None for a
            cell that has just ended: these rules are applied when the cells are collected.
    """
    if metrics.status != "ok":
        clear = {"validity": "valid", "validity_reasons": [], "unknown": []}
        return metrics.model_copy(update=clear)
    matrix = None if others is None else list(others)
    reasons = [
        *reasons_of(metrics),
        *_slow_gpu(metrics, matrix or []),
        *_input_bound(metrics, matrix or []),
    ]
    return metrics.model_copy(
        update={
            "validity": "suspect" if reasons else "valid",
            "validity_reasons": reasons,
            "unknown": unknown_of(metrics, matrix),
        }
    )


def _probed_tflops(metrics: Metrics) -> float | None:
    """Return the probed TFLOP/s of the slowest GPU; None on a CPU, whose probe says little."""
    if metrics.cell.device == "cpu" or not metrics.probes:
        return None
    return min(one.matmul_tflops for one in metrics.probes)


def _rates_of_others(metrics: Metrics, others: Iterable[Metrics]) -> list[float]:
    kind = _kind_of_gpu(metrics)
    return [
        rate
        for other in others
        if other is not metrics and _kind_of_gpu(other) == kind and (rate := _probed_tflops(other))
    ]


def _slow_gpu_lacks(metrics: Metrics, others: Iterable[Metrics]) -> Iterator[str]:
    if metrics.cell.device == "cpu":
        return
    if _probed_tflops(metrics) is None:
        yield "the cell has no probe"
    elif not _rates_of_others(metrics, others):
        yield "no other cell ran on such GPUs in this precision"


def _slow_gpu(metrics: Metrics, others: Iterable[Metrics]) -> Iterator[str]:
    mine, rates = _probed_tflops(metrics), _rates_of_others(metrics, others)
    if mine is None or not rates:
        return
    usual = statistics.median(rates)
    slower = 100 * (1 - mine / usual)
    if slower > MOST_SLOWER_PCT:
        yield (
            f"slow GPU: {mine:.1f} TFLOP/s in the probe, {slower:.0f} % under the {usual:.1f} of "
            f"{len(rates)} other cells"
        )


def _kind_of_gpu(metrics: Metrics) -> tuple[set[str], str]:
    return {device.name for device in metrics.devices}, metrics.cell.definition.precision


def _speeds_of_controls(metrics: Metrics, others: Iterable[Metrics]) -> list[float]:
    return [
        other.throughput.images_per_s
        for other in others
        if other.throughput is not None and is_control(other, metrics)
    ]


def _input_bound_lacks(metrics: Metrics, others: Iterable[Metrics]) -> Iterator[str]:
    if not _takes_no_input(metrics) and not _speeds_of_controls(metrics, others):
        yield "no workload of the matrix is the same on synthetic images that live on the device"


def _input_bound(metrics: Metrics, others: Iterable[Metrics]) -> Iterator[str]:
    controls = _speeds_of_controls(metrics, others)
    if metrics.throughput is None or not controls:
        return
    gain = 100 * (statistics.median(controls) / metrics.throughput.images_per_s - 1)
    if gain > MOST_INPUT_BOUND_PCT:
        yield (
            f"input-bound: the same training on synthetic images is {gain:.1f} % faster "
            f"({len(controls)} cells)"
        )


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
    dataset = metrics.cell.definition.dataset
    return dataset.name == "synthetic" and dataset.loader == "device"


def _without_images(metrics: Metrics) -> dict[str, Any]:
    """Return the settings that a cell and its control must share."""
    cell = metrics.cell
    common: dict[str, Any] = cell.definition.model_dump(exclude={"dataset", "epochs", "schedule"})
    return common | {
        "image_size": cell.definition.dataset.image_size,
        "classes": cell.definition.classes,
        "strategy": (cell.base, cell.options),
        "place": (cell.device, cell.gpus, cell.nodes),
        "batch": (cell.global_batch_size, cell.per_gpu_batch_size),
    }
