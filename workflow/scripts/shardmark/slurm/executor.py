"""Patch Snakemake's Slurm executor: planned order, cancelled jobs, lost nodes, orphaned jobs.

Delete a function when snakemake-executor-plugin-slurm no longer needs it (2.8.0 does): the test in
tests/slurm that its docstring names then passes without the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardmark.slurm import queue
from shardmark.slurm.groups import comments_of_job


def keep_planned_order() -> None:
    """Make the executor of this process submit jobs one after the other, highest priority first.

    The executor gets all jobs that may start now as an unordered set, and submits them from two
    threads. Test: every cell asks for its GPUs ...
    """
    import snakemake_executor_plugin_slurm as plugin

    run_jobs = plugin.Executor.run_jobs

    def run_in_order(self: Any, jobs: list[Any]) -> None:
        self._job_submission_executor._max_workers = 1
        run_jobs(self, sorted(jobs, key=lambda job: job.priority, reverse=True))

    plugin.Executor.run_jobs = run_in_order


def see_cancelled_jobs() -> None:
    """Make the executor of this process compare only the first word of each job's state.

    sacct writes ``CANCELLED by 1000``. The executor expects ``CANCELLED`` and would wait for the
    job for ever (observed). Test: cancelled cells and an interrupted controller ...
    """
    import snakemake_executor_plugin_slurm as plugin

    ask = plugin.query_job_status

    async def ask_first_words(
        command: str, logger: Any
    ) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(command, logger)
        if states is None:
            return None, seconds
        return {job: state.split()[0] for job, state in states.items() if state}, seconds

    plugin.query_job_status = ask_first_words


class _NamedByUser(set[str]):
    """The nodes that the user excludes; the executor cannot add any."""

    def add(self, _: str) -> None:
        """Ignore the node."""


def leave_lost_nodes_to_slurm(executor: Any) -> None:
    """Stop this executor from excluding lost nodes, and make it wait for jobs that lost their node.

    Slurm starts nothing on a node that is down, so there is no need to exclude it. The executor
    excludes the node list of the job that ran there. For a requeued job that list is ``None
    assigned``, and sbatch then refuses every later job (observed). sbatch would also refuse the
    cells of a block that is pinned to the node. Test: a lost node does not keep ...
    """
    import snakemake_executor_plugin_slurm as plugin

    executor._failed_nodes = _NamedByUser(executor._failed_nodes)
    if not executor.workflow.executor_settings.requeue:
        return
    ask = plugin.query_job_status

    async def ask_and_wait(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(command, logger)
        if states is None:
            return None, seconds
        # Replace NODE_FAIL by any state that the executor takes for unfinished; at NODE_FAIL it
        # would report at each check that the node is excluded.
        requeued = {job: "REQUEUED" for job, state in states.items() if state == "NODE_FAIL"}
        return states | requeued, seconds

    plugin.query_job_status = ask_and_wait


def wait_for_orphans(orphans: Sequence[queue.Job]) -> None:
    """Make each job wait for the jobs that a dead controller left for the same outputs.

    Test: an orphan of a killed controller ...
    """
    import snakemake_executor_plugin_slurm as plugin

    build = plugin.get_submit_command

    def build_with_dependency(job: Any, *arguments: Any, **more: Any) -> str:
        comments = set(comments_of_job(job))
        job_ids = [one.job_id for one in orphans if comments & set(one.comments)]
        job_ids = [number for number in job_ids if queue.state_of(number)]
        call = str(build(job, *arguments, **more))
        return f"{call} --dependency=afterany:{':'.join(job_ids)}" if job_ids else call

    plugin.get_submit_command = build_with_dependency
