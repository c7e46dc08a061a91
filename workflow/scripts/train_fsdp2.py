"""FSDP2: ``fully_shard``, each parameter a DTensor sharded along its first dimension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from shardmark.launching.rank import main
from shardmark.training.device_mesh import data_mesh
from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state


class Fsdp2(Strategy):
    """FSDP2 with one unit per block, sharded bottom-up; the optimizer is built after sharding."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        options = task.cell.options
        mesh = data_mesh(task)
        param_dtype, reduce_dtype = task.low_dtype("param_dtype"), task.low_dtype("reduce_dtype")
        self.autocasts = param_dtype is None
        settings: dict[str, Any] = {
            "mesh": mesh,
            "reshard_after_forward": _reshard_after_forward(task),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=param_dtype, reduce_dtype=reduce_dtype or torch.float32
            ),
        }
        if options["offload"] == "all":
            # Without a GPU there is no memory to pin.
            pinned = self.device.type == "cuda"
            settings["offload_policy"] = CPUOffloadPolicy(pin_memory=pinned)
        model = task.build_outline()
        materialiser = task.materialiser(model)
        for unit in task.shard_units(model):
            materialiser.whole(unit)
            if param_dtype is not None:
                _keep_batchnorm(unit, settings)
            fully_shard(unit, **settings)
        materialiser.whole(model)
        if param_dtype is not None:
            _keep_batchnorm(model, settings)
        # The root's parameters are used first in the forward pass and last in the backward pass, or
        # the other way round. fully_shard keeps them gathered in between by default; do the same.
        fully_shard(model, **(settings | {"reshard_after_forward": False}))
        self.module = model
        self.optimizer = task.build_optimizer(self.module)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Reduce gradients in the last micro-batch only."""
        assert isinstance(self.module, FSDPModule)
        if self.accumulate > 1:  # the call walks over all modules, so avoid it where possible
            self.module.set_requires_gradient_sync(last)
        yield

    def full_state_dict(self) -> StateDict:
        """The parameters and buffers, gathered one by one."""
        if self.task.runtime.backend == "gloo":
            return unwrap_state({k: _joined(v) for k, v in self.module.state_dict().items()})
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = cast(StateDict, get_model_state_dict(self.module, options=options))
        return unwrap_state(state)

    def effective_config(self) -> dict[str, Any]:
        """The settings, with the number of units and the configured options."""
        options = self.task.cell.options
        units = [part for part in self.module.modules() if isinstance(part, FSDPModule)]
        shard = next(one for one in self.module.parameters() if isinstance(one, DTensor))
        return super().effective_config() | {
            "wrapper": "fully_shard",
            "zero_stage": 3 if options["reshard_after_forward"] else 2,
            "shard_ranks": shard.device_mesh.size(-1),
            "sharded_units": len(units),
            # torch has no public way to read these back; the collectives show their effect.
            "own": {
                "reshard_after_forward": options["reshard_after_forward"],
                "parameters_on": shard.to_local().device.type,
                "param_dtype": str(self.task.low_dtype("param_dtype") or torch.float32),
                "reduce_dtype": str(self.task.low_dtype("reduce_dtype") or torch.float32),
            },
        }


def _reshard_after_forward(task: Task) -> bool | int:
    """The option; true if its groups are the ranks that share a copy anyway."""
    wanted: bool | int | str = task.cell.options["reshard_after_forward"]
    groups = task.cell.groups
    if isinstance(wanted, bool):
        return wanted
    return True if groups.reshard == groups.shard else groups.reshard


def _keep_batchnorm(module: nn.Module, settings: dict[str, Any]) -> None:
    """Shard a module's batch-norms as a group of their own, in float32.

    Their running statistics stay in float32, and torch's batch-norm refuses parameters of another
    precision. FSDP1 does the same by itself.
    """
    norms: list[nn.Module] = [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, FSDPModule)
    ]
    if norms:
        fully_shard(norms, **settings | {"mp_policy": MixedPrecisionPolicy()})


def _joined(tensor: Tensor) -> Tensor:
    """Join the rows of the ranks that share a copy into the whole tensor, on the CPU.

    DTensor's own gathering ends with a segmentation fault if the tensors are on a GPU and the
    process group is gloo (seen with torch 2.11, two ranks on one GPU).
    """
    if not isinstance(tensor, DTensor):
        return tensor
    shared = tensor.device_mesh.get_group(tensor.device_mesh.ndim - 1)
    rows: list[Any] = [None] * dist.get_world_size(shared)
    dist.all_gather_object(rows, tensor.to_local().cpu(), shared)
    return torch.cat(rows)


if __name__ == "__main__":
    main(Fsdp2)
