"""Snakemake's Slurm executor, made to hand jobs over in order and to see those that are cancelled.

Each function can go with the first version of snakemake-executor-plugin-slurm that needs it no more
(2.8.0 does): the test in tests/slurm that its docstring names then passes without it.
"""

from __future__ import annotations

from typing import Any


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
