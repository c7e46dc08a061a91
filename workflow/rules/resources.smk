# What a job asks of Slurm, and how many of a machine's cores it takes where there is none.


def replicas_at(wildcards):
    """GPUs of a job: a cell's, or a parity case's ranks."""
    return int(wildcards.get("gpus") or wildcards.ranks)


def whole_machine(wildcards):
    """Locally a cell claims every core, so that cells that share a machine run one at a time."""
    return workflow.cores if workflow.is_main_process and workflow.local_exec else 1


def limit_minutes_at(wildcards):
    """Minutes until a cell ends itself, or until a job of the gate should long have ended."""
    is_cell = wildcards.get("strategy") and wildcards.get("gpus")
    return limit_minutes(CONFIG.cluster, cell_at(wildcards)) if is_cell else GATE_MINUTES


def request_at(wildcards):
    return request_of(CONFIG.cluster, replicas_at(wildcards), limit_minutes_at(wildcards))


def asked(name):
    """One resource of a job's request."""
    return lambda wildcards: getattr(request_at(wildcards), name)


# Of a job on the machines of its cell, or of its case.
MACHINES = {
    name: asked(name)
    for name in ("gpu", "gres", "nodes", "mpi", "tasks_per_node", "cpus_per_task", "mem_mb")
}
SBATCH_OPTIONS = quoted_options(CONFIG.cluster)
# Where Slurm assigns no GPUs, only a node of its own keeps a job off another's GPU.
GATE_EXTRA = SBATCH_OPTIONS if CONFIG.cluster.gpus_unassigned else ""
