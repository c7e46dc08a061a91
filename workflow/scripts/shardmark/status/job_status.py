"""The state of a job that leaves a result: of a cell, or of a search for the largest batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shardmark.cells import Cell
from shardmark.launching.cell_progress import read_progress
from shardmark.launching.scratch import owner_of, scratch_path, why_alive
from shardmark.results.outcome import Outcome
from shardmark.slurm import queue

State = Outcome | Literal["running", "queued", "interrupted"]
FAILED = (Outcome.OOM, Outcome.TIMEOUT, Outcome.DIVERGED, Outcome.FAILED)
# States that need no further run, unless their result is stale.
DONE = (Outcome.OK, Outcome.DEVICE_FAULT, Outcome.UNSUPPORTED)
# Snakemake's executor writes its jobs' logs here: rule_<rule>/<wildcards>/<job>.log.
SLURM_LOGS = Path(".snakemake/slurm_logs")


@dataclass(frozen=True)
class ResultJob:
    """A job that leaves a result, and where it leaves what.

    Attributes:
        rule: its rule.
        wildcards: the values of the rule's wildcards, in order.
        cell: the cell that it trains; of a search, the one with the smallest batch.
        result: its result, relative to the project.
        log: its log, relative to the project.
        limit_minutes: minutes until it ends itself.
    """

    rule: str
    wildcards: tuple[str, ...]
    cell: Cell
    result: Path
    log: Path
    limit_minutes: int

    @property
    def comment(self) -> str:
        """The comment of its Slurm job."""
        return queue.comment_of(self.rule, self.wildcards)


@dataclass(frozen=True)
class JobStatus:
    """The state of a job.

    Attributes:
        state: the state.
        detail: the reason, or the progress.
        job: the number of its Slurm job, if it had one.
        log: the log to read next, relative to the project.
        left_s: seconds left at its present pace.
        limit_s: seconds until its time limit ends it.
        stale: whether the next run repeats it although it has a result.
    """

    state: State
    detail: str = ""
    job: str | None = None
    log: Path | None = None
    left_s: float | None = None
    limit_s: float | None = None
    stale: bool = False

    @property
    def done(self) -> bool:
        """Whether it needs no further run."""
        return self.state in DONE and not self.stale


def live_status(
    work: ResultJob, root: Path, jobs: Mapping[str, queue.Job] | None, *, done: bool
) -> JobStatus | None:
    """Return the state of a job that is running or queued; None if it is neither.

    Args:
        work: the job.
        root: the project's folder.
        jobs: the jobs in Slurm's queue, by comment; None if they are not known.
        done: whether it has a result that needs no further run.
    """
    scratch = scratch_path(root / work.result)
    owner = owner_of(scratch)
    job = jobs.get(work.comment) if jobs else None
    if job is not None:
        if job.state != "RUNNING":
            return JobStatus("queued", _why_waiting(job), job.job_id, work.log)
        left = queue.parse_time(job.left)
        if owner is None or owner["slurm_job_id"] != job.job_id:
            if len(job.comments) > 1:
                # The job is a group, whose cells run one after the other.
                if done:
                    return None
                detail = f"with {len(job.comments) - 1} others in one job, which runs"
                return JobStatus("queued", detail, job.job_id, work.log)
            # The job's first seconds: any scratch folder is from an earlier try.
            return JobStatus("running", "starting", job.job_id, work.log, limit_s=left)
        number, where = job.job_id, f" on {job.nodes}"
    elif owner is not None and owner["slurm_job_id"] is not None:
        if jobs is not None:
            return None
        left, number, where = None, owner["slurm_job_id"], ", if its job is still there"
    elif owner is not None and why_alive(scratch):
        left, number, where = None, None, f" (process {owner['pid']} on {owner['host']})"
    else:
        return None
    limit = owner["started"] + work.limit_minutes * 60 - time.time()
    progress = read_progress(scratch)
    return JobStatus(
        "running",
        f"{progress or 'starting'}{where}",
        number,
        work.log,
        left_s=progress.left_s(work.cell) if progress else None,
        limit_s=max(0.0, limit if left is None else min(limit, left)),
    )


def status_without_result(work: ResultJob, root: Path) -> JobStatus:
    """Return the state of a job that is not live and has no result: did it ever start?"""
    if not (root / work.log).exists():
        return JobStatus(Outcome.MISSING)
    number, log = _last_slurm_log(work, root)
    reason = "ended without a result; the next run starts it again"
    return JobStatus("interrupted", reason, number, log or work.log)


def _why_waiting(job: queue.Job) -> str:
    state = "" if job.state == "PENDING" else f"{job.state.lower()}: "
    return f"{state}{job.reason}"


def _last_slurm_log(work: ResultJob, root: Path) -> tuple[str | None, Path | None]:
    """Return the number and the log of a job's last Slurm job."""
    folder = SLURM_LOGS / f"rule_{work.rule}" / "_".join(work.wildcards)
    logs = [path for path in (root / folder).glob("*.log") if path.stem.isdigit()]
    if not logs:
        return None, None
    last = max(logs, key=lambda path: int(path.stem))
    return last.stem, last.relative_to(root)
