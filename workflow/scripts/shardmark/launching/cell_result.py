"""Build a cell's metrics.json from the files that its processes wrote."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardmark.cells import Cell
from shardmark.codebase import SCRIPTS, code_of_cell, code_sha256
from shardmark.files import replacing
from shardmark.launching.launch import Ended
from shardmark.launching.node import NodeReport, telemetry_path
from shardmark.measurement.devices import read_samples, summarise_cell, summarise_device
from shardmark.measurement.environment import host_environment, provenance
from shardmark.measurement.roofs import compute_roofs
from shardmark.measurement.validity import judge
from shardmark.metrics import (
    Accuracy,
    Device,
    Environment,
    Failure,
    HeldOutLoss,
    Loss,
    Metrics,
    SlurmJob,
    Times,
)
from shardmark.training_result import RankResult, TrainingResult

ROOT = SCRIPTS.parents[1]
# The columns of steps.csv, and what each means.
STEP_COLUMNS = {
    "rank": "the process",
    "phase": "training, warmup or steady",
    "epoch": "counted from 0; the measurement goes on counting after the training",
    "step": "within the epoch, counted from 0",
    "step_ms": "its duration on the device",
}


def _with_site(cell: Cell, environment: Environment) -> Environment:
    """Return an environment with the site's variables added and its secrets removed."""
    variables = environment.get("variables", {}) | cell.site.environment
    secret = cell.site.secret_environment
    public = {name: value for name, value in variables.items() if name not in secret}
    return {**environment, "variables": public}


def bare_metrics(cell: Cell, status: Any, failure: Failure) -> Metrics:
    """Return a result without measurements, for a cell that did not complete."""
    return Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256=code_sha256(code_of_cell(cell)),
        status=status,
        failure=failure,
        environment=_with_site(cell, host_environment(cell.packages)),
        provenance=provenance(ROOT),
    )


def completed_metrics(cell: Cell, result: TrainingResult, ended: Ended, telemetry: Path) -> Metrics:
    """Return the result of a cell that ran to its end, or whose loss diverged."""
    metrics = bare_metrics(cell, "ok", Failure.plain("")).model_copy(update={"failure": None})
    inspected, throughput = result.inspected, result.throughput
    probes = [probe for rank in result.ranks for probe in rank.probes]
    devices: list[Device] = []
    roofs = None
    if throughput and inspected:
        for node in ended.nodes:
            samples = telemetry_path(telemetry, cell.nodes, node.index)
            rows = read_samples(samples) if cell.measure.sampler else {}
            devices += _summarise_devices(cell, result, rows, node)
        roofs = compute_roofs(
            probes,
            inspected.flops_per_item,
            inspected.hardware_flops_per_item,
            inspected.bytes_per_item,
            throughput.items_per_s_per_gpu,
            throughput.unit,
            inspected.why_uncounted,
        )
    update: dict[str, Any] = {
        "loss": Loss(per_epoch=result.loss, final=_last(result.loss)),
        "time_s": _phase_times(result, ended.nodes),
        "windows": result.windows,
        "throughput": throughput,
        "probes": probes,
        "roofs": roofs,
        "profile": [rank.profile for rank in result.ranks if rank.profile],
        "host": [rank.host for rank in result.ranks if rank.host],
        "devices": devices,
        "effective_config": inspected and inspected.effective_config,
        "memory": inspected and inspected.memory,
        "environment": _with_site(cell, {**metrics.environment, **result.environment}),
    }
    if cell.definition.test_samples:
        scores: dict[str, Any] = {"per_epoch": result.scores, "final": _last(result.scores)}
        if cell.definition.test_score == "loss":
            update["test_loss"] = HeldOutLoss(**scores)
        else:
            update["accuracy"] = Accuracy(**scores)
    if throughput:
        items = throughput.steps * cell.items_per_step
        epoch = cell.steps_per_epoch * cell.items_per_step
        update["efficiency"] = summarise_cell(devices, items, epoch)
    if result.diverged:
        failure = Failure(
            phase="training",
            rank=result.diverged.rank,
            exception=result.diverged.reason,
            log_tail=ended.log_tail,
        )
        update |= {"status": "diverged", "failure": failure}
    return judge(metrics.model_copy(update=update))


def slurm_job(ended: Ended) -> SlurmJob | None:
    """Return the Slurm job that a cell's processes ran in, if any."""
    job = ended.job
    if job is None:
        return None
    return SlurmJob(job_id=job.job_id, partition=job.partition, nodes=list(job.nodes))


def _summarise_devices(
    cell: Cell, result: TrainingResult, samples: dict[str, Any], node: NodeReport
) -> list[Device]:
    """Summarise each device of a node over the steady window of the node's first rank."""
    ranks = [rank for rank in result.ranks if rank.node == node.name]
    assert ranks[0].steady_monotonic_s
    begin, end = ranks[0].steady_monotonic_s
    if cell.device == "cpu":
        known = {"index": 0, "node": node.name, "kind": "cpu", "name": "processes of the cell"}
        return [summarise_device(samples.get("cpu", []), begin, end, known)]
    memory = {used.uuid: used for rank in ranks for used in rank.torch_memory}
    devices = []
    for index, (uuid, used) in enumerate(sorted(memory.items())):
        known = node.gpus[uuid] | {
            "index": index,
            "node": node.name,
            "kind": "gpu",
            "uuid": uuid,
            "torch_allocated_peak_bytes": used.allocated,
            "torch_reserved_peak_bytes": used.reserved,
            "torch_allocated_growth_bytes": used.growth,
            "torch_allocation_retries": used.retries,
        }
        own_pids = [rank.pid for rank in ranks if uuid in {one.uuid for one in rank.torch_memory}]
        devices.append(summarise_device(samples.get(uuid, []), begin, end, known, own_pids))
    return devices


def _phase_times(result: TrainingResult, nodes: list[NodeReport]) -> Times:
    """Return the seconds of every phase, on the node of rank 0.

    The time from writing the result to the end of the processes counts as shut-down.
    """
    node = next(node for node in nodes if node.name == result.ranks[0].node)
    phases = {f"{name}_s": seconds for name, seconds in result.phases_s.items()}
    first_step = phases.get("first_step_s")
    measurement_parts = [phases[name] for name in ("warmup_s", "steady_s") if name in phases]
    return Times.model_validate(
        {
            **phases,
            "training_s": phases.get("training_s", 0.0) + (first_step or 0.0),
            "measurement_s": sum(measurement_parts) if measurement_parts else None,
            "shutdown_s": node.at - result.left_at,
            "total_s": node.seconds,
            "epochs_s": result.epochs_s,
        }
    )


def write_steps(path: Path, ranks: Sequence[RankResult]) -> None:
    """Write every step of the training, the warm-up and the steady window, on every rank."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(STEP_COLUMNS)
        for rank, result in enumerate(ranks):
            for phase, epoch, step, duration in result.steps:
                writer.writerow([rank, phase, epoch, step, f"{duration:.4f}"])


def _last(values: list[float]) -> float | None:
    """Return the last value, if there is one."""
    return values[-1] if values else None
