"""Read what Slurm granted this process's job, and start a step on all of the job's nodes.

Snakemake's executor strips every SLURM_* variable but the job's number, so this module asks Slurm
for the rest.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.slurm.queue import ask

# Below Linux's ephemeral ports (32768 and up), so as not to collide with them.
PORTS = range(20_000, 32_000)
PORTS_PER_JOB = 16


@dataclass(frozen=True)
class Allocation:
    """What a job was granted.

    Attributes:
        job_id: its number.
        nodes: names of its nodes, its head node first.
        cpus_per_node: CPUs that it asked for on each node (an exclusive job has more).
        gpus: GPUs over all its nodes; 0 if it has none, or if Slurm does not say.
        partition: the partition that it runs in.
    """

    job_id: str
    nodes: tuple[str, ...]
    cpus_per_node: int
    gpus: int
    partition: str | None = None


def read_allocation(job: str) -> Allocation:
    """Return what the job with this number was granted.

    Raises:
        UserError: if Slurm does not answer.
    """
    return parse_allocation(
        job, ask("scontrol", "show", "job", job, "--oneliner"), expand_node_list
    )


def expand_node_list(node_list: str) -> tuple[str, ...]:
    """Expand ``n[1-2]`` to ``("n1", "n2")``."""
    return tuple(ask("scontrol", "show", "hostnames", node_list).split())


def parse_allocation(job: str, text: str, expand: Callable[[str], tuple[str, ...]]) -> Allocation:
    """Parse an allocation from one line of ``scontrol show job``."""
    nodes = expand(_field(text, "NodeList"))
    tasks = _field(text, "NtasksPerN:B:S:C").split(":")[0]
    cpus_per_task = _field(text, "CPUs/Task") or "1"
    total_gpus = re.search(
        r"[ ,=]gres/gpu=(\d+)", _field(text, "AllocTRES") or _field(text, "TRES")
    )
    gpus_per_node = re.search(r"gpu(?::[^:,\s]+)?:(\d+)", _field(text, "TresPerNode"))
    if total_gpus:
        gpus = int(total_gpus[1])
    else:
        gpus = int(gpus_per_node[1]) * len(nodes) if gpus_per_node else 0
    # Slurm says 0 tasks per node if none were asked for, which means one.
    cpus = max(1, int(tasks or 1)) * int(cpus_per_task)
    return Allocation(job, nodes, cpus, gpus, _field(text, "Partition") or None)


def _field(text: str, name: str) -> str:
    match = re.search(rf"(?:^|\s){re.escape(name)}=(\S*)", text)
    return match[1] if match and match[1] != "(null)" else ""


def require_all(cell: Cell, allocation: Allocation) -> None:
    """Check that a job has the nodes and GPUs that its cell needs.

    Raises:
        UserError: if it has fewer; the message names what is missing.
    """
    lacking = []
    if len(allocation.nodes) < cell.nodes:
        lacking.append(f"nodes: {len(allocation.nodes)} of {cell.nodes}")
    if 0 < allocation.gpus < cell.gpus:
        lacking.append(f"GPUs: {allocation.gpus} of {cell.gpus}")
    if lacking:
        raise UserError(
            f"{cell.title}: Slurm job {allocation.job_id} on {','.join(allocation.nodes)} has less "
            f"than the cell names ({'; '.join(lacking)}); a --resources limit or a set-resources "
            "of the profile clipped it"
        )


def node_addresses(nodes: Sequence[str]) -> list[str]:
    """Return the address at which Slurm reaches each node.

    Raises:
        UserError: if Slurm does not answer.
    """
    text = ask("scontrol", "show", "node", ",".join(nodes), "--oneliner")
    known = {_field(line, "NodeName"): _field(line, "NodeAddr") for line in text.splitlines()}
    return [known.get(node) or node for node in nodes]


def free_port(job: str) -> int:
    """Return a free port of this machine for the job's rendezvous.

    Each job starts its search at a different port. Otherwise two jobs that share a node could
    choose the same port before either has bound it.

    Raises:
        UserError: if no port is free.
    """
    first = int(job) * PORTS_PER_JOB % len(PORTS)
    ports: list[int] = [*PORTS[first:], *PORTS[:first]]
    for port in ports:
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port in {PORTS.start}-{PORTS.stop - 1} for the rendezvous")


def step_command(cell: Cell, allocation: Allocation) -> list[str]:
    """Return the srun that starts one task per node, each with the job's whole share of the node.

    Every count is explicit, because srun would read missing ones from the stripped variables. The
    command asks for GPUs only if the job was granted any, and by --gres, which every cluster that
    grants GPUs accepts. A task that fails ends the others.
    """
    return [
        "srun",
        f"--jobid={allocation.job_id}",
        f"--nodes={cell.nodes}",
        f"--ntasks={cell.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={allocation.cpus_per_node}",
        *([f"--gres=gpu:{allocation.gpus // cell.nodes}"] if allocation.gpus else []),
        "--mpi=none",
        "--kill-on-bad-exit=1",
        "--input=none",
    ]
