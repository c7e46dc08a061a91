from shardmark.controller.progress import Progress
from shardmark.controller.record import record_controller
from shardmark.controller.stopping import StopAtFailure
from shardmark.controller.termination import Termination
from shardmark.disk import why_not_writable
from shardmark.errors import UserError
from shardmark.launching.site import why_not_at_site
from shardmark.measurement.gpu_check import why_no_gpus
from shardmark.slurm import queue
from shardmark.slurm.executor import (
    keep_planned_order,
    leave_lost_nodes_to_slurm,
    see_cancelled_jobs,
    wait_for_orphans,
)
from shardmark.slurm.groups import TURN, name_cells_of_groups, why_no_groups
from shardmark.slurm.submission import Submission


@functools.cache
def orphans():
    """Jobs that a dead controller left in Slurm's queue.

    First called before this controller submits its own jobs; the cache then keeps the answer.
    """
    if workflow.dryrun or workflow.executor_plugin.name != "slurm":
        return []
    return queue.jobs_of(Path(), queue.comments_of(CELLS.values()))


def prepare(jobs, trained):
    """Check the user's own files and the data sets that jobs need, before any job starts.

    Args:
        jobs: the jobs that will run.
        trained: the cells among them, and those of searches.

    Returns:
        whether all is well; if not, a script has printed what is wrong.
    """
    training = ("train", "find_largest_batch", "make_oracle", "check_parity")
    fetching = any(job.rule.name == "fetch" for job in jobs)
    commands = [
        *check_commands([job.wildcards for job in jobs if job.rule.name in training]),
        *fetch_commands(CELLS.values() if fetching else trained, verify=fetching),
    ]
    return all(subprocess.run(command).returncode == 0 for command in commands)


onstart:
    if reason := why_no_room(Path(RESULTS)):
        sys.exit(reason)
    try:
        save_config(CONFIG, Path(CONFIG_FILE))
    except OSError as error:
        sys.exit(f"{CONFIG_FILE}: cannot be written ({error.strerror})")
    jobs = list(workflow.dag.needrun_jobs())
    files = {path for job in jobs for path in [*job.output, *job.log] if not path.is_directory}
    if reason := why_not_writable(files):
        sys.exit(reason)
    planned = [cell_at(job.wildcards) for job in jobs if job.rule.name == "train"]
    gate = [case_at(job.wildcards) for job in jobs if job.rule.name == "check_parity"]
    searches = [
        search_at(job.wildcards) for job in jobs if job.rule.name == "find_largest_batch"
    ]
    trained = planned + [search.cell for search in searches]
    if trained and CONFIG.cluster.device == "cuda" and workflow.local_exec:
        reason = why_no_gpus(max(cell.gpus for cell in trained))
        if reason:
            sys.exit(f"cluster.device is cuda, but {reason}")
    if trained:
        try:
            reason = why_not_at_site(CONFIG.site)
        except UserError as error:
            reason = str(error)
        if reason:
            sys.exit(reason)
        record_controller(Path(RESULTS), CONTROLLER)
    on_slurm = workflow.executor_plugin.name == "slurm"
    if on_slurm:
        if workflow.executor_settings.array_jobs:
            sys.exit(
                "--slurm-array-jobs cannot be used: every task of an array gets the resources of "
                "its first cell and, on several nodes, also trains that cell"
            )
        groups = workflow.group_settings.overwrite_groups
        reason = why_no_groups(
            groups,
            workflow.dag,
            pinned=CONFIG.cluster.block == "pinned",
            stops=CONFIG.on_failure == "stop",
        )
        if reason:
            sys.exit(reason)
    if runs_jobs() and not prepare(jobs, trained):
        sys.exit(1)
    if on_slurm:
        # A job has one turn, which the cells of its group take one after the other.
        workflow.register_resource(TURN, 1)
        keep_planned_order()
        see_cancelled_jobs()
        leave_lost_nodes_to_slurm(workflow.scheduler._executor)
        name_cells_of_groups()
        wait_for_orphans(orphans())
        gate_first = queue.comments_of(CELLS.values()) if gate else None
        Submission.attach(workflow.scheduler._executor, workflow.scheduler, gate_first)
    if orphans():
        numbers = ", ".join(job.job_id for job in orphans())
        print(
            f"{len(orphans())} job(s) of a controller that is gone are still queued or running "
            f"({numbers}); what they work on is waited for and not started again"
        )
    comments = queue.comments_of(CELLS.values()) if on_slurm else None
    Termination(workflow, Path(RESULTS), comments).attach()
    if not workflow.output_settings.verbose:
        Progress.attach(logger, planned, gate)
    if CONFIG.on_failure == "stop":
        logger.addHandler(StopAtFailure(planned, workflow.scheduler, comments))
