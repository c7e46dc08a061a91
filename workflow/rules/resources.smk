from shardmark.slurm.job_request import quoted_options
from shardmark.time_limits import limit_minutes

# The resources that a job requests from Slurm, and the cores that it takes without Slurm.


def replicas_at(wildcards):
    """The number of replicas of a job: GPUs of a cell, or ranks of a parity case."""
    return int(wildcards.get("gpus") or wildcards.ranks)


def whole_machine(wildcards):
    """Locally a cell claims every core, so that cells on one machine run one at a time."""
    return workflow.cores if workflow.is_main_process and workflow.local_exec else 1


def limit_minutes_at(wildcards):
    """Minutes until a cell or a search ends itself; for a job of the gate, an upper bound."""
    if not (wildcards.get("strategy") and wildcards.get("gpus")):
        return GATE_MINUTES
    if not wildcards.get("seed"):
        return CONFIG.cluster.time_limit_minutes
    return limit_minutes(CONFIG.cluster, cell_at(wildcards))


def request_at(wildcards):
    return build_request(CONFIG.cluster, replicas_at(wildcards), limit_minutes_at(wildcards))


def requested(name):
    """One resource of a job's request."""
    return lambda wildcards: getattr(request_at(wildcards), name)


# The resources of a job that needs the machines of a cell or of a parity case.
MACHINES = {
    name: requested(name)
    for name in ("gpu", "gres", "nodes", "mpi", "tasks_per_node", "cpus_per_task", "mem_mb")
}
SBATCH_OPTIONS = quoted_options(CONFIG.cluster)
# If Slurm does not assign GPUs, only an exclusive node keeps a job off another job's GPU.
GATE_EXTRA = SBATCH_OPTIONS if CONFIG.cluster.gpus_unassigned else ""
