"""One process of a cell: its rank, device and process group."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.processes.gpu_sharing import SHARED_DEVICE
from shardmark.strategies import spec_of


@dataclass(frozen=True)
class Runtime:
    """This process's rank, device and share of the replicas.

    Attributes:
        rank: this process's rank, 0 ... world_size - 1.
        world_size: number of ranks of the cell.
        replicas: the replicas of this process: one, or all of the cell's under DataParallel.
        device: where its tensors are.
        backend: nccl or gloo.
        shared_device: whether all ranks share one GPU. Only checks run that way, never timings.
    """

    rank: int
    world_size: int
    replicas: range
    device: torch.device
    backend: str
    shared_device: bool

    @property
    def gpus(self) -> list[int]:
        """The indices of this process's GPUs: one, or all under DataParallel; none on a CPU."""
        if self.device.type != "cuda":
            return []
        one_process = len(self.replicas) > 1 and not self.shared_device
        return list(self.replicas) if one_process else [self.device.index]

    def synchronise(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of the value over all ranks, on every rank."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean of the value over all ranks, on every rank."""
        return self.sum_over_ranks(value) / self.world_size

    def largest_over_ranks(self, number: float) -> float:
        """The largest of all ranks' numbers, on every rank."""
        largest = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest.item())

    def rank0_decides(self, number: float) -> float:
        """Rank 0's number, on every rank."""
        choice = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.broadcast(choice, 0)
        return float(choice.item())


def start_runtime(cell: Cell) -> Runtime:
    """Join the process group of the cell.

    Raises:
        UserError: if the number of processes is not the cell's, or torch cannot see enough GPUs.
    """
    rank = int(os.environ["RANK"])
    world = int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    if world != cell.processes:
        raise UserError(
            f"{cell.title}: {world} processes were started where the cell has {cell.processes}; "
            "the launcher or a --resources limit clipped them"
        )
    shared = os.environ.get(SHARED_DEVICE) == "1"
    if shared:
        # DeepSpeed reads its device from this variable.
        os.environ["LOCAL_RANK"] = "0"
    if cell.device == "cuda":
        _require_gpus(cell, shared)
        device = torch.device("cuda", 0 if shared else local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    backend = "nccl" if cell.device == "cuda" and not shared else "gloo"
    # Clipping and saving then communicate tensors in host memory, too.
    offloads = spec_of(cell.base).offloads_collectives and cell.options["offload"] != "none"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if backend == "nccl" and offloads else backend,
        # A single process needs no rendezvous, so it uses no port.
        store=dist.HashStore() if world == 1 else None,  # type: ignore[attr-defined]
        rank=rank,
        world_size=world,
        device_id=device if backend == "nccl" else None,
    )
    one_process = spec_of(cell.base).one_process
    return Runtime(
        rank=rank,
        world_size=world,
        replicas=range(cell.gpus) if one_process else range(rank, rank + 1),
        device=device,
        backend=backend,
        shared_device=shared,
    )


def _require_gpus(cell: Cell, shared: bool) -> None:
    needed = 1 if shared else cell.gpus_per_node
    if torch.version.hip:
        from shardmark.measurement.gpu_check import ROCM

        raise UserError(ROCM.format(version=torch.__version__, hip=torch.version.hip))
    if not torch.cuda.is_available():
        from shardmark.measurement.gpu_check import why_no_gpus

        raise UserError(f"cluster.device is cuda, but {why_no_gpus(needed)}")
    seen = torch.cuda.device_count()
    if seen < needed:
        raise UserError(
            f"{cell.title}: needs {needed} GPUs on a node and torch sees {seen}; "
            "check CUDA_VISIBLE_DEVICES, cluster.gpus_per_node and the job's GPU request"
        )
