"""What the job of a cell asks of Slurm, as Snakemake's resources."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass

from shardmark.config import Cluster

# Slurm ends a job with no word to its cell: the cell's own limit must come first.
SPARE_MINUTES = 5
# Of the job that only names its nodes.
PIN_MINUTES = 5


@dataclass(frozen=True)
class JobRequest:
    """The resources of a job; what is None is not asked for.

    Attributes:
        nodes: machines.
        cpus_per_task: CPU cores of each of Slurm's tasks.
        mem_mb: memory of one node, which is what Slurm's ``--mem`` means, in MB.
        runtime: minutes until Slurm ends it.
        gpu: GPUs of a job on one node, as ``--gpus``.
        gres: GPUs of each node, as ``--gres``. Always so on several nodes: of a total, Slurm might
            give one node more.
        mpi: across nodes the launcher itself calls srun; on one node it must not.
        tasks_per_node: sizes an allocation of several nodes; the executor wants more than one.
    """

    nodes: int
    cpus_per_task: int
    mem_mb: int
    runtime: int
    gpu: int | None
    gres: str | None
    mpi: str | None
    tasks_per_node: int | None

    def resources(self) -> dict[str, int | str]:
        """What is asked for, by Snakemake's names."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def request_of(cluster: Cluster, replicas: int, limit_minutes: int) -> JobRequest:
    """The request of a job with so many replicas.

    Args:
        cluster: the machines.
        replicas: GPUs of a cell, or a parity case's ranks.
        limit_minutes: minutes until the cell ends itself.
    """
    nodes = -(-replicas // cluster.gpus_per_node)
    a_node = min(replicas, cluster.gpus_per_node)
    several = nodes > 1
    how = cluster.gpu_request if cluster.device == "cuda" else "none"
    by_gres = how == "gres" or (how == "gpus" and several)
    tasks = max(2, a_node) if several else None
    return JobRequest(
        nodes=nodes,
        cpus_per_task=max(1, a_node * cluster.cpus_per_gpu // (tasks or 1)),
        mem_mb=a_node * cluster.mem_gb_per_gpu * 1000,
        runtime=limit_minutes + SPARE_MINUTES,
        gpu=replicas if how == "gpus" and not several else None,
        gres=f"gpu:{a_node}" if by_gres else None,
        mpi="srun" if several else None,
        tasks_per_node=tasks,
    )


def quoted_options(cluster: Cluster) -> str:
    """``cluster.slurm_extra`` for the executor, whose call of sbatch a shell reads."""
    return shlex.join(shlex.split(cluster.slurm_extra))
