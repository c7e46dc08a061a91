"""The tidy tables that everything downstream reads: one row a cell, one row an epoch of a cell.

The models are the tables' data dictionary: a column's name carries its unit, its description says
what it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from pydantic import Field

from shardmark.cells import ParityCase
from shardmark.config import Section
from shardmark.errors import UserError
from shardmark.measurement.labels import (
    cell_labels,
    exposed_communication_pct,
    host_wait_pct,
    throttled_periods_pct,
)
from shardmark.metrics import Device, HostUse, Metrics, Parity, StepSplit, read_parity

Row = TypeVar("Row", bound=Section)
HOST_FIGURES = ("launching_cpu_pct", "involuntary_switches_per_s", "cpu_pressure_pct")
# What a profiled step is made of; the parts add up to it.
STEP_PARTS = ("compute_ms", "exposed_communication_ms", "data_ms", "host_gap_ms")


class CellRow(Section):
    """One cell: what it was, how it ended, what was measured. Empty: not measured."""

    run: str = Field(description="name of the matrix")
    workload: str = Field(description="name of the workload")
    strategy: str = Field(description="name of the strategy or variant in the matrix")
    base: str = Field(description="the strategy a variant is of; else the strategy itself")
    gpus: int = Field(description="replicas of the cell")
    nodes: int = Field(description="machines the cell spanned")
    seed: int = Field(description="the run: initial weights, data order, augmentation, dropout")
    status: str = Field(description="ok, oom, timeout, diverged, failed or unsupported")
    validity: str = Field(description="valid, or suspect by a written rule")
    validity_reasons: str = Field(description="the rules that fired, separated by ';'")
    unknown: str = Field(
        description="the rules and labels that could not be checked, and why, separated by ';'"
    )
    failure: str | None = Field(description="why the cell is not ok")
    failure_phase: str | None = Field(description="the phase in which it failed")
    failure_rank: int | None = Field(description="the rank that failed first")
    parity: str = Field(
        description="verdict of the parity gate at this GPU count: passed, failed, error, "
        "unsupported, missing"
    )
    scaling: str = Field(description="strong (fixed global batch) or weak (fixed batch a GPU)")
    global_batch_size: int = Field(description="images a step over all replicas")
    per_gpu_batch_size: int = Field(description="images a step of one replica")
    precision: str = Field(description="fp32, tf32, bf16 or fp16")
    batchnorm: str = Field(description="local or sync")
    device: str = Field(description="cuda or cpu")
    epochs: int = Field(description="epochs asked for")
    images_per_s: float | None = Field(description="throughput of the steady state, slowest rank")
    images_per_s_per_gpu: float | None = Field(description="the same, a replica")
    step_ms_mean: float | None = Field(description="mean step of the slowest rank, ms")
    step_ms_p50: float | None = Field(description="median step, ms")
    step_ms_p90: float | None = Field(description="90th percentile of the steps, ms")
    step_ms_p99: float | None = Field(description="99th percentile of the steps, ms")
    steps: int | None = Field(description="steps of the steady window")
    window_s: float | None = Field(description="length of the steady window, s")
    drift_pct: float | None = Field(
        description="how much slower the window's last third is than its first, %"
    )
    window_complete: bool | None = Field(description="whether it is as long as was asked for")
    warmup_steps: int | None = Field(description="steps before the window")
    warmup_converged: bool | None = Field(description="whether step times settled before the cap")
    final_loss: float | None = Field(description="mean training loss of the last epoch")
    final_accuracy: float | None = Field(description="test accuracy after the last epoch, 0 ... 1")
    epoch_s_mean: float | None = Field(description="mean training time of an epoch, s")
    training_s: float | None = Field(description="all epochs, evaluation left out, s")
    evaluation_s: float | None = Field(description="all evaluations, s")
    measurement_s: float | None = Field(description="warm-up and steady window, s")
    total_s: float | None = Field(description="from the launch to the end of the processes, s")
    imports_s: float | None = Field(description="process start and imports, s")
    process_group_s: float | None = Field(description="joining the process group, s")
    probe_s: float | None = Field(description="the short probe of the devices, s")
    data_s: float | None = Field(description="loading the images, s")
    build_s: float | None = Field(description="building and wrapping the model, s")
    first_step_s: float | None = Field(description="the first step, a part of the training, s")
    inspection_s: float | None = Field(description="the step from which settings are read back, s")
    profile_s: float | None = Field(description="the profiled steps, s")
    other_s: float | None = Field(description="what no phase accounts for, s")
    shutdown_s: float | None = Field(description="from the last measurement to the end, s")
    compute_ms: float | None = Field(
        description="of a profiled step, mean over ranks: the device computes, ms"
    )
    exposed_communication_ms: float | None = Field(
        description="of a profiled step: the device communicates and computes nothing, ms"
    )
    data_ms: float | None = Field(
        description="of a profiled step: the device makes or awaits the batch, ms"
    )
    host_gap_ms: float | None = Field(
        description="of a profiled step: the device has nothing to do, ms"
    )
    host_wait_pct: float | None = Field(
        description="share of a timed step in which the device has nothing to do, on the rank "
        "that waits longest for its host: from the profile, less what tracing added, %"
    )
    exposed_communication_pct: float | None = Field(
        description="share of a traced step in which that rank's device communicates and "
        "computes nothing, %; the other ranks' collectives also wait for it"
    )
    launching_cpu_pct: float | None = Field(
        description="CPU seconds per wall second of the threads that launch the device's work, of "
        "the busiest rank, %; 100 is a core that is always busy"
    )
    involuntary_switches_per_s: float | None = Field(
        description="times a second that the kernel took the CPU away from these threads, of the "
        "rank that lost it most often"
    )
    cpu_pressure_pct: float | None = Field(
        description="share of the window in which some task of a machine waited for a CPU, of the "
        "machine under most pressure, %"
    )
    cpus: int | None = Field(description="CPUs that a rank may run on, of the one with the fewest")
    torch_threads: int | None = Field(
        description="CPU threads of torch in a rank, of the one with the fewest"
    )
    cpu_quota: float | None = Field(
        description="limit of a rank's control groups on CPU time, in CPUs"
    )
    cpu_throttled_pct: float | None = Field(
        description="share of that quota's periods in the window in which it ran out, of the rank "
        "it held back most, %; 0 without a quota"
    )
    gc_collections: int | None = Field(
        description="collections of Python's garbage collector in the window, on all ranks"
    )
    labels: str = Field(description="what explains the figures and excludes none, separated by ';'")
    utilization_pct: float | None = Field(
        description="mean over devices and the steady window: NVML's GPU utilisation, or the share "
        "of all CPU cores, %"
    )
    memory_used_peak_bytes: int | None = Field(
        description="peak in the steady window of the fullest device: NVML's memory used, or the "
        "resident memory of the cell's processes, bytes"
    )
    torch_allocated_peak_bytes: int | None = Field(
        description="peak of torch's allocated memory on the fullest device, bytes"
    )
    torch_reserved_peak_bytes: int | None = Field(
        description="peak of what torch's allocator reserved on the fullest device, bytes"
    )
    power_w: float | None = Field(description="mean power of all devices together, W")
    energy_per_image_j: float | None = Field(description="by the energy counter, all devices, J")
    energy_net_per_image_j: float | None = Field(
        description="the same, less what the devices take when idle, J"
    )
    energy_per_epoch_j: float | None = Field(description="energy of an epoch's steps, J")
    energy_disagreement_pct: float | None = Field(
        description="the integral of sampled power against the counter, %"
    )
    device_names: str = Field(description="names of the devices, separated by ';'")
    device_uuids: str = Field(description="their UUIDs, sorted, separated by ';'")
    hosts: str = Field(description="names of the nodes, separated by ';'")
    slurm_job: str | None = Field(
        description="number of the Slurm job; the cells of a group share one"
    )
    slurm_partition: str | None = Field(description="its partition")
    slurm_nodes: str | None = Field(description="its nodes, by Slurm's names, separated by ';'")
    torch: str | None = Field(description="version")
    deepspeed: str | None = Field(description="version")
    fairscale: str | None = Field(description="version")
    driver: str | None = Field(description="version of the NVIDIA driver")
    git_commit: str | None = Field(description="commit of the code that ran")
    cell_sha256: str = Field(description="checksum of the cell's definition")
    code_sha256: str = Field(description="checksum of the code that ran")
    path: str = Field(description="the metrics.json, from the project's folder")


class EpochRow(Section):
    """One epoch of one cell."""

    workload: str = Field(description="name of the workload")
    strategy: str = Field(description="name of the strategy or variant")
    gpus: int = Field(description="replicas of the cell")
    seed: int = Field(description="the run")
    epoch: int = Field(description="counted from 1")
    loss: float = Field(description="mean training loss over the epoch, before each update")
    accuracy: float | None = Field(description="test accuracy after the epoch, 0 ... 1")
    epoch_s: float | None = Field(description="training time of the epoch, s")


def cell_row(metrics: Metrics, parity: str) -> CellRow:
    """The row of one result; ``parity`` is the gate's verdict on its strategy and GPU count."""
    cell, failure = metrics.cell, metrics.failure
    times, loss, accuracy = metrics.time_s, metrics.loss, metrics.accuracy
    throughput, efficiency = metrics.throughput, metrics.efficiency
    versions = metrics.environment.get("versions", {})
    epochs_s = times.epochs_s if times else []
    values: dict[str, Any] = {
        **_fields(cell, CellRow),
        **_fields(throughput, CellRow),
        **_fields(times, CellRow),
        **_fields(efficiency, CellRow),
        "precision": cell.definition.precision,
        "batchnorm": cell.definition.batchnorm,
        "epochs": cell.definition.epochs,
        "status": metrics.status,
        "validity": metrics.validity,
        "validity_reasons": "; ".join(metrics.validity_reasons),
        "unknown": "; ".join(metrics.unknown),
        "failure": failure.exception if failure else None,
        "failure_phase": failure.phase if failure else None,
        "failure_rank": failure.rank if failure else None,
        "parity": parity,
        "final_loss": loss.final if loss else None,
        "final_accuracy": accuracy.final if accuracy else None,
        "epoch_s_mean": fmean(epochs_s) if epochs_s else None,
        **{part: _mean_over_ranks(metrics.profile, part) for part in STEP_PARTS},
        "host_wait_pct": host_wait_pct(metrics),
        "exposed_communication_pct": exposed_communication_pct(metrics),
        **{key: _most(metrics.host, key) for key in HOST_FIGURES},
        **{key: _least(metrics.host, key) for key in ("cpus", "torch_threads", "cpu_quota")},
        "cpu_throttled_pct": max(
            _all_known(throttled_periods_pct(use) for use in metrics.host), default=None
        ),
        "labels": "; ".join(cell_labels(metrics)),
        **{key: _peak(metrics.devices, key) for key in CellRow.model_fields if "peak_bytes" in key},
        "device_names": _joined(device.name for device in metrics.devices),
        "device_uuids": _joined(sorted(device.uuid or "" for device in metrics.devices)),
        "hosts": _joined(sorted({device.node for device in metrics.devices})),
        "slurm_job": metrics.slurm and metrics.slurm.job_id,
        "slurm_partition": metrics.slurm and metrics.slurm.partition,
        "slurm_nodes": metrics.slurm and _joined(metrics.slurm.nodes),
        "torch": versions.get("torch"),
        "deepspeed": versions.get("deepspeed"),
        "fairscale": versions.get("fairscale"),
        "driver": metrics.environment.get("driver"),
        "git_commit": metrics.provenance.get("git_commit"),
        "cell_sha256": metrics.cell_sha256,
        "code_sha256": metrics.code_sha256,
        "path": str(cell.folder / "metrics.json"),
    }
    # A cell that did not come so far has none of the rest.
    return CellRow.model_validate(dict.fromkeys(CellRow.model_fields) | values)


def epoch_rows(metrics: Metrics) -> Iterator[EpochRow]:
    """One row for each epoch whose loss is known."""
    accuracies = metrics.accuracy.per_epoch if metrics.accuracy else []
    seconds = metrics.time_s.epochs_s if metrics.time_s else []
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
        )


def parity_verdict(case: ParityCase, root: Path = Path()) -> Parity | None:
    """The gate's result on a case as it is defined now; None where there is none."""
    try:
        parity = read_parity(root / case.file)
    except UserError:
        return None
    return parity if parity.case_sha256 == case.fingerprint() else None


def to_csv(model: type[Row], rows: Iterable[Row]) -> str:
    """The rows as CSV with a header; null is empty, numbers keep all their digits."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(model.model_fields), lineterminator="\n")
    table.writeheader()
    table.writerows(row.model_dump() for row in rows)
    return text.getvalue()


def _fields(section: Section | None, model: type[Section]) -> dict[str, Any]:
    """What a section and a row have in common, by name."""
    if section is None:
        return {}
    shared = type(section).model_fields.keys() & model.model_fields.keys()
    return {key: getattr(section, key) for key in shared}


def _peak(devices: Sequence[Device], key: str) -> int | None:
    """The fullest device's; null as soon as one does not know."""
    peaks = [getattr(device, key) for device in devices]
    return max(peaks) if peaks and None not in peaks else None


def _mean_over_ranks(profile: Sequence[StepSplit], part: str) -> float | None:
    return fmean(getattr(split, part) for split in profile) if profile else None


def _most(host: Sequence[HostUse], key: str) -> float | None:
    """The largest of all ranks; null as soon as one does not know."""
    return max(_all_known(getattr(use, key) for use in host), default=None)


def _least(host: Sequence[HostUse], key: str) -> float | None:
    return min(_all_known(getattr(use, key) for use in host), default=None)


def _all_known(values: Iterable[float | None]) -> list[float]:
    """The values; none of them as soon as one is null."""
    each = list(values)
    known = [value for value in each if value is not None]
    return known if len(known) == len(each) else []


def _joined(names: Iterable[str]) -> str:
    return ";".join(names)


def _at(values: Sequence[float], index: int) -> float | None:
    return values[index] if index < len(values) else None
