"""cells.csv and epochs.csv: one row per planned cell, and one row per epoch of a cell.

The models are the tables' data dictionary. A column's name contains its unit. Its field says what
it is, when it is empty and, if the report shows it, how it is labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import Field

from shardmark.cells import Cell
from shardmark.config.schema import Section
from shardmark.measurement.datasheet import datasheet_tflops
from shardmark.measurement.labels import (
    exposed_communication_pct,
    host_wait_pct,
    throttled_periods_pct,
)
from shardmark.metrics import Device, HostUse, Metrics, ModelState, StepSplit
from shardmark.quantities import Quantity
from shardmark.results.lanes import Lane, lane_of
from shardmark.results.matrix import PlannedCell
from shardmark.strategies import STRATEGIES

HOST_COLUMNS = ("launching_cpu_pct", "involuntary_switches_per_s", "cpu_pressure_pct")
# The parts of a profiled step; they add up to it.
STEP_PARTS = ("compute_ms", "exposed_communication_ms", "data_ms", "host_gap_ms")

NOT_REACHED = "the cell did not get this far"
_NO_ENERGY = f"{NOT_REACHED}, or no energy counter could be read (CPUs, short windows)"
_NO_PROFILE = f"{NOT_REACHED}, or measure.profile is false"
_NO_SAMPLE = f"{NOT_REACHED}, or no sample fell into the window"
_FEW_STEPS = f"{NOT_REACHED}, or the window has fewer than 20 steps"
_ON_CPU = f"{NOT_REACHED}, or it ran on a CPU"
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


class CellRow(Section):
    """One planned cell: what it is, how it ended, what was measured. Empty means not measured."""

    run: str = column("name of the matrix")
    workload: str = column("name of the workload")
    strategy: str = column("name of the strategy or variant in the matrix")
    base: str = column("the strategy that a variant is based on; else the strategy itself")
    lane: Lane = column(
        "same_arithmetic (float32 parameters, gradients, reduction and optimizer state), "
        "as_recommended (the framework's own mixed precision) or other_arithmetic"
    )
    gpus: int = column("replicas of the cell")
    nodes: int = column("machines the cell spans")
    seed: int = column("the run: initial weights, data order, augmentation, dropout")
    outcome: str = column(
        "how the cell ended: ok, device fault (ok, but a device fault excludes it), stale (ok, "
        "with earlier code), oom, timeout, diverged, failed, refused (its file does not count), "
        "unsupported or missing"
    )
    excluded: str | None = column(
        "why the cell takes no part in comparisons: the device faults, an outcome that is not ok, "
        "not training, or the parity gate's verdict",
        empty="the cell takes part",
    )
    status: str | None = column(
        "outcome of the run itself: ok, oom, timeout, diverged, failed or unsupported",
        empty=_NO_RESULT,
    )
    device_faults: str | None = column(
        "the faults of its devices, each as '<rule>: <reason>', separated by ';'",
        empty="there is none",
    )
    unknown: str | None = column(
        "the rules and labels that could not be checked, and why, separated by ';'",
        empty="all could be checked",
    )
    labels: str | None = column(
        "what explains its figures and excludes nothing, each as '<label>: <reason>', separated "
        "by ';'",
        empty="there is none",
    )
    stale: bool | None = column("whether earlier code made the result", empty=_NO_RESULT)
    failure: str | None = column("why the cell is not ok", empty="the cell is ok")
    failure_phase: str | None = column(
        "the phase in which it failed", empty="the cell is ok, or no rank reported it"
    )
    failure_rank: int | None = column(
        "the rank that failed first", empty="the cell is ok, or no rank reported it"
    )
    parity: str = column(
        "verdict of the parity gate at this GPU count: passed, failed, error, unsupported, missing"
    )
    place: int | None = column(
        "planned place in the order of the cells; 0 starts first", empty="it was not recorded"
    )
    started_at: str | None = column("when the cell started", empty="it was not recorded")
    scaling: str = column("strong (fixed global batch) or weak (fixed batch per GPU)")
    global_batch_size: int = column("images per step over all replicas")
    per_gpu_batch_size: int = column("images per step of one replica")
    precision: str = column("fp32, tf32, bf16 or fp16")
    batchnorm: str = column("local or sync")
    device: str = column("cuda or cpu")
    epochs: int = column("epochs asked for")
    images_per_s: float | None = column(
        "throughput of the steady state, slowest rank",
        Quantity("Throughput", "images/s", "throughput", better="higher"),
    )
    training_s: float | None = column(
        "all epochs without evaluation, s",
        Quantity("Training time", "s", "training_time", better="lower"),
    )
    memory_used_peak_bytes: int | None = column(
        "peak in the steady window of the fullest device: NVML's memory used, or the resident "
        "memory of the cell's processes, bytes",
        Quantity(
            "Memory peak",
            "GiB",
            "memory",
            scale=2**-30,
            better="lower",
            label_on_cpu="Memory peak (resident)",
        ),
        empty=_NO_SAMPLE,
    )
    energy_per_image_j: float | None = column(
        "by the energy counter, all devices, J",
        Quantity("Energy", "J/image", "energy", better="lower"),
        empty=_NO_ENERGY,
    )
    power_w: float | None = column(
        "mean power of all devices together, W", Quantity("Power", "W", "power"), empty=_NO_ENERGY
    )
    utilization_pct: float | None = column(
        "mean over devices and the steady window: NVML's GPU utilisation, or the share of all CPU "
        "cores, %",
        Quantity("GPU utilisation", "%", "utilisation", label_on_cpu="CPU utilisation"),
        empty=_NO_SAMPLE,
    )
    final_loss: float | None = column(
        "mean training loss of the last epoch", Quantity("Final loss", "", "final_loss")
    )
    final_accuracy: float | None = column(
        "test accuracy after the last epoch, 0 ... 1",
        Quantity("Test accuracy", "%", "accuracy", scale=100.0, better="higher"),
    )
    images_per_s_per_gpu: float | None = column("throughput per replica")
    step_ms_mean: float | None = column("mean step of the slowest rank, ms")
    step_ms_p50: float | None = column("median step, ms")
    step_ms_p90: float | None = column("90th percentile of the steps, ms")
    step_ms_p99: float | None = column("99th percentile of the steps, ms")
    steps: int | None = column("steps of the steady window")
    window_s: float | None = column("length of the steady window, s")
    drift_pct: float | None = column(
        "how much slower the window's last third is than its first, by a straight line, %",
        empty=_FEW_STEPS,
    )
    drift_error_pct: float | None = column("the drift's standard error, %", empty=_FEW_STEPS)
    steady_begin_monotonic_s: float | None = column(
        "begin of the steady window, on the clock of telemetry.csv, s"
    )
    steady_end_monotonic_s: float | None = column("its end, on the same clock, s")
    half_width_pct: float | None = column(
        "half-width of the 95 % confidence interval of the mean step, from 20 batch means, % of it",
        empty=_FEW_STEPS,
    )
    warmup_steps: int | None = column("steps before the window")
    warmup_converged: bool | None = column("whether step times settled before the cap")
    epoch_s_mean: float | None = column("mean training time per epoch, s")
    evaluation_s: float | None = column("all evaluations, s")
    measurement_s: float | None = column("warm-up and steady window, s")
    total_s: float | None = column("from the launch to the end of the processes, s")
    imports_s: float | None = column("process start and imports, s")
    process_group_s: float | None = column("joining the process group, s")
    probe_s: float | None = column("the short probe of the devices, s")
    data_s: float | None = column("loading the images, s")
    build_s: float | None = column("building and wrapping the model, s")
    first_step_s: float | None = column("the first step, a part of the training, s")
    inspection_s: float | None = column("the step from which settings are read back, s")
    profile_s: float | None = column("the profiled steps, s", empty=_NO_PROFILE)
    other_s: float | None = column("what belongs to no phase, s")
    shutdown_s: float | None = column("from the last measurement to the end, s")
    compute_ms: float | None = column(
        "of a profiled step, mean over ranks: the device computes, ms", empty=_NO_PROFILE
    )
    exposed_communication_ms: float | None = column(
        "of a profiled step: the device communicates and computes nothing, ms", empty=_NO_PROFILE
    )
    data_ms: float | None = column(
        "of a profiled step: the device makes or awaits the batch, ms", empty=_NO_PROFILE
    )
    host_gap_ms: float | None = column(
        "of a profiled step: the device has nothing to do, ms", empty=_NO_PROFILE
    )
    host_wait_pct: float | None = column(
        "share of a timed step in which the device has nothing to do, on the rank that waits "
        "longest for its host: from the profile, less what tracing added, %",
        empty=_NO_PROFILE,
    )
    exposed_communication_pct: float | None = column(
        "share of a traced step in which that rank's device communicates and computes nothing, %; "
        "the other ranks' collectives also wait for it",
        empty=_NO_PROFILE,
    )
    launching_cpu_pct: float | None = column(
        "CPU seconds per wall second of the threads that launch the device's work, of the busiest "
        "rank, %; 100 is one core that is always busy"
    )
    involuntary_switches_per_s: float | None = column(
        "times per second that the kernel took the CPU away from these threads, of the rank that "
        "lost it most often"
    )
    cpu_pressure_pct: float | None = column(
        "share of the window in which some task of a machine waited for a CPU, of the machine "
        "under most pressure, %",
        empty=f"{NOT_REACHED}, or the kernel does not count it",
    )
    cpus: int | None = column("CPUs that a rank may run on, of the rank with the fewest")
    torch_threads: int | None = column(
        "CPU threads of torch in a rank, of the rank with the fewest"
    )
    cpu_quota: float | None = column("limit of a rank's control groups on CPU time, in CPUs")
    cpu_throttled_pct: float | None = column(
        "share of that quota's periods in the window in which it ran out, of the rank that lost "
        "most, %; 0 without a quota"
    )
    gc_collections: int | None = column(
        "collections of Python's garbage collector in the window, on all ranks"
    )
    torch_allocated_peak_bytes: int | None = column(
        "peak of torch's allocated memory on the fullest device, bytes", empty=_ON_CPU
    )
    torch_reserved_peak_bytes: int | None = column(
        "peak of what torch's allocator reserved on the fullest device, bytes", empty=_ON_CPU
    )
    memory_capacity_bytes: int | None = column(
        "memory of the smallest device, bytes", empty=_NOT_RECORDED
    )
    state_bytes: int | None = column(
        "parameters, gradients and optimizer state on the fullest rank, bytes", empty=_NOT_RECORDED
    )
    state_predicted_bytes: int | None = column(
        "what ZeRO's formulas predict for them, bytes", empty=_NOT_RECORDED
    )
    peak_share_pct: float | None = column(
        "model FLOPs per second of a GPU, as a share of the peak that the probe measured, %",
        empty=_NOT_RECORDED,
    )
    datasheet_share_pct: float | None = column(
        "the same, as a share of the peak on the device's datasheet, %",
        empty=f"{_NOT_RECORDED}, or the datasheet is not known here",
    )
    energy_net_per_image_j: float | None = column(
        "energy_per_image_j less what the devices take when idle, J", empty=_NO_ENERGY
    )
    energy_per_epoch_j: float | None = column("energy of an epoch's steps, J", empty=_NO_ENERGY)
    energy_disagreement_pct: float | None = column(
        "difference between the integral of sampled power and the counter, %", empty=_NO_ENERGY
    )
    device_names: str | None = column("names of the devices, separated by ';'")
    device_uuids: str | None = column("their UUIDs, sorted, separated by ';'")
    hosts: str | None = column("names of the nodes, separated by ';'")
    slurm_job: str | None = column(
        "number of the Slurm job; the cells of a group share one", empty=_NO_SLURM
    )
    slurm_partition: str | None = column("its partition", empty=_NO_SLURM)
    slurm_nodes: str | None = column(
        "its nodes, by Slurm's names, separated by ';'", empty=_NO_SLURM
    )
    torch: str | None = column("version", empty="it is not known")
    packages: str | None = column(
        "versions of the packages that the strategy is built on, separated by ';'",
        empty="it is built on torch alone, or they are not known",
    )
    driver: str | None = column(
        "version of the NVIDIA driver", empty="there is no NVIDIA driver, or it is not known"
    )
    git_commit: str | None = column(
        "commit of the code that ran", empty="the code was in no git repository"
    )
    cell_sha256: str | None = column("checksum of the cell's definition", empty=_NO_RESULT)
    code_sha256: str | None = column("checksum of the code that ran", empty=_NO_RESULT)
    path: str = column("where its metrics.json belongs, from the project's folder")


class EpochRow(Section):
    """One epoch of one cell."""

    workload: str = column("name of the workload")
    strategy: str = column("name of the strategy or variant")
    gpus: int = column("replicas of the cell")
    seed: int = column("the run")
    epoch: int = column("counted from 1")
    loss: float = column("mean training loss over the epoch, before each update")
    accuracy: float | None = column("test accuracy after the epoch, 0 ... 1", empty=_NOT_EVALUATED)
    epoch_s: float | None = column("training time of the epoch, s", empty="it was not measured")
    evaluation_begin_monotonic_s: float | None = column(
        "begin of the evaluation after it, on the clock of telemetry.csv, s", empty=_NOT_EVALUATED
    )
    evaluation_end_monotonic_s: float | None = column(
        "its end, on the same clock, s", empty=_NOT_EVALUATED
    )


def extra(model: type[Section], name: str, key: str) -> Any:
    """Return the ``empty`` or ``quantity`` that ``column`` was called with for a column."""
    more = model.model_fields[name].json_schema_extra
    return more[key] if isinstance(more, dict) else None


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
        "batchnorm": cell.definition.batchnorm,
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
    loss, accuracy = metrics.loss, metrics.accuracy
    versions = metrics.environment.get("versions", {})
    packages = STRATEGIES[metrics.cell.base].packages
    epochs_s = times.epochs_s if times else []
    values = {
        **_shared(metrics.throughput),
        **_shared(times),
        **_shared(metrics.efficiency),
        "status": metrics.status,
        "device_faults": "; ".join(metrics.device_faults),
        "labels": "; ".join(metrics.labels),
        "unknown": "; ".join(metrics.unknown),
        "failure": failure.exception if failure else None,
        "failure_phase": failure.phase if failure else None,
        "failure_rank": failure.rank if failure else None,
        "started_at": metrics.provenance.get("started_at"),
        "steady_begin_monotonic_s": steady[0],
        "steady_end_monotonic_s": steady[1],
        "final_loss": loss.final if loss else None,
        "final_accuracy": accuracy.final if accuracy else None,
        "epoch_s_mean": fmean(epochs_s) if epochs_s else None,
        **{part: _mean_over_ranks(metrics.profile, part) for part in STEP_PARTS},
        "host_wait_pct": host_wait_pct(metrics),
        "exposed_communication_pct": exposed_communication_pct(metrics),
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
        values["state_bytes"] = max(map(_state, memory.measured), default=None)
        values["state_predicted_bytes"] = _state(memory.predicted)
    if metrics.roofs and metrics.devices:
        roofs = metrics.roofs
        name, precision = metrics.devices[0].name, metrics.cell.definition.precision
        promised = datasheet_tflops(name, precision)
        values["peak_share_pct"] = roofs.peak_share_pct
        values["datasheet_share_pct"] = promised and 100 * roofs.achieved_tflops / promised
    return values


def _state(state: ModelState) -> int:
    return state.parameters_bytes + state.gradients_bytes + state.optimizer_state_bytes


def _peak(devices: Sequence[Device], key: str) -> int | None:
    """Return the largest value of all devices; None if any device has none."""
    return max(_all_known(getattr(device, key) for device in devices), default=None)


def _mean_over_ranks(profile: Sequence[StepSplit], part: str) -> float | None:
    return fmean(getattr(split, part) for split in profile) if profile else None


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
