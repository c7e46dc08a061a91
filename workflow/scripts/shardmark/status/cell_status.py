"""Find the state of every cell of a matrix, from its files and from Slurm's queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmark.cells import Cell, cells_of
from shardmark.codebase import STAMP
from shardmark.config.schema import Cluster, Config
from shardmark.controller.progress import TRAIN
from shardmark.metrics import Metrics
from shardmark.results.matrix import PlannedCell, read_matrix
from shardmark.results.outcome import Outcome
from shardmark.slurm import queue
from shardmark.status.job_status import (
    FAILED,
    JobStatus,
    ResultJob,
    live_status,
    status_without_result,
)
from shardmark.time_limits import limit_minutes


@dataclass(frozen=True, kw_only=True)
class CellStatus(JobStatus):
    """The state of one cell.

    Attributes:
        cell: the cell.
        items_per_s: its throughput, if it has been measured.
    """

    cell: Cell
    items_per_s: float | None = None

    @property
    def title(self) -> str:
        """The cell's name, on one line."""
        return self.cell.title


def cell_statuses(
    config: Config, root: Path, jobs: Mapping[str, queue.Job] | None
) -> list[CellStatus]:
    """Return the state of every cell, in the order of the configuration."""
    results = {one.cell.folder: _result_status(one) for one in read_matrix(config, root)}
    return [
        _cell_status(config.cluster, cell, root, jobs, results[cell.folder])
        for cell in cells_of(config)
    ]


def job_of_cell(cluster: Cluster, cell: Cell) -> ResultJob:
    """Return the job that trains a cell."""
    return ResultJob(
        TRAIN,
        (cell.run, cell.workload, cell.strategy, str(cell.gpus), str(cell.seed)),
        cell,
        cell.folder / "metrics.json",
        cell.folder / "job.log",
        limit_minutes(cluster, cell),
    )


def _cell_status(
    cluster: Cluster,
    cell: Cell,
    root: Path,
    jobs: Mapping[str, queue.Job] | None,
    result: CellStatus | None,
) -> CellStatus:
    if cell.unsupported:
        return result or CellStatus(Outcome.UNSUPPORTED, cell.unsupported, cell=cell)
    work, folder = job_of_cell(cluster, cell), root / cell.folder
    has_stamp = (folder / STAMP).exists()
    live = live_status(work, root, jobs, done=result is not None and has_stamp)
    if live is not None:
        return CellStatus(**vars(live), cell=cell)
    if result is None:
        return CellStatus(**vars(status_without_result(work, root)), cell=cell)
    if result.state in (Outcome.OK, Outcome.DEVICE_FAULT) and not (result.stale or has_stamp):
        # Snakemake will run it again: this result was kept because a rerun failed.
        failed = folder / "metrics.failed.json"
        why = (
            f"a rerun of it failed; {failed.relative_to(root)}"
            if failed.exists()
            else "its last rerun left no result; the next run repeats it"
        )
        return CellStatus(Outcome.STALE, why, result.job, work.log, cell=cell, stale=True)
    return result


def _result_status(one: PlannedCell) -> CellStatus | None:
    """Return the state of a cell from its result alone; None if there is none."""
    cell, metrics = one.cell, one.metrics
    if one.refusal:
        return CellStatus(one.outcome, one.refusal, cell=cell)
    if metrics is None:
        return None
    reasons = [*metrics.device_faults, _failure(metrics)]
    if one.stale:
        reasons.append("its code has changed since")
    current = metrics.throughput if one.outcome in (Outcome.OK, Outcome.DEVICE_FAULT) else None
    return CellStatus(
        one.outcome,
        "; ".join(filter(None, reasons)),
        _slurm_job(metrics),
        cell.folder / "job.log" if one.outcome in FAILED else None,
        cell=cell,
        items_per_s=current.items_per_s if current else None,
        stale=one.stale,
    )


def _failure(metrics: Metrics) -> str:
    """Return where and why a cell failed; empty if it did not."""
    failure = metrics.failure
    if failure is None:
        return ""
    if metrics.status == "unsupported":
        return failure.exception
    where = [failure.phase, None if failure.rank is None else f"rank {failure.rank}"]
    first = failure.exception.splitlines()[0] if failure.exception else "no exception"
    return ": ".join(filter(None, [", ".join(filter(None, where)), first]))


def _slurm_job(metrics: Metrics) -> str | None:
    variables = metrics.environment.get("variables") or {}
    job: str | None = variables.get("SLURM_JOB_ID")
    return job
