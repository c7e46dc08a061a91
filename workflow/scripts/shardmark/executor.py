"""Snakemake's Slurm executor, made to see a job that somebody cancelled.

sacct writes ``CANCELLED by 1000`` of such a job; snakemake-executor-plugin-slurm 2.8.0 compares
that with ``CANCELLED`` and would await the job for ever (seen).
"""

from __future__ import annotations

from typing import Any


def see_cancelled_jobs() -> None:
    """Let the executor of this process compare the first word of each job's state."""
    import snakemake_executor_plugin_slurm as plugin

    ask = plugin.query_job_status

    async def first_words(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(command, logger)
        if states is None:
            return None, seconds
        return {job: state.split()[0] for job, state in states.items() if state}, seconds

    plugin.query_job_status = first_words
