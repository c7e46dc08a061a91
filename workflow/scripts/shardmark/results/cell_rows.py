"""cells.csv and epochs.csv: one row per planned cell, and one row per epoch of a cell.

The models are the tables' data dictionary. A column's name contains its unit. Its field says what
it is, when it is empty and, if the report shows it, how it is labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import BaseModel, Field

from shardmark.cells import Cell
from shardmark.config.values import Record, Section
from shardmark.lanes import Lane, lane_of
from shardmark.measurement.datasheet import datasheet_tflops
from shardmark.measurement.labels import (
    host_wait_pct,
    slowest_host,
    throttled_periods_pct,
)
from shardmark.measurement.validity import names_of_rules, unchecked_rules
from shardmark.metrics import (
    Accuracy,
    Device,
    Efficiency,
    HeldOutLoss,
    HostUse,
    Loss,
    Metrics,
    Roofs,
    Throughput,
    Times,
)
from shardmark.quantities import Quantity
from shardmark.results.matrix import PlannedCell

HOST_COLUMNS = ("launching_cpu_pct", "involuntary_switches_per_s", "cpu_pressure_pct")

NOT_REACHED = "the cell did not get this far"
_NO_PROFILE = f"{NOT_REACHED}, or measure.profile is false"
_ON_CPU = f"{NOT_REACHED}, or it ran on a CPU"
_NO_QUOTA = f"{NOT_REACHED}, a rank has no quota, or its quota could not be read"
_NO_RESULT = "the cell has no result"
_NO_SLURM = "the cell did not run in a Slurm job"
_NOT_RECORDED = f"{NOT_REACHED}, or it was not recorded"
_NOT_EVALUATED = "the evaluation after it did not end"


def column(description: str, quantity: Quantity | None = None, *, empty: str = NOT_REACHED) -> Any:
    """Return the field of a column.

    Args:
        description: what it is.
        quantity: how the report shows it; None for a column that is only in the CSV file.
        empty: when a nullable column is empty.
    """
    return Field(
        description=description,
        json_schema_extra={"empty": empty, "quantity": quantity},  # type: ignore[dict-item]
    )


def extra(model: type[BaseModel], name: str, key: str) -> Any:
    """Return the ``empty`` or ``quantity`` of a column, or the ``empty`` of a field."""
    more = model.model_fields[name].json_schema_extra
    return more.get(key) if isinstance(more, dict) else None


def recorded(section: type[Record], name: str, quantity: Quantity | None = None) -> Any:
    """Return the field of a column that is a field of metrics.json, described as it is there."""
    empty = extra(section, name, "empty")
    return column(
        section.model_fields[name].description or "",
        quantity,
        empty=f"{NOT_REACHED}, or {empty}" if empty else NOT_REACHED,
    )


class CellRow(Section):
    """One planned cell: what it is, how it ended, what was measured. Empty means not measured."""

    run: str = column("Name of the matrix.")
    workload: str = column("Name of the workload.")
    strategy: str = column("Name of the strategy or variant in the matrix.")
    base: str = column("Strategy that a variant is based on; a strategy itself is its own base.")
    lane: Lane = column(
        "Arithmetic of the row: same_arithmetic (float32 parameters, gradients, reduction and "
        "optimizer state), as_recommended (the framework's own mixed precision) or "
        "other_arithmetic."
    )
    gpus: int = column("Number of replicas.")
    nodes: int = column("Number of machines that the cell spans.")
    seed: int = column(
        "Number that seeds the initial weights, data order, augmentation and dropout of the run."
    )
    outcome: str = column(
        "How the cell ended: ok, device fault (ok, but a device fault excludes it), stale (ok, "
        "but with earlier code), oom, timeout, diverged, failed, refused (its file cannot be "
        "used), unsupported or missing."
    )
    excluded: str | None = column(
        "Why comparisons leave the cell out: its device faults, an outcome that is not ok, not "
        "training, not compiled, or the parity gate's verdict.",
        empty="the cell takes part",
    )
    status: str | None = column(
        "Outcome of the run itself: ok, oom, timeout, diverged, failed or unsupported.",
        empty=_NO_RESULT,
    )
    device_faults: str | None = column(
        "Names of the rules that exclude the cell for its devices, separated by ';'.",
        empty="there is none",
    )
    device_fault_reasons: str | None = column(
        "Why each of them applies, as text for people.", empty="there is none"
    )
    unknown: str | None = column(
        "Names of the rules and labels that could not be checked, separated by ';'.",
        empty="all could be checked",
    )
    unknown_reasons: str | None = column(
        "Why each of them could not be checked, as text for people.", empty="all could be checked"
    )
    labels: str | None = column(
        "Names of the labels that explain the cell's figures without excluding it, separated by "
        "';'.",
        empty="there is none",
    )
    label_reasons: str | None = column(
        "Why the cell has each label, as text for people.", empty="there is none"
    )
    stale: bool | None = column("Whether earlier code made the result.", empty=_NO_RESULT)
    failure: str | None = column("Why the cell is not ok.", empty="the cell is ok")
    failure_phase: str | None = column(
        "Phase in which the cell failed.", empty="the cell is ok, or no rank reported it"
    )
    failure_rank: int | None = column(
        "Rank that failed first.", empty="the cell is ok, or no rank reported it"
    )
    parity: str = column(
        "Verdict of the parity gate at this GPU count: passed, failed, error, unsupported or "
        "missing."
    )
    place: int | None = column(
        "Planned place in the order of the cells; 0 starts first.", empty="it was not recorded"
    )
    started_at: str | None = column(
        "Time at which the cell started, in UTC.", empty="it was not recorded"
    )
    scaling: str = column("strong (fixed global batch) or weak (fixed batch per GPU).")
    global_batch_size: int = column("Samples (images or sequences) per step over all replicas.")
    per_gpu_batch_size: int = column("Samples (images or sequences) per step of one replica.")
    precision: str = column("fp32, tf32, bf16 or fp16.")
    batchnorm: str = column("local or sync; none if the model has no batch-norm.")
    device: str = column("cuda or cpu.")
    epochs: int = column("Number of epochs that the workload defines.")
    unit: str = column(
        "What throughput and energy count: images, tokens, or what a user's own training counts."
    )
    items_per_s: float | None = recorded(
        Throughput, "items_per_s", Quantity("Throughput", "items/s", "throughput", better="higher")
    )
    training_s: float | None = recorded(
        Times, "training_s", Quantity("Training time", "s", "training_time", better="lower")
    )
    memory_used_peak_bytes: int | None = recorded(
        Efficiency,
        "memory_peak_bytes",
        Quantity(
            "Memory peak",
            "GiB",
            "memory",
            scale=2**-30,
            better="lower",
            label_on_cpu="Resident memory peak",
        ),
    )
    energy_per_item_j: float | None = recorded(
        Efficiency, "energy_per_item_j", Quantity("Energy", "J/item", "energy", better="lower")
    )
    power_w: float | None = recorded(Efficiency, "power_w", Quantity("Power", "W", "power"))
    utilization_pct: float | None = recorded(
        Efficiency,
        "utilization_pct",
        Quantity("GPU utilisation", "%", "utilisation", label_on_cpu="CPU utilisation"),
    )
    final_loss: float | None = recorded(Loss, "final", Quantity("Final loss", "", "final_loss"))
    final_accuracy: float | None = recorded(
        Accuracy,
        "final",
        Quantity("Test accuracy", "%", "accuracy", scale=100.0, better="higher", optional=True),
    )
    final_test_loss: float | None = recorded(
        HeldOutLoss,
        "final",
        Quantity("Test loss", "per item", "test_loss", better="lower", optional=True),
    )
    items_per_s_per_gpu: float | None = recorded(Throughput, "items_per_s_per_gpu")
    step_ms_mean: float | None = recorded(Throughput, "step_ms_mean")
    step_ms_p50: float | None = recorded(Throughput, "step_ms_p50")
    step_ms_p90: float | None = recorded(Throughput, "step_ms_p90")
    step_ms_p99: float | None = recorded(Throughput, "step_ms_p99")
    steps: int | None = recorded(Throughput, "steps")
    window_s: float | None = recorded(Throughput, "window_s")
    drift_pct: float | None = recorded(Throughput, "drift_pct")
    drift_error_pct: float | None = recorded(Throughput, "drift_error_pct")
    steady_begin_monotonic_s: float | None = column(
        "Begin of the steady window on the clock of telemetry.csv, s."
    )
    steady_end_monotonic_s: float | None = column(
        "End of the steady window on the clock of telemetry.csv, s."
    )
    half_width_pct: float | None = recorded(Throughput, "half_width_pct")
    warmup_steps: int | None = recorded(Throughput, "warmup_steps")
    warmup_converged: bool | None = recorded(Throughput, "warmup_converged")
    epoch_s_mean: float | None = column("Mean training time per epoch, s.")
    evaluation_s: float | None = recorded(Times, "evaluation_s")
    measurement_s: float | None = recorded(Times, "measurement_s")
    total_s: float | None = recorded(Times, "total_s")
    imports_s: float | None = recorded(Times, "imports_s")
    process_group_s: float | None = recorded(Times, "process_group_s")
    probe_s: float | None = recorded(Times, "probe_s")
    data_s: float | None = recorded(Times, "data_s")
    build_s: float | None = recorded(Times, "build_s")
    compilation_s: float | None = recorded(Times, "compilation_s")
    first_step_s: float | None = recorded(Times, "first_step_s")
    inspection_s: float | None = recorded(Times, "inspection_s")
    profile_s: float | None = recorded(Times, "profile_s")
    other_s: float | None = recorded(Times, "other_s")
    shutdown_s: float | None = recorded(Times, "shutdown_s")
    compute_ms: float | None = column(
        "Part of a profiled step in which the device computes, on the rank that waits longest for "
        "its host, ms.",
        empty=_NO_PROFILE,
    )
    exposed_communication_ms: float | None = column(
        "Part of a profiled step in which that rank's device communicates and computes nothing, "
        "ms; the other ranks' collectives also wait for that rank.",
        empty=_NO_PROFILE,
    )
    data_ms: float | None = column(
        "Part of a profiled step in which that rank's device makes the batch or waits for it, ms.",
        empty=_NO_PROFILE,
    )
    host_wait_ms: float | None = column(
        "Part of a timed step in which that rank's device is idle, ms: the idle time of a profiled "
        "step, less the time that tracing added.",
        empty=_NO_PROFILE,
    )
    host_wait_pct: float | None = column(
        "host_wait_ms as a share of a timed step, %.",
        empty=_NO_PROFILE,
    )
    exposed_communication_pct: float | None = column(
        "exposed_communication_ms as a share of a timed step, %.",
        empty=_NO_PROFILE,
    )
    launching_cpu_pct: float | None = column(
        "CPU time per wall-clock time of the threads that launch the device's work, on the "
        "busiest rank, %; 100 is one core that is always busy."
    )
    involuntary_switches_per_s: float | None = column(
        "How many times per second the kernel took the CPU away from these threads, on the rank "
        "that lost it most often."
    )
    cpu_pressure_pct: float | None = column(
        "Share of the steady window in which some task of the machine waited for a CPU, on the "
        "machine with the largest share, %.",
        empty=f"{NOT_REACHED}, or the kernel does not count it",
    )
    cpus: int | None = column(
        "Number of CPUs that a rank may run on, for the rank with the fewest."
    )
    torch_threads: int | None = column(
        "Number of torch's CPU threads in a rank, for the rank with the fewest."
    )
    cpu_quota: float | None = column(
        "CPU time per wall-clock time that a rank's control groups allow, for the rank with the "
        "smallest quota, in CPUs.",
        empty=_NO_QUOTA,
    )
    cpu_throttled_pct: float | None = column(
        "Share of the quota's periods in the steady window in which the quota ran out, on the "
        "rank with the largest share, %; 0 without a quota.",
        empty=f"{NOT_REACHED}, or a quota could not be read",
    )
    gc_collections: int | None = recorded(Throughput, "gc_collections")
    compiled_calls: int | None = recorded(Throughput, "compiled_calls")
    torch_allocated_peak_bytes: int | None = column(
        "Peak of the memory that torch allocated on the fullest device, bytes.", empty=_ON_CPU
    )
    torch_reserved_peak_bytes: int | None = column(
        "Peak of the memory that torch's allocator reserved on the fullest device, bytes.",
        empty=_ON_CPU,
    )
    memory_capacity_bytes: int | None = column(
        "Memory of the smallest device, bytes.", empty=_NOT_RECORDED
    )
    state_bytes: int | None = column(
        "Parameters, gradients and optimizer state in the memory of the device, on the fullest "
        "rank, bytes.",
        empty=_NOT_RECORDED,
    )
    state_predicted_bytes: int | None = column(
        "What ZeRO's formulas predict for state_bytes, bytes.", empty=_NOT_RECORDED
    )
    state_host_bytes: int | None = column(
        "The part of parameters, gradients and optimizer state that is offloaded to host memory, "
        "on the rank with the most, bytes.",
        empty=_NOT_RECORDED,
    )
    peak_share_pct: float | None = recorded(Roofs, "peak_share_pct")
    hardware_share_pct: float | None = recorded(Roofs, "hardware_share_pct")
    why_uncounted: str | None = recorded(Roofs, "why_uncounted")
    datasheet_share_pct: float | None = column(
        "Model FLOPs per second of a GPU, as a share of the peak on its datasheet, %.",
        empty=f"{_NOT_RECORDED}, or the datasheet is not known here",
    )
    energy_net_per_item_j: float | None = recorded(Efficiency, "energy_net_per_item_j")
    energy_per_epoch_j: float | None = recorded(Efficiency, "energy_per_epoch_j")
    energy_disagreement_pct: float | None = recorded(Efficiency, "energy_disagreement_pct")
    device_names: str | None = column("Names of the devices, separated by ';'.")
    device_uuids: str | None = column(
        "UUIDs of the devices, sorted, separated by ';'.", empty=_ON_CPU
    )
    hosts: str | None = column("Names of the nodes, separated by ';'.")
    slurm_job: str | None = column(
        "Number of the Slurm job; the cells of a group share one.", empty=_NO_SLURM
    )
    slurm_partition: str | None = column("Partition of the Slurm job.", empty=_NO_SLURM)
    slurm_nodes: str | None = column(
        "Slurm's names of the job's nodes, separated by ';'.", empty=_NO_SLURM
    )
    torch: str | None = column("Version of torch.", empty="it is not known")
    packages: str | None = column(
        "Versions of the packages that the strategy is built on, separated by ';'.",
        empty="it is built on torch alone, or they are not known",
    )
    driver: str | None = column(
        "Version of the NVIDIA driver.", empty="there is no NVIDIA driver, or it is not known"
    )
    git_commit: str | None = column(
        "Commit of the code that ran.", empty="the code was in no git repository"
    )
    cell_sha256: str | None = column("Checksum of the cell's definition.", empty=_NO_RESULT)
    code_sha256: str | None = column("Checksum of the code that ran.", empty=_NO_RESULT)
    path: str = column("Path of the cell's metrics.json, relative to the project's folder.")


class EpochRow(Section):
    """One epoch of one cell."""

    workload: str = column("Name of the workload.")
    strategy: str = column("Name of the strategy or variant.")
    gpus: int = column("Number of replicas.")
    seed: int = column("Seed of the run.")
    epoch: int = column("Number of the epoch; the first is 1.")
    loss: float = column(
        "Mean training loss of the epoch, each sample's before the update of its step."
    )
    accuracy: float | None = column("Test accuracy after the epoch, 0 to 1.", empty=_NOT_EVALUATED)
    test_loss: float | None = column(
        "Mean loss per item of the test samples after the epoch.",
        empty=f"{_NOT_EVALUATED}, or the workload has no test loss",
    )
    epoch_s: float | None = column("Training time of the epoch, s.", empty="it was not measured")
    evaluation_begin_monotonic_s: float | None = column(
        "Begin of the evaluation after the epoch, on the clock of telemetry.csv, s.",
        empty=_NOT_EVALUATED,
    )
    evaluation_end_monotonic_s: float | None = column(
        "End of the evaluation after the epoch, on the clock of telemetry.csv, s.",
        empty=_NOT_EVALUATED,
    )


# The main quantities of the report, in this order.
QUANTITIES = {
    name: replace(quantity, column=name)
    for name in CellRow.model_fields
    if (quantity := extra(CellRow, name, "quantity"))
}


def cell_row(planned: PlannedCell, parity: str, excluded: str, place: int | None = None) -> CellRow:
    """Return the row of one planned cell.

    Args:
        planned: the cell and its result.
        parity: the gate's verdict on its strategy and GPU count.
        excluded: why it takes no part in comparisons; empty if it does.
        place: its planned place, used if its result does not record one.
    """
    cell = planned.cell
    values: dict[str, Any] = {
        **_shared(cell),
        "lane": lane_of(cell.options),
        "precision": cell.definition.precision,
        "batchnorm": cell.definition.batchnorm_statistics,
        "unit": cell.definition.unit,
        "epochs": cell.definition.epochs,
        "outcome": planned.outcome,
        "excluded": excluded or None,
        "parity": parity,
        "place": place,
        "path": str(cell.folder / "metrics.json"),
    }
    if planned.metrics:
        values |= {"stale": planned.stale} | _measured(planned.metrics)
    return CellRow.model_validate(dict.fromkeys(CellRow.model_fields) | values)


def _measured(metrics: Metrics) -> dict[str, Any]:
    """Return the columns that come from a result."""
    failure, times = metrics.failure, metrics.time_s
    steady = metrics.windows.steady_monotonic_s if metrics.windows else (None, None)
    loss, accuracy, test_loss = metrics.loss, metrics.accuracy, metrics.test_loss
    versions = metrics.environment.get("versions", {})
    packages = metrics.cell.packages
    epochs_s = times.epochs_s if times else []
    values = {
        **_shared(metrics.throughput),
        **_shared(times),
        **_shared(metrics.efficiency),
        "status": metrics.status,
        "device_faults": _join(names_of_rules(metrics.device_faults)),
        "device_fault_reasons": "; ".join(metrics.device_faults),
        "labels": _join(names_of_rules(metrics.labels)),
        "label_reasons": "; ".join(metrics.labels),
        "unknown": _join(unchecked_rules(metrics.unknown)),
        "unknown_reasons": "; ".join(metrics.unknown),
        "failure": failure.exception if failure else None,
        "failure_phase": failure.phase if failure else None,
        "failure_rank": failure.rank if failure else None,
        "started_at": metrics.provenance.get("started_at"),
        "steady_begin_monotonic_s": steady[0],
        "steady_end_monotonic_s": steady[1],
        "final_loss": loss.final if loss else None,
        "final_accuracy": accuracy.final if accuracy else None,
        "final_test_loss": test_loss.final if test_loss else None,
        "epoch_s_mean": fmean(epochs_s) if epochs_s else None,
        **_step_parts(metrics),
        **{key: _most(metrics.host, key) for key in HOST_COLUMNS},
        **{key: _least(metrics.host, key) for key in ("cpus", "torch_threads", "cpu_quota")},
        "cpu_throttled_pct": max(
            _all_known(throttled_periods_pct(use) for use in metrics.host), default=None
        ),
        **_memory_and_peak(metrics),
        **{key: _peak(metrics.devices, key) for key in CellRow.model_fields if "peak_bytes" in key},
        "device_names": _join(device.name for device in metrics.devices),
        "device_uuids": _join(sorted(device.uuid or "" for device in metrics.devices)),
        "hosts": _join(sorted({device.node for device in metrics.devices})),
        "slurm_job": metrics.slurm and metrics.slurm.job_id,
        "slurm_partition": metrics.slurm and metrics.slurm.partition,
        "slurm_nodes": metrics.slurm and _join(metrics.slurm.nodes),
        "torch": versions.get("torch"),
        "packages": _join(f"{name} {versions[name]}" for name in packages if name in versions),
        "driver": metrics.environment.get("driver"),
        "git_commit": metrics.provenance.get("git_commit"),
        "cell_sha256": metrics.cell_sha256,
        "code_sha256": metrics.code_sha256,
    }
    recorded = metrics.provenance.get("planned_place")
    return values if recorded is None else values | {"place": recorded}


def epoch_rows(metrics: Metrics) -> Iterator[EpochRow]:
    """Yield one row per epoch whose loss is known."""
    accuracies = metrics.accuracy.per_epoch if metrics.accuracy else []
    test_losses = metrics.test_loss.per_epoch if metrics.test_loss else []
    seconds = metrics.time_s.epochs_s if metrics.time_s else []
    evaluations = metrics.windows.evaluations_monotonic_s if metrics.windows else []
    for index, loss in enumerate(metrics.loss.per_epoch if metrics.loss else []):
        yield EpochRow(
            workload=metrics.cell.workload,
            strategy=metrics.cell.strategy,
            gpus=metrics.cell.gpus,
            seed=metrics.cell.seed,
            epoch=index + 1,
            loss=loss,
            accuracy=_at(accuracies, index),
            test_loss=_at(test_losses, index),
            epoch_s=_at(seconds, index),
            evaluation_begin_monotonic_s=_at([begin for begin, _ in evaluations], index),
            evaluation_end_monotonic_s=_at([end for _, end in evaluations], index),
        )


def _shared(section: Section | Cell | None) -> dict[str, Any]:
    """Return the fields that a section of a result shares with a row."""
    if section is None:
        return {}
    names = type(section).model_fields.keys() & CellRow.model_fields.keys()
    return {name: getattr(section, name) for name in names}


def _memory_and_peak(metrics: Metrics) -> dict[str, Any]:
    """Return the columns that compare a cell with its devices and with ZeRO's formulas."""
    capacities = _all_known(device.memory_total_bytes for device in metrics.devices)
    values: dict[str, Any] = {"memory_capacity_bytes": min(capacities, default=None)}
    if memory := metrics.memory:
        measured = memory.measured
        values["state_bytes"] = max((state.device_bytes for state in measured), default=None)
        values["state_predicted_bytes"] = memory.predicted.device_bytes
        values["state_host_bytes"] = max((state.host_bytes for state in measured), default=None)
    if metrics.roofs and metrics.devices:
        roofs = metrics.roofs
        name, precision = metrics.devices[0].name, metrics.cell.definition.precision
        promised = datasheet_tflops(name, precision)
        values["peak_share_pct"] = roofs.peak_share_pct
        values["hardware_share_pct"] = roofs.hardware_share_pct
        values["why_uncounted"] = roofs.why_uncounted
        if promised and roofs.achieved_tflops is not None:
            values["datasheet_share_pct"] = 100 * roofs.achieved_tflops / promised
    return values


def _peak(devices: Sequence[Device], key: str) -> int | None:
    """Return the largest value of all devices; None if any device has none."""
    return max(_all_known(getattr(device, key) for device in devices), default=None)


def _step_parts(metrics: Metrics) -> dict[str, Any]:
    """Return where a step's time goes on the rank that waits longest for its host."""
    split, wait_pct = slowest_host(metrics.profile), host_wait_pct(metrics)
    if split is None or metrics.throughput is None or wait_pct is None:
        return {}
    step_ms = metrics.throughput.step_ms_mean
    return {
        "compute_ms": split.compute_ms,
        "exposed_communication_ms": split.exposed_communication_ms,
        "data_ms": split.data_ms,
        "host_wait_ms": wait_pct / 100 * step_ms,
        "host_wait_pct": wait_pct,
        "exposed_communication_pct": 100 * split.exposed_communication_ms / step_ms,
    }


def _most(host: Sequence[HostUse], key: str) -> float | None:
    """Return the largest value of all ranks; None if any rank has none."""
    return max(_all_known(getattr(use, key) for use in host), default=None)


def _least(host: Sequence[HostUse], key: str) -> float | None:
    return min(_all_known(getattr(use, key) for use in host), default=None)


def _all_known(values: Iterable[Any]) -> list[Any]:
    """Return the values as a list; an empty one if any value is None."""
    each = list(values)
    return [] if None in each else each


def _join(names: Iterable[str]) -> str:
    return ";".join(names)


def _at(values: Sequence[float], index: int) -> float | None:
    return values[index] if index < len(values) else None
