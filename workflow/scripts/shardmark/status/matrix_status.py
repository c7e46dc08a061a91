"""Find the state of every cell of a matrix, from its files and from Slurm's queue.

This only reads: it trains nothing, locks nothing and imports no torch.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shardmark.cells import Cell, cells_of, parity_case, sizes_of
from shardmark.codebase import STAMP
from shardmark.config.schema import Config
from shardmark.controller.progress import TRAIN, case_title
from shardmark.controller.record import controller_of
from shardmark.errors import UserError
from shardmark.launching.cell_progress import read_progress
from shardmark.launching.scratch import owner_of, scratch_path, why_alive
from shardmark.metrics import Metrics
from shardmark.parity_result import read_parity
from shardmark.results.matrix import read_matrix
from shardmark.slurm import queue
from shardmark.time_limits import limit_minutes

State = Literal[
    "ok",
    "device fault",
    "running",
    "queued",
    "oom",
    "timeout",
    "diverged",
    "failed",
    "interrupted",
    "refused",
    "stale",
    "unsupported",
    "missing",
]
FAILED = ("oom", "timeout", "diverged", "failed")
# States that need no further run.
DONE = ("ok", "device fault", "unsupported")
# Snakemake's executor writes its jobs' logs here: rule_<rule>/<wildcards>/<job>.log.
SLURM_LOGS = Path(".snakemake/slurm_logs")


@dataclass(frozen=True)
class CellStatus:
    """The state of one cell.

    Attributes:
        cell: the cell.
        state: the state.
        detail: the reason, or the progress.
        job: the number of its Slurm job, if it had one.
        log: the log to read next, relative to the project.
        left_s: seconds left at its present pace.
        limit_s: seconds until its time limit ends it.
        items_per_s: its throughput, if it has been measured.
    """

    cell: Cell
    state: State
    detail: str = ""
    job: str | None = None
    log: Path | None = None
    left_s: float | None = None
    limit_s: float | None = None
    items_per_s: float | None = None


@dataclass(frozen=True)
class MatrixStatus:
    """The state of a matrix.

    Attributes:
        cells: the states of its cells, in the order of the configuration.
        controller: which Snakemake runs it, in words.
        orphans: jobs in Slurm's queue whose controller is known to be dead.
        others: jobs of this matrix that are not cells.
        parity: verdicts that exclude a strategy's cells from comparisons.
        remarks: questions that could not be answered, and why.
    """

    cells: list[CellStatus]
    controller: str
    orphans: list[queue.Job] = field(default_factory=list)
    others: list[queue.Job] = field(default_factory=list)
    parity: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def exit_code(status: MatrixStatus) -> tuple[int, str]:
    """Return the exit code for a matrix, and the reason in one line.

    Returns:
        1 if a cell failed or a strategy did not pass the parity gate; else 2 if a cell has no
        result of the current code and configuration; else 0.
    """
    counts: Counter[str] = Counter(cell.state for cell in status.cells)
    bad = {state: counts[state] for state in FAILED if counts[state]}
    unfinished = {state: count for state, count in counts.items() if state not in (*FAILED, *DONE)}
    parts = [f"{number} {state}" for state, number in (bad | unfinished).items()]
    if status.parity:
        parts.append(f"{len(status.parity)} failed in the parity gate")
    code = 1 if bad or status.parity else 2 if unfinished else 0
    return code, f"check: {', '.join(parts) or 'every cell has its result'} (exit code {code})"


def status_of(config: Config, root: Path = Path()) -> MatrixStatus:
    """Compare every cell's files and Slurm job with the current configuration."""
    planned = list(cells_of(config))
    queued, remarks = _read_queue(root, planned)
    jobs = None
    if queued is not None:
        jobs = {comment: job for job in queued for comment in job.comments}
    results = _result_statuses(config, root)
    cells = [_cell_status(config, cell, root, jobs, results.get(cell.folder)) for cell in planned]
    cell_comments = {_comment(status.cell) for status in cells}
    alive, controller = controller_of(root / "results" / config.run)
    return MatrixStatus(
        cells=cells,
        controller=controller,
        orphans=queued or [] if alive is False else [],
        others=[job for job in queued or [] if cell_comments.isdisjoint(job.comments)],
        parity=list(_failed_parity(config, root)),
        remarks=remarks,
    )


def _read_queue(root: Path, cells: Iterable[Cell]) -> tuple[list[queue.Job] | None, list[str]]:
    """Return this matrix's jobs (None if they cannot be queried) and remarks that say why not."""
    if not shutil.which("squeue"):
        return None, []
    try:
        return queue.jobs_of(root, queue.comments_of(cells)), []
    except UserError as error:
        reason = str(error).splitlines()[0]
        return None, [f"what is queued is not known: {reason}"]


def _result_statuses(config: Config, root: Path) -> dict[Path, CellStatus]:
    """Return the state of each cell that has a result, from its result alone."""
    statuses = {}
    for one in read_matrix(config, root):
        if one.refusal:
            statuses[one.cell.folder] = CellStatus(one.cell, "refused", one.refusal)
        elif one.metrics and one.stale:
            job = _slurm_job(one.metrics)
            statuses[one.cell.folder] = CellStatus(
                one.cell, "stale", "its code has changed since", job
            )
        elif one.metrics:
            statuses[one.cell.folder] = _result_status(one.cell, one.metrics)
    return statuses


def _result_status(cell: Cell, metrics: Metrics) -> CellStatus:
    job = _slurm_job(metrics)
    if metrics.status == "ok":
        return CellStatus(
            cell,
            "device fault" if metrics.device_faults else "ok",
            "; ".join(metrics.device_faults),
            job,
            items_per_s=metrics.throughput.items_per_s if metrics.throughput else None,
        )
    failure = metrics.failure
    if failure is None or metrics.status == "unsupported":
        return CellStatus(cell, metrics.status, failure.exception if failure else "", job)
    where = [failure.phase, None if failure.rank is None else f"rank {failure.rank}"]
    first = failure.exception.splitlines()[0] if failure.exception else "no exception"
    reason = ": ".join(filter(None, [", ".join(filter(None, where)), first]))
    return CellStatus(cell, metrics.status, reason, job, cell.folder / "job.log")


def _cell_status(
    config: Config,
    cell: Cell,
    root: Path,
    jobs: Mapping[str, queue.Job] | None,
    result: CellStatus | None,
) -> CellStatus:
    if cell.unsupported:
        return result or CellStatus(cell, "unsupported", cell.unsupported)
    live = _live_status(config, cell, root, jobs, result)
    if live is not None:
        return live
    folder, log = root / cell.folder, cell.folder / "job.log"
    if result is None:
        if not (root / log).exists():
            return CellStatus(cell, "missing")
        job, slurm_log = _last_slurm_log(cell, root)
        reason = "ended without a result; the next run starts it again"
        return CellStatus(cell, "interrupted", reason, job, slurm_log or log)
    if result.state in ("ok", "device fault") and not (folder / STAMP).exists():
        # Snakemake will run it again: this result was kept because a rerun failed.
        failed = folder / "metrics.failed.json"
        why = f"a rerun of it failed; {failed.relative_to(root)}" if failed.exists() else "is owed"
        return CellStatus(cell, "stale", why, result.job, log)
    return result


def _live_status(
    config: Config,
    cell: Cell,
    root: Path,
    jobs: Mapping[str, queue.Job] | None,
    result: CellStatus | None,
) -> CellStatus | None:
    """Return the state of a cell that is running or queued; None if it is neither."""
    scratch = scratch_path(root / cell.folder / "metrics.json")
    owner = owner_of(scratch)
    log = cell.folder / "job.log"
    job = jobs.get(_comment(cell)) if jobs else None
    if job is not None:
        if job.state != "RUNNING":
            return CellStatus(cell, "queued", _why_waiting(job), job.job_id, log)
        left = parse_slurm_time(job.left)
        if owner is None or owner["slurm_job_id"] != job.job_id:
            if len(job.comments) > 1:
                # The job is a group, whose cells run one after the other.
                if result is not None and (root / cell.folder / STAMP).exists():
                    return None
                detail = f"with {len(job.comments) - 1} others in one job, which runs"
                return CellStatus(cell, "queued", detail, job.job_id, log)
            # The job's first seconds: any scratch folder is from an earlier try.
            return CellStatus(cell, "running", "starting", job.job_id, log, limit_s=left)
        number, where = job.job_id, f" on {job.nodes}"
    elif owner is not None and owner["slurm_job_id"] is not None:
        if jobs is not None:
            return None
        left, number, where = None, owner["slurm_job_id"], ", if its job is still there"
    elif owner is not None and why_alive(scratch):
        left, number, where = None, None, f" (process {owner['pid']} on {owner['host']})"
    else:
        return None
    limit = owner["started"] + limit_minutes(config.cluster, cell) * 60 - time.time()
    progress = read_progress(scratch)
    return CellStatus(
        cell,
        "running",
        f"{progress or 'starting'}{where}",
        number,
        log,
        left_s=progress.left_s(cell) if progress else None,
        limit_s=max(0.0, limit if left is None else min(limit, left)),
    )


def _why_waiting(job: queue.Job) -> str:
    state = "" if job.state == "PENDING" else f"{job.state.lower()}: "
    return f"{state}{job.reason}"


def _comment(cell: Cell) -> str:
    return queue.comment_of(TRAIN, _wildcards(cell))


def _wildcards(cell: Cell) -> list[str]:
    return [cell.run, cell.workload, cell.strategy, str(cell.gpus), str(cell.seed)]


def _slurm_job(metrics: Metrics) -> str | None:
    variables = metrics.environment.get("variables") or {}
    job: str | None = variables.get("SLURM_JOB_ID")
    return job


def _last_slurm_log(cell: Cell, root: Path) -> tuple[str | None, Path | None]:
    """Return the number and the log of a cell's last Slurm job."""
    folder = SLURM_LOGS / f"rule_{TRAIN}" / "_".join(_wildcards(cell))
    logs = [path for path in (root / folder).glob("*.log") if path.stem.isdigit()]
    if not logs:
        return None, None
    last = max(logs, key=lambda path: int(path.stem))
    return last.stem, last.relative_to(root)


def _failed_parity(config: Config, root: Path) -> Iterator[str]:
    for workload, strategy, gpus in sizes_of(config):
        case = parity_case(config, workload, strategy, gpus)
        if not (root / case.file).exists():
            continue
        try:
            verdict = read_parity(root / case.file)
        except UserError as error:
            yield str(error)
            continue
        current = verdict.case_sha256 == case.fingerprint()
        if current and verdict.status in ("failed", "error"):
            title = case_title(workload, strategy, gpus)
            yield f"{title}: {verdict.status} ({verdict.reason}); {case.file}"


def parse_slurm_time(text: str) -> float | None:
    """Convert Slurm's ``[days-][hours:]minutes:seconds`` to seconds; None for UNLIMITED etc."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
