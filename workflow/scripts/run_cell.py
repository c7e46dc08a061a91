"""Run one cell: launch its processes, judge how they ended, leave one valid metrics.json.

Exit status 0 for every outcome that is a result (ok, oom, timeout, diverged, failed, unsupported);
1 where there is none: a mistake of the set-up, or processes that something else killed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from shardmark.atomic import FULL, write_text
from shardmark.cells import Cell
from shardmark.codebase import SCRIPTS, code_of_cell, code_sha256
from shardmark.config import Section
from shardmark.effective_config import EffectiveConfig
from shardmark.errors import UserError
from shardmark.launching.endings import failure_of
from shardmark.launching.launch import Ended, launch
from shardmark.launching.node import NodeReport, telemetry_path
from shardmark.launching.scratch import CONTROLLER_STARTED, scratch_folder
from shardmark.measurement.devices import read_samples, summarise_cell, summarise_device
from shardmark.measurement.environment import host_environment, provenance
from shardmark.measurement.roofs import roofs_of
from shardmark.measurement.validity import judged
from shardmark.metrics import (
    Accuracy,
    Device,
    Failure,
    Loss,
    Memory,
    Metrics,
    Probe,
    StepSplit,
    Throughput,
    Times,
    Windows,
    read_metrics,
)
from shardmark.strategies import STRATEGIES

ROOT = SCRIPTS.parents[1]
SIDE_FILES = ("steps.csv", "telemetry*.csv")
T = TypeVar("T", bound=Section)


def run_cell(
    cell: Cell,
    folder: Path,
    *,
    limit_s: float | None = None,
    stall_s: float | None = None,
    script: Path | None = None,
) -> Metrics:
    """Run the cell to its end.

    Args:
        cell: the cell.
        folder: where its processes meet, and where steps.csv and telemetry.csv are left.
        limit_s: seconds after which its processes are ended.
        stall_s: seconds without any rank getting further after which they are.
        script: another script than the strategy's own; a test's, that trains otherwise on purpose.

    Raises:
        UserError: where there is no result to record.
    """
    if cell.unsupported:
        return outcome(cell, "unsupported", Failure.plain(cell.unsupported))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").write_text(cell.model_dump_json(by_alias=True))
    ended = launch(
        script or SCRIPTS / STRATEGIES[cell.base].script,
        ["--cell", str(folder / "cell.json"), "--scratch", str(folder)],
        cell,
        folder,
        telemetry=folder / "telemetry.csv" if cell.measure.sampler else None,
        limit_s=limit_s,
        stall_s=stall_s,
    )
    failed = failure_of(cell, ended)
    if failed is not None:
        return outcome(cell, *failed)
    found = json.loads((folder / "result.json").read_text())
    write_steps(folder / "steps.csv", found["ranks"])
    return completed(cell, found, ended, folder / "telemetry.csv")


def with_site(cell: Cell, environment: dict[str, Any]) -> dict[str, Any]:
    """An environment with the variables that the site names, whichever they are."""
    variables = environment.get("variables", {}) | cell.site.environment
    return environment | {"variables": variables}


def outcome(cell: Cell, status: Any, failure: Failure) -> Metrics:
    """The result of a cell that did not complete."""
    return Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256=code_sha256(code_of_cell(cell)),
        status=status,
        failure=failure,
        environment=with_site(cell, host_environment()),
        provenance=provenance(ROOT),
    )


def completed(cell: Cell, result: dict[str, Any], ended: Ended, telemetry: Path) -> Metrics:
    """The result of a cell that ran to its end, or whose loss diverged."""
    inspected = result["inspected"]
    metrics = outcome(cell, "ok", Failure.plain("")).model_copy(update={"failure": None})
    throughput = roofs = None
    probes = [Probe.model_validate(one) for rank in result["ranks"] for one in rank["probes"]]
    devices: list[Device] = []
    if result["throughput"] is not None:
        measured = result["throughput"]
        throughput = Throughput(
            **measured, images_per_s_per_gpu=measured["images_per_s"] / cell.gpus
        )
        for node in ended.nodes:
            samples = telemetry_path(telemetry, cell.nodes, node.index)
            rows = read_samples(samples) if cell.measure.sampler else {}
            devices += devices_of(cell, result, rows, node)
        roofs = roofs_of(
            probes,
            inspected["flops_per_image"],
            inspected["bytes_per_image"],
            throughput.images_per_s_per_gpu,
        )
    update: dict[str, Any] = {
        "loss": Loss(per_epoch=result["loss"], final=last(result["loss"])),
        "accuracy": Accuracy(per_epoch=result["accuracy"], final=last(result["accuracy"])),
        "time_s": times(result, ended.nodes),
        "windows": known(Windows, result["windows"]),
        "throughput": throughput,
        "probes": probes,
        "roofs": roofs,
        "profile": [
            StepSplit.model_validate(rank["profile"]) for rank in result["ranks"] if rank["profile"]
        ],
        "devices": devices,
        "effective_config": known(EffectiveConfig, inspected.get("effective_config")),
        "memory": known(Memory, inspected.get("memory")),
        "environment": with_site(cell, metrics.environment | result["environment"]),
    }
    if throughput is not None:
        images = throughput.steps * cell.global_batch_size
        epoch = cell.steps_per_epoch * cell.global_batch_size
        update["efficiency"] = summarise_cell(devices, images, epoch)
    if result["diverged"]:
        failure = Failure(
            phase="training", rank=None, exception=result["diverged"], log_tail=ended.log_tail
        )
        update |= {"status": "diverged", "failure": failure}
    return judged(metrics.model_copy(update=update))


def devices_of(
    cell: Cell, result: dict[str, Any], samples: dict[str, Any], node: NodeReport
) -> list[Device]:
    """Each device of a node once, over the steady window of the node's first rank."""
    ranks = [rank for rank in result["ranks"] if rank["node"] == node.name]
    begin, end = ranks[0]["begin_monotonic_s"], ranks[0]["end_monotonic_s"]
    if cell.device == "cpu":
        known = {"index": 0, "node": node.name, "kind": "cpu", "name": "processes of the cell"}
        return [summarise_device(samples.get("cpu", []), begin, end, known)]
    memory = {device["uuid"]: device for rank in ranks for device in rank["torch_memory"].values()}
    devices = []
    for index, (uuid, used) in enumerate(sorted(memory.items())):
        known = node.gpus[uuid] | {
            "index": index,
            "node": node.name,
            "kind": "gpu",
            "uuid": uuid,
            "torch_allocated_peak_bytes": used["allocated"],
            "torch_reserved_peak_bytes": used["reserved"],
        }
        own = [
            rank["pid"]
            for rank in ranks
            if any(device["uuid"] == uuid for device in rank["torch_memory"].values())
        ]
        devices.append(summarise_device(samples.get(uuid, []), begin, end, known, own))
    return devices


def times(result: dict[str, Any], nodes: list[NodeReport]) -> Times:
    """Seconds of every phase, on the node of rank 0.

    What lies between the result and the processes' end is shut-down.
    """
    node = next(node for node in nodes if node.name == result["ranks"][0]["node"])
    phases = {f"{name}_s": seconds for name, seconds in result["phases_s"].items()}
    first_step = phases.get("first_step_s")
    measured = [phases[name] for name in ("warmup_s", "steady_s") if name in phases]
    return Times(
        **phases
        | {
            "training_s": phases.get("training_s", 0.0) + (first_step or 0.0),
            "measurement_s": sum(measured) if measured else None,
            "shutdown_s": node.at - result["left_at"],
            "total_s": node.seconds,
            "epochs_s": result["epochs_s"],
        }
    )


def write_steps(path: Path, ranks: list[dict[str, Any]]) -> None:
    """Every step of the training, the warm-up and the steady window, on every rank."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["rank", "phase", "epoch", "step", "step_ms"])
        for rank, found in enumerate(ranks):
            for phase, epoch, step, duration in found["steps"]:
                table.writerow([rank, phase, epoch, step, f"{duration:.4f}"])


def known(model: type[T], fields: dict[str, Any] | None) -> T | None:
    """A section of the result, where its fields were measured."""
    return None if fields is None else model.model_validate(fields)


def last(values: list[float]) -> float | None:
    """The last value, if there is one."""
    return values[-1] if values else None


def keep_good_result(path: Path, metrics: Metrics) -> None:
    """A failure does not take the place of a good result of the same definition.

    Raises:
        UserError: if it would; the failure is left beside it.
    """
    if metrics.status in ("ok", "unsupported") or not path.exists():
        return
    try:
        before = read_metrics(path)
    except UserError:
        return
    if before.status == "ok" and before.cell_sha256 == metrics.cell_sha256:
        beside = path.with_name("metrics.failed.json")
        write_text(beside, metrics.model_dump_json(indent=1, by_alias=True))
        reason = metrics.failure.exception if metrics.failure else metrics.status
        raise UserError(
            f"{metrics.cell.title}: this rerun ended as {metrics.status} ({reason}); the previous "
            f"good result stays, and this failure is in {beside}"
        )


def made_meanwhile(cell: Cell, path: Path) -> bool:
    """Whether the cell's result was made after the controller that wants it had started.

    So it is where an earlier controller was killed and its job for the same cell went on: this one
    was told to wait for that one, and has nothing left to do.
    """
    started = os.environ.get(CONTROLLER_STARTED)
    if started is None or not path.exists():
        return False
    try:
        found = read_metrics(path)
    except UserError:
        return False
    same = (cell.fingerprint(), code_sha256(code_of_cell(cell)))
    return (found.cell_sha256, found.code_sha256) == same and path.stat().st_mtime > float(started)


def publish(scratch: Path, output: Path, metrics: Metrics) -> None:
    """Put a result in its place: what belongs to it first, and metrics.json, which counts, last."""
    for pattern in SIDE_FILES:
        for old in output.parent.glob(pattern):
            old.unlink()
        for new in scratch.glob(pattern):
            new.replace(output.parent / new.name)
    write_text(output, metrics.model_dump_json(indent=1, by_alias=True))


def main() -> None:
    """Run the cell of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", required=True, help="the cell as JSON")
    parser.add_argument("--output", type=Path, required=True, help="metrics.json to write")
    parser.add_argument("--place", type=int, help="its planned place in the matrix; 0 starts first")
    parser.add_argument("--time-limit-minutes", type=float, help="end the cell after this time")
    parser.add_argument(
        "--stall-limit-minutes", type=float, help="and after this time without progress"
    )
    arguments = parser.parse_args()
    limit, stall = arguments.time_limit_minutes, arguments.stall_limit_minutes
    started = datetime.now(UTC)
    cell = Cell.model_validate_json(arguments.cell)
    try:
        if made_meanwhile(cell, arguments.output):
            print(f"[{cell.title}] another job has made its result meanwhile", flush=True)
            return
        with scratch_folder(arguments.output) as scratch:
            metrics = run_cell(
                cell,
                scratch,
                limit_s=limit * 60 if limit else None,
                stall_s=stall * 60 if stall else None,
            )
            order = {
                "started_at": started.isoformat(),
                "ended_at": datetime.now(UTC).isoformat(),
                "planned_place": arguments.place,
            }
            metrics = metrics.model_copy(update={"provenance": metrics.provenance | order})
            keep_good_result(arguments.output, metrics)
            publish(scratch, arguments.output, metrics)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(
            f"shardmark: {cell.title}: {error.filename or arguments.output}: {error.strerror}. "
            "This is no result; make room and run it again"
        )
    print(f"[{cell.title}] {metrics.status}", flush=True)


if __name__ == "__main__":
    main()
