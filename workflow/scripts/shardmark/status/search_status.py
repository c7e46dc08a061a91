"""Find the state of every search for the largest batch, from its files and from Slurm's queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmark.cells import BatchSearch
from shardmark.config.schema import Cluster, Config
from shardmark.controller.progress import FIND_LARGEST_BATCH
from shardmark.results.outcome import Outcome
from shardmark.results.searches import PlannedSearch, log_path, read_searches
from shardmark.slurm import queue
from shardmark.status.job_status import JobStatus, ResultJob, live_status, status_without_result


@dataclass(frozen=True, kw_only=True)
class SearchStatus(JobStatus):
    """The state of one search.

    Attributes:
        search: the search.
        batch: its largest batch per GPU in words, or that none fits; empty without a result.
    """

    search: BatchSearch
    batch: str = ""

    @property
    def title(self) -> str:
        """The search's name, on one line."""
        return self.search.title


def search_statuses(
    config: Config, root: Path, jobs: Mapping[str, queue.Job] | None
) -> list[SearchStatus]:
    """Return the state of every search, in the order of the configuration."""
    return [_status(config.cluster, one, root, jobs) for one in read_searches(config, root)]


def job_of_search(cluster: Cluster, search: BatchSearch) -> ResultJob:
    """Return the job of a search."""
    cell = search.cell
    return ResultJob(
        FIND_LARGEST_BATCH,
        (cell.run, cell.workload, cell.strategy, str(cell.gpus)),
        cell,
        search.file,
        log_path(search),
        cluster.time_limit_minutes,
    )


def _status(
    cluster: Cluster, one: PlannedSearch, root: Path, jobs: Mapping[str, queue.Job] | None
) -> SearchStatus:
    search, largest = one.search, one.largest
    if search.cell.unsupported:
        return SearchStatus(Outcome.UNSUPPORTED, search.cell.unsupported, search=search)
    work = job_of_search(cluster, search)
    live = live_status(work, root, jobs, done=largest is not None and not one.stale)
    if live is not None:
        return SearchStatus(**vars(live), search=search)
    if one.refusal:
        return SearchStatus(Outcome.REFUSED, one.refusal, search=search)
    if one.failure:
        reason = one.failure.splitlines()[0]
        return SearchStatus(Outcome.FAILED, reason, log=work.log, search=search)
    if largest is None:
        return SearchStatus(**vars(status_without_result(work, root)), search=search)
    batch = largest.batch_in_words
    if one.stale:
        why = "its code has changed since"
        return SearchStatus(Outcome.STALE, why, search=search, batch=batch, stale=True)
    return SearchStatus(Outcome.OK, search=search, batch=batch)
