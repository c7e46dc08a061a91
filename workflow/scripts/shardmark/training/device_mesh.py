"""The device mesh of torch's fully sharded strategies."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shardmark.training.strategy import Task


def data_mesh(task: Task) -> DeviceMesh:
    """All ranks, or (copies, ranks that share a copy) if the strategy's shard_size asks for copies.

    Ranks that share a copy are neighbours, so with whole nodes they are on one node.
    """
    ranks, shared = task.runtime.world_size, task.cell.groups.shard
    device = task.runtime.device.type
    if shared == ranks:
        return init_device_mesh(device, (ranks,))
    shape = (ranks // shared, shared)
    return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
