"""The resources that a cell's job requests from Slurm, as Snakemake's resources."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass

from shardmark.config.schema import Cluster

# Slurm ends a job without telling the cell, so the cell's own time limit must come first.
SPARE_MINUTES = 5
# Time limit of the job that only records its nodes (rule pin_block).
PIN_MINUTES = 5


@dataclass(frozen=True)
class JobRequest:
    """The resources of a job; a resource that is None is not requested.

    Attributes:
        nodes: number of nodes.
        cpus_per_task: CPU cores per Slurm task.
        mem_mb: memory per node, which is what Slurm's ``--mem`` means, in MB.
        runtime: minutes until Slurm ends the job.
        gpu: GPUs of a job on one node, as ``--gpus``.
        gres: GPUs per node, as ``--gres``. Jobs on several nodes always use it, because Slurm might
            spread a total unevenly over the nodes.
        mpi: ``srun`` for a job on several nodes, where the launcher itself calls srun; None on one
            node, where it must not.
        tasks_per_node: tasks on each of several nodes; the executor requires more than one.
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
        """Return the requested resources by Snakemake's names."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def build_request(cluster: Cluster, replicas: int, limit_minutes: int) -> JobRequest:
    """Return the request of a job with this many replicas.

    Args:
        cluster: the machines.
        replicas: GPUs of a cell, or ranks of a parity case.
        limit_minutes: minutes until the cell ends itself.
    """
    nodes = -(-replicas // cluster.gpus_per_node)
    replicas_per_node = min(replicas, cluster.gpus_per_node)
    spans_nodes = nodes > 1
    gpu_request = cluster.gpu_request if cluster.device == "cuda" else "none"
    uses_gres = gpu_request == "gres" or (gpu_request == "gpus" and spans_nodes)
    tasks = max(2, replicas_per_node) if spans_nodes else None
    return JobRequest(
        nodes=nodes,
        cpus_per_task=max(1, replicas_per_node * cluster.cpus_per_gpu // (tasks or 1)),
        mem_mb=replicas_per_node * cluster.mem_gb_per_gpu * 1000,
        runtime=limit_minutes + SPARE_MINUTES,
        gpu=replicas if gpu_request == "gpus" and not spans_nodes else None,
        gres=f"gpu:{replicas_per_node}" if uses_gres else None,
        mpi="srun" if spans_nodes else None,
        tasks_per_node=tasks,
    )


def quoted_options(cluster: Cluster) -> str:
    """Return ``cluster.slurm_extra`` quoted, because the executor calls sbatch through a shell."""
    return shlex.join(shlex.split(cluster.slurm_extra))
