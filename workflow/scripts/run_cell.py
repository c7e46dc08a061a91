"""Run one cell: launch its processes, judge how they ended, write one valid metrics.json.

A cell whose measurement has a device fault is measured again at once, if its time limit allows.

The exit status is 0 for every outcome that is a result (ok, oom, timeout, diverged, failed,
unsupported). It is 1 if there is no result: the set-up is wrong, or something else killed the
processes.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shardmark.cells import Cell, cell_of
from shardmark.codebase import SCRIPTS, code_of_cell, code_sha256
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.cell_result import bare_metrics, completed_metrics, slurm_job, write_steps
from shardmark.launching.endings import find_failure
from shardmark.launching.launch import launch
from shardmark.launching.scratch import CONTROLLER_STARTED, empty_scratch, scratch_folder
from shardmark.measurement.rules import Peers
from shardmark.measurement.validity import judge, names_of_rules
from shardmark.metrics import SIDE_FILES, Failure, Metrics, OtherAttempt, read_metrics
from shardmark.strategies import spec_of
from shardmark.training_result import TrainingResult

# Folder beside a result for the first of two measurements.
FIRST_ATTEMPT = "first_attempt"


def run_cell(
    cell: Cell,
    folder: Path,
    *,
    limit_s: float | None = None,
    stall_s: float | None = None,
    script: Path | None = None,
) -> Metrics:
    """Run a cell and return its metrics.

    Args:
        cell: the cell.
        folder: the scratch folder of its processes; steps.csv and telemetry.csv are written there.
        limit_s: end the processes after so many seconds.
        stall_s: end the processes if no rank makes progress for so many seconds.
        script: a script to run instead of the strategy's own; tests pass one that trains
            differently.

    Raises:
        UserError: if there is no result to record.
    """
    if cell.unsupported:
        return bare_metrics(cell, "unsupported", Failure.plain(cell.unsupported))
    write_text(folder / "cell.json", cell.model_dump_json(by_alias=True))
    ended = launch(
        script or SCRIPTS / spec_of(cell.base).script,
        ["--cell", str(folder / "cell.json"), "--scratch", str(folder)],
        cell,
        folder,
        telemetry=folder / "telemetry.csv" if cell.measure.sampler else None,
        limit_s=limit_s,
        stall_s=stall_s,
    )
    failure = find_failure(cell, ended, folder / "result.json")
    if failure is not None:
        metrics = bare_metrics(cell, *failure)
    else:
        result = TrainingResult.model_validate_json((folder / "result.json").read_text())
        write_steps(folder / "steps.csv", result.ranks)
        metrics = completed_metrics(cell, result, ended, folder / "telemetry.csv")
    return metrics.model_copy(update={"slurm": slurm_job(ended)})


def keep_good_result(path: Path, metrics: Metrics) -> None:
    """Keep a failure from replacing a good result of the same definition.

    Raises:
        UserError: if the failure would replace one; the failure is written beside it.
    """
    if metrics.status in ("ok", "unsupported") or not path.exists():
        return
    try:
        before = read_metrics(path)
    except UserError:
        return
    if before.status == "ok" and before.cell_sha256 == metrics.cell_sha256:
        failed_path = path.with_name("metrics.failed.json")
        write_text(failed_path, metrics.model_dump_json(indent=1, by_alias=True))
        reason = metrics.failure.exception if metrics.failure else metrics.status
        raise UserError(
            f"{metrics.cell.title}: this rerun ended as {metrics.status} ({reason}); the previous "
            f"good result stays, and this failure is in {failed_path}"
        )


def was_made_meanwhile(cell: Cell, path: Path) -> bool:
    """Whether the cell has a result that is newer than the start of its controller.

    Then this job has nothing to do. Either it waited for a job that a killed controller had left
    behind, or another job of this controller made the result and was then lost with the rest of its
    group.
    """
    started = os.environ.get(CONTROLLER_STARTED)
    if started is None or not path.exists():
        return False
    try:
        result = read_metrics(path)
    except UserError:
        return False
    same_definition = (cell.fingerprint(), code_sha256(code_of_cell(cell)))
    # Not the file's time, which is also recent if Snakemake restored an old result.
    ended_at = result.provenance.get("ended_at")
    is_newer = ended_at is not None and datetime.fromisoformat(ended_at).timestamp() > float(
        started
    )
    return is_newer and (result.cell_sha256, result.code_sha256) == same_definition


def find_device_faults(metrics: Metrics, output: Path) -> list[str]:
    """Return a result's device faults, judged among the results of its workload and GPU count."""
    if all(device.kind != "gpu" for device in metrics.devices):
        return []
    peers = []
    for path in output.absolute().parents[3].glob(f"*/gpus{metrics.cell.gpus}/seed*/metrics.json"):
        with contextlib.suppress(UserError):
            peers.append(read_metrics(path))
    return judge(metrics, Peers(peers)).device_faults


def measure_again(
    first: Metrics,
    faults: Sequence[str],
    scratch: Path,
    output: Path,
    measure: Callable[[], Metrics],
) -> Metrics:
    """Measure a cell again and return the result that counts.

    The second measurement counts if it is ok, whether or not it has a device fault too; the first
    is then kept in a folder beside the result. Otherwise the first counts, and the second is in
    metrics.failed.json.

    Args:
        first: the first result, whose side files are in ``scratch``.
        faults: its device faults.
        scratch: the scratch folder of both.
        output: the metrics.json to write later.
        measure: measures the cell once, in ``scratch``.
    """
    names = ", ".join(names_of_rules(faults))
    print(f"[{first.cell.title}] device fault ({names}): measured again", flush=True)
    first_path = output.parent / FIRST_ATTEMPT / output.name
    publish(scratch, first_path, first)
    empty_scratch(scratch)
    second = measure()
    if second.status == "ok":
        other = OtherAttempt(attempt=1, status=first.status, device_faults=list(faults))
        return judge(second.model_copy(update={"other_attempt": other}))
    write_text(
        output.with_name("metrics.failed.json"), second.model_dump_json(indent=1, by_alias=True)
    )
    empty_scratch(scratch)
    move_side_files(first_path.parent, scratch)
    shutil.rmtree(first_path.parent)
    other = OtherAttempt(attempt=2, status=second.status, device_faults=second.device_faults)
    return judge(first.model_copy(update={"other_attempt": other}))


def publish(scratch: Path, output: Path, metrics: Metrics) -> None:
    """Move a result into place: metrics.json last, because its presence makes the result count."""
    for pattern in SIDE_FILES:
        for old in output.parent.glob(pattern):
            old.unlink()
    output.parent.mkdir(parents=True, exist_ok=True)
    move_side_files(scratch, output.parent)
    write_text(output, metrics.model_dump_json(indent=1, by_alias=True))


def move_side_files(source: Path, target: Path) -> None:
    """Move the files that belong to a metrics.json."""
    for pattern in SIDE_FILES:
        for path in source.glob(pattern):
            path.replace(target / path.name)


@one_message
def main() -> None:
    """Run the cell that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="workload of the cell")
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="metrics.json to write")
    parser.add_argument("--place", type=int, help="its planned place in the matrix; 0 starts first")
    parser.add_argument("--time-limit-minutes", type=float, help="end the cell after this time")
    parser.add_argument(
        "--stall-limit-minutes", type=float, help="and after this time without progress"
    )
    arguments = parser.parse_args()
    cell = cell_of(
        arguments.config, arguments.workload, arguments.strategy, arguments.gpus, arguments.seed
    )
    if was_made_meanwhile(cell, arguments.output):
        print(f"[{cell.title}] another job has made its result meanwhile", flush=True)
        return
    begin = time.monotonic()
    limit, stall = arguments.time_limit_minutes, arguments.stall_limit_minutes
    limit_s, stall_s = limit * 60 if limit else math.inf, stall * 60 if stall else None

    with scratch_folder(arguments.output) as scratch:

        def measure() -> Metrics:
            started = datetime.now(UTC)
            left_s = limit_s - (time.monotonic() - begin)
            metrics = run_cell(cell, scratch, limit_s=left_s if limit else None, stall_s=stall_s)
            order = {
                "started_at": started.isoformat(),
                "ended_at": datetime.now(UTC).isoformat(),
                "planned_place": arguments.place,
            }
            return metrics.model_copy(update={"provenance": metrics.provenance | order})

        metrics = measure()
        faults = find_device_faults(metrics, arguments.output)
        if faults and 2 * (time.monotonic() - begin) <= limit_s:
            metrics = measure_again(metrics, faults, scratch, arguments.output, measure)
        else:
            shutil.rmtree(arguments.output.parent / FIRST_ATTEMPT, ignore_errors=True)
        keep_good_result(arguments.output, metrics)
        publish(scratch, arguments.output, metrics)
    print(f"[{cell.title}] {metrics.status}", flush=True)


if __name__ == "__main__":
    main()
