"""Snakemake's Slurm executor: planned order, cancelled jobs, lost nodes, jobs that were left.

Each function can go with the first version of snakemake-executor-plugin-slurm that needs it no more
(2.8.0 does): the test in tests/slurm that its docstring names then passes without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardmark.slurm import queue
from shardmark.slurm.groups import comments_of_job


def keep_planned_order() -> None:
    """Let the executor of this process submit jobs by descending priority, one after the other.

    It is handed all that may start at once as a set, whose order is none, and submits from two
    threads. Test: every cell asks for its GPUs ...
    """
    import snakemake_executor_plugin_slurm as plugin

    run_jobs = plugin.Executor.run_jobs

    def in_order(self: Any, jobs: list[Any]) -> None:
        self._job_submission_executor._max_workers = 1
        run_jobs(self, sorted(jobs, key=lambda job: job.priority, reverse=True))

    plugin.Executor.run_jobs = in_order


def see_cancelled_jobs() -> None:
    """Let the executor of this process compare the first word of each job's state.

    sacct writes ``CANCELLED by 1000``, the executor looks for ``CANCELLED`` and would await the job
    for ever (seen). Test: cancelled cells and an interrupted controller ...
    """
    import snakemake_executor_plugin_slurm as plugin

    ask = plugin.query_job_status

    async def first_words(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(command, logger)
        if states is None:
            return None, seconds
        return {job: state.split()[0] for job, state in states.items() if state}, seconds

    plugin.query_job_status = first_words


class _NamedByUser(set[str]):
    """Nodes that the user excludes; the executor adds none."""

    def add(self, _: str) -> None:
        """Leave it out."""


def leave_lost_nodes_to_slurm(executor: Any) -> None:
    """Let this executor exclude no node from later jobs, and await a job whose node was lost.

    Slurm starts nothing on a node that is down. The executor excludes it by the node list of the
    job that was on it; a requeued job has ``None assigned``, which sbatch refuses for every later
    job (seen). So would it refuse the node's pinned block. Test: a lost node does not keep ...
    """
    import snakemake_executor_plugin_slurm as plugin

    executor._failed_nodes = _NamedByUser(executor._failed_nodes)
    if not executor.workflow.executor_settings.requeue:
        return
    ask = plugin.query_job_status

    async def requeued(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(command, logger)
        if states is None:
            return None, seconds
        # Any state that the executor takes for a job that has not ended. For this one it says at
        # each look that the node is excluded.
        waits = {job: "REQUEUED" for job, state in states.items() if state == "NODE_FAIL"}
        return states | waits, seconds

    plugin.query_job_status = requeued


def wait_for_orphans(orphans: Sequence[queue.Job]) -> None:
    """Let each job wait for the jobs that a controller which is gone left for the same outputs.

    Test: an orphan of a killed controller ...
    """
    import snakemake_executor_plugin_slurm as plugin

    build = plugin.get_submit_command

    def waiting(job: Any, *arguments: Any, **more: Any) -> str:
        own = set(comments_of_job(job))
        left = [one.job_id for one in orphans if own & set(one.comments)]
        left = [number for number in left if queue.state_of(number)]
        call = str(build(job, *arguments, **more))
        return f"{call} --dependency=afterany:{':'.join(left)}" if left else call

    plugin.get_submit_command = waiting
