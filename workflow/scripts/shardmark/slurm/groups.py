"""Run several cells one after the other in one Slurm job (--groups and --group-components).

This patches private parts of Snakemake 9.27 and snakemake-executor-plugin-slurm 2.8.0. Delete a
function when later versions no longer need it: the test in tests/slurm/test_slurm_groups.py that
its docstring names then passes without the function.
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
# and the time of all cells, and starts each cell when the previous one has ended.
TURN = "turn"


def comments_of_job(job: Any) -> list[str]:
    """Return the comments of a job's cells: one for a single job, one per member of a group."""
    members = job.jobs if job.is_group() else [job]
    return sorted(comment_of(one.rule.name, list(one.wildcards)) for one in members)


def why_no_groups(groups: Mapping[str, str], dag: Any, *, pinned: bool, stops: bool) -> str:
    """Say why cells cannot be grouped as the command line asks; empty if they can.

    Args:
        groups: the group's name for each rule, from --groups.
        dag: Snakemake's DAG of jobs.
        pinned: whether a separate job chooses the nodes for the cells of a block.
        stops: whether no more cells may start after a failure.
    """
    if not groups:
        return ""
    if other_rules := sorted(groups.keys() - {TRAIN}):
        return f"--groups: {', '.join(other_rules)} cannot be grouped, only {TRAIN}"
    if pinned:
        return (
            "--groups cannot be used with cluster.block: pinned. Set it to free, and let the cells "
            f"of a block be a group: {_group_options('{workload}_gpus{gpus}_seed{seed}', 8)}"
        )
    if stops:
        return (
            "--groups cannot be used with on_failure: stop, because a job would go on to its next "
            "cells after a failure. Set it to record, or leave out --groups"
        )
    sizes = defaultdict(set)
    for job in dag.needrun_jobs():
        if job.rule.name == TRAIN:
            sizes[dag.get_job_group(job)].add(int(job.wildcards.gpus))
    if mixed_sizes := next((counts for counts in sizes.values() if len(counts) > 1), None):
        return (
            f"--groups: a group of {groups[TRAIN]!r} has cells of "
            f"{', '.join(map(str, sorted(mixed_sizes)))} GPUs, which need jobs of different sizes; "
            f"use the GPU count in its name: {_group_options('gpus{gpus}', 4)}"
        )
    return ""


def _group_options(group: str, cells: int) -> str:
    return f"--groups '{TRAIN}={group}' --group-components '{group}={cells}'"


def name_cells_of_groups() -> None:
    """Make the comment of a group's job name all its cells, so that status and recovery find it.

    The executor writes only the group's name. Test: a group of a killed controller ...
    """
    import snakemake_executor_plugin_slurm as plugin

    build = plugin.get_submit_command

    def build_with_names(job: Any, params: Mapping[str, Any], *arguments: Any, **more: Any) -> str:
        if job.is_group():
            params = {**params, "comment_str": " ".join(comments_of_job(job))}
        return str(build(job, params, *arguments, **more))

    plugin.get_submit_command = build_with_names


def keep_results_of_lost_jobs() -> None:
    """Keep the results that Snakemake would delete when a job is lost.

    When a group's job fails, Snakemake deletes the results of cells that had already ended. It also
    deletes the old result of a cell that never started. Tests: a lost group keeps ..., a cell that
    never started keeps ...
    """
    from snakemake.jobs import GroupJob, Job

    register, postprocess = Job.register, Job.postprocess
    submitted = set()

    def register_as_submitted(job: Any, *arguments: Any, **more: Any) -> None:
        submitted.add(job)
        workflow = job.dag.workflow
        if not workflow.is_main_process:
            # If a cell gives no result, the other cells of its group still run.
            workflow.scheduler.keepgoing = True
        if workflow.executor_plugin.name != "slurm-jobstep":
            # slurm-jobstep only passes cells on; the controller's notes stay until they start.
            register(job, *arguments, **more)

    async def postprocess_kept(job: Any, *arguments: Any, error: bool = False, **more: Any) -> None:
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

    Job.register, Job.postprocess, GroupJob.log_error = (
        register_as_submitted,
        postprocess_kept,
        log_error,
    )


def _never_started(job: Any) -> bool:
    """Whether only the controller has recorded the job; its record names the Slurm job."""
    return bool(job.dag.workflow.persistence.external_jobids(job))


def _has_ended(job: Any) -> bool:
    """Whether a cell has its result, according to the Snakemake that ran it on its node."""
    persistence = job.dag.workflow.persistence
    persistence.deactivate_cache()
    incomplete = persistence._filter_incomplete_keys(map(persistence._get_key, job.output))
    # A cell's last output is written only after its result.
    has_outputs = all(Path(output).exists() for output in job.output)
    return job.rule.name == TRAIN and has_outputs and not incomplete
