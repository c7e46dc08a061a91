"""Several cells in one Slurm job, one after the other: Snakemake's --groups and --group-components.

Works on private parts of Snakemake 9.27 and snakemake-executor-plugin-slurm 2.8.0. Each function
can go with the first version that needs it no more: the test in tests/slurm/test_slurm_groups.py
that its docstring names then passes without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from shardmark.slurm.queue import TRAIN, comment_of

# A resource: each cell takes one, and a job has one. So Snakemake asks for the machines of one cell
# and for the time of all, and starts the next cell when the last has ended.
TURN = "turn"


def comments_of_job(job: Any) -> list[str]:
    """The comment of each job that Snakemake's executor submits as this one."""
    members = job.jobs if job.is_group() else [job]
    return sorted(comment_of(one.rule.name, list(one.wildcards)) for one in members)


def why_no_groups(groups: Mapping[str, str], dag: Any, *, pinned: bool) -> str:
    """Why cells cannot be grouped as the command line says; empty if they can.

    Args:
        groups: of --groups, a group's name for each rule.
        dag: Snakemake's.
        pinned: whether the cells of a block follow to nodes that another job chose.
    """
    if not groups:
        return ""
    if other := sorted(groups.keys() - {TRAIN}):
        return f"--groups: {', '.join(other)} cannot be grouped, only {TRAIN}"
    if pinned:
        return (
            "--groups cannot be used with cluster.block: pinned. Set it to free, and let the cells "
            f"of a block be a group: {_options('{workload}_gpus{gpus}_seed{seed}', 8)}"
        )
    sizes = defaultdict(set)
    for job in dag.needrun_jobs():
        if job.rule.name == TRAIN:
            sizes[dag.get_job_group(job)].add(int(job.wildcards.gpus))
    if mixed := next((counts for counts in sizes.values() if len(counts) > 1), None):
        return (
            f"--groups: a group of {groups[TRAIN]!r} has cells of "
            f"{', '.join(map(str, sorted(mixed)))} GPUs, which need jobs of different sizes; use "
            f"the GPU count in its name: {_options('gpus{gpus}', 4)}"
        )
    return ""


def _options(group: str, cells: int) -> str:
    return f"--groups '{TRAIN}={group}' --group-components '{group}={cells}'"


def name_cells_of_groups() -> None:
    """Let the comment of a group's job name all its cells, by which status and recovery find it.

    The executor writes the group's name alone. Test: a group of a killed controller ...
    """
    import snakemake_executor_plugin_slurm as plugin

    build = plugin.get_submit_command

    def named(job: Any, params: Mapping[str, Any], *arguments: Any, **more: Any) -> str:
        if job.is_group():
            params = {**params, "comment_str": " ".join(comments_of_job(job))}
        return str(build(job, params, *arguments, **more))

    plugin.get_submit_command = named


def keep_results_of_lost_jobs() -> None:
    """Let a job that is lost take no result with it.

    Snakemake removes what the cells of a group left whose job failed later, and the old result of a
    cell that never started. Tests: a lost group keeps ..., a cell that never started keeps ...
    """
    from snakemake.jobs import GroupJob, Job

    register, postprocess = Job.register, Job.postprocess
    submitted = set()

    def registered(job: Any, *arguments: Any, **more: Any) -> None:
        submitted.add(job)
        workflow = job.dag.workflow
        if not workflow.is_main_process:
            # A cell without a result does not keep the others of its group from having theirs.
            workflow.scheduler.keepgoing = True
        if workflow.executor_plugin.name != "slurm-jobstep":
            # That one only passes the cells on. Until they start, the notes of the controller stay.
            register(job, *arguments, **more)

    async def kept(job: Any, *arguments: Any, error: bool = False, **more: Any) -> None:
        if error and (job not in submitted or _never_started(job)):
            return
        error = error and not _has_ended(job)
        await postprocess(job, *arguments, error=error, **more)

    def log_error(group: Any, msg: str | None = None, **more: Any) -> None:
        for job in group.jobs:
            if job in submitted and _has_ended(job):
                event = {"event": LogEvent.JOB_FINISHED, "job_id": job.jobid}
                logger.info(f"Finished jobid: {job.jobid}", extra=event)
            else:
                job.log_error(msg, **more)

    Job.register, Job.postprocess, GroupJob.log_error = registered, kept, log_error


def _never_started(job: Any) -> bool:
    """Whether the note of a job's start is the controller's, which names the Slurm job."""
    return bool(job.dag.workflow.persistence.external_jobids(job))


def _has_ended(job: Any) -> bool:
    """Whether a cell has its result, as the Snakemake that ran it on its node has noted."""
    persistence = job.dag.workflow.persistence
    persistence.deactivate_cache()
    marked = persistence._filter_incomplete_keys(map(persistence._get_key, job.output))
    # The last of its outputs is made when its result is there.
    made = all(Path(output).exists() for output in job.output)
    return job.rule.name == TRAIN and made and not marked
