"""Find the state of a matrix: of its cells and searches, its jobs in Slurm, its parity gate.

This only reads: it trains nothing, locks nothing and imports no torch.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardmark.cells import Cell, cells_of, parity_case, sizes_of
from shardmark.config.schema import Config
from shardmark.controller.progress import case_title
from shardmark.controller.record import controller_of
from shardmark.errors import UserError
from shardmark.slurm import queue
from shardmark.status.cell_status import CellStatus, cell_statuses, job_of_cell
from shardmark.status.gate_status import current_verdict
from shardmark.status.job_status import FAILED, JobStatus
from shardmark.status.search_status import SearchStatus, job_of_search, search_statuses


@dataclass(frozen=True)
class MatrixStatus:
    """The state of a matrix.

    Attributes:
        cells: the states of its cells, in the order of the configuration.
        searches: the states of its searches for the largest batch, in the same order.
        controller: which Snakemake runs it, in words.
        orphans: jobs in Slurm's queue whose controller is known to be dead.
        others: jobs of this matrix that are neither cells nor searches.
        parity: verdicts that exclude a strategy's cells from comparisons.
        unjudged: cases of the parity gate without a current verdict.
        remarks: questions that could not be answered, and why.
    """

    cells: list[CellStatus]
    searches: list[SearchStatus]
    controller: str
    orphans: list[queue.Job] = field(default_factory=list)
    others: list[queue.Job] = field(default_factory=list)
    parity: list[str] = field(default_factory=list)
    unjudged: int = 0
    remarks: list[str] = field(default_factory=list)


def exit_code(status: MatrixStatus) -> tuple[int, str]:
    """Return the exit code for a matrix, and the reason in one line.

    Returns:
        1 if a cell or a search failed or a strategy did not pass the parity gate; else 2 if one of
        them has no result of the current code and configuration; else 0.
    """
    searches = _count_left(status.searches)
    parts = [
        _count_left(status.cells),
        f"searches for the largest batch: {searches}" if searches else "",
        f"{len(status.parity)} failed in the parity gate" if status.parity else "",
        f"{status.unjudged} not judged by the parity gate" if status.unjudged else "",
    ]
    jobs = [*status.cells, *status.searches]
    bad = status.parity or any(job.state in FAILED for job in jobs)
    whole = all(job.done for job in jobs) and not status.unjudged
    code = 1 if bad else 0 if whole else 2
    every = "every cell and every search" if status.searches else "every cell"
    text = "; ".join(filter(None, parts)) or f"{every} has its result"
    return code, f"check: {text} (exit code {code})"


def _count_left(jobs: Sequence[JobStatus]) -> str:
    """Count the jobs without a good result by state, those that failed first."""
    counts = Counter(job.state for job in jobs if not job.done)
    states = sorted(counts, key=lambda state: state not in FAILED)
    return ", ".join(f"{counts[state]} {state}" for state in states)


def status_of(config: Config, root: Path = Path()) -> MatrixStatus:
    """Compare the files and Slurm jobs of every cell and search with the current configuration."""
    planned = list(cells_of(config))
    queued, remarks = _read_queue(root, planned)
    jobs = None
    if queued is not None:
        jobs = {comment: job for job in queued for comment in job.comments}
    cells = cell_statuses(config, root, jobs)
    searches = search_statuses(config, root, jobs)
    listed = {job_of_cell(config.cluster, one.cell).comment for one in cells}
    listed |= {job_of_search(config.cluster, one.search).comment for one in searches}
    alive, controller = controller_of(root / "results" / config.run)
    failed, unjudged = _gate_state(config, root)
    return MatrixStatus(
        cells=cells,
        searches=searches,
        controller=controller,
        orphans=queued or [] if alive is False else [],
        others=[job for job in queued or [] if listed.isdisjoint(job.comments)],
        parity=failed,
        unjudged=unjudged,
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


def _gate_state(config: Config, root: Path) -> tuple[list[str], int]:
    """Return what the parity gate failed, and how many cases have no current verdict."""
    failed, unjudged = [], 0
    for workload, strategy, gpus in sizes_of(config):
        case = parity_case(config, workload, strategy, gpus)
        if case.cell.unsupported:
            continue
        try:
            verdict = current_verdict(case, root)
        except UserError as error:
            failed.append(str(error))
            continue
        if verdict is None:
            unjudged += 1
        elif verdict.status in ("failed", "error"):
            title = case_title(workload, strategy, gpus)
            failed.append(f"{title}: {verdict.status} ({verdict.reason}); {case.file}")
    return failed, unjudged
