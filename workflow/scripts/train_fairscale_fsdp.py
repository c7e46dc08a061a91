"""FairScale's FullyShardedDataParallel, the origin of torch's FSDP; no longer maintained."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import group

with warnings.catch_warnings():
    # FairScale warns about deprecated torch APIs, but nobody will update it.
    warnings.simplefilter("ignore")
    from fairscale.nn.data_parallel import FullyShardedDataParallel
    from fairscale.nn.wrap import enable_wrap, wrap
    from fairscale.optim.grad_scaler import ShardedGradScaler

from shardmark.launching.rank import main
from shardmark.strategies import fairscale_flattens
from shardmark.training import fairscale_gloo
from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state


class FairscaleFsdp(Strategy):
    """FairScale's FSDP with one flattened unit per block."""

    module: nn.Module

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if task.runtime.backend == "gloo":
            fairscale_gloo.allow_gloo()
        if self.device.type == "cpu":
            fairscale_gloo.allow_cpu()
        self.settings = {
            "reshard_after_forward": task.cell.options["reshard_after_forward"],
            "flatten_parameters": fairscale_flattens(
                task.cell.place, lambda: bool(task.uses.frozen)
            ),
            "compute_device": self.device,
            "state_dict_device": torch.device("cpu"),
        }
        overlap = task.cell.options["overlap_reduce_scatter"]
        if overlap is None:
            overlap = task.precision != "fp16"
        if not overlap:
            # FairScale's default is a second communicator. Nothing makes two GPUs start the
            # collectives of two communicators in the same order, so each can wait for the other.
            # NCCL's manual warns of it ("Using multiple NCCL communicators concurrently"). Cells
            # hung in fp16 only (docs/results.md); elsewhere they run as FairScale's maintainers
            # ship it.
            self.settings |= {
                "process_group": group.WORLD,
                "process_group_reduce_scatter": group.WORLD,
            }
        model = task.build_outline()
        materialiser = task.materialiser(model)
        with enable_wrap(wrapper_cls=FullyShardedDataParallel, **self.settings):
            for unit in task.shard_units(model):
                _replace(model, unit, wrap(materialiser.whole(unit)))
            self.module = wrap(materialiser.whole(model))
        self.scaler = _scaler(task, self.device)
        self.optimizer = task.build_optimizer(self.module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient and remove this pass's hooks, unless ``release_hooks`` is off.

        In every forward pass, FairScale 0.4.13 adds a hook to each parameter's gradient
        accumulator. It relies on autograd to drop the accumulator with its hooks, but the handle
        that FairScale keeps also keeps the accumulator alive, so hooks pile up. Its maintainers
        fixed this on a branch after the last release (facebookresearch/fairscale pull request
        1139). No hook is needed after the pass.
        """
        super().backward(loss)
        if not self.task.cell.options["release_hooks"]:
            return
        for parameter in self.module.parameters():
            _, handle = parameter.__dict__.pop("_shard_bwd_hook", (None, None))
            if handle is not None:
                handle.remove()

    def clip(self, norm: float) -> None:
        """Clip by the norm over the shards of all ranks."""
        cast(Any, self.module).clip_grad_norm_(norm)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients in the last micro-batch only."""
        return nullcontext() if last else cast(Any, self.module).no_sync()

    def full_state_dict(self) -> StateDict:
        """The parameters and buffers, gathered on every rank.

        After a backward pass, FairScale 0.4.13 frees the parameters of a unit one by one, but not
        those that are frozen. It then refuses to gather the unit again.
        """
        for part in self.module.modules():
            if isinstance(part, FullyShardedDataParallel) and part._is_root is not None:
                part._free_full_params()
                part._use_fp32_param_shard()
        return unwrap_state(self.module.state_dict())

    def effective_config(self) -> dict[str, Any]:
        """The settings, with those of the outermost unit."""
        module = cast(Any, self.module)
        units = [part for part in module.modules() if isinstance(part, FullyShardedDataParallel)]
        # The outermost unit always keeps its own parameters gathered, so check all units.
        reshards = any(unit.reshard_after_forward for unit in units)
        return super().effective_config() | {
            "shard_ranks": cast(Any, self.module).process_group.size(),
            "zero_stage": 3 if reshards else 2,
            "sharded_units": len(units),
            "bucket_bytes": [module.bucket_cap_mb * 2**20],
            "own": {
                "reshard_after_forward": reshards,
                "mixed_precision": module.mixed_precision,
                "flatten_parameters": module.flatten_parameters,
                "release_hooks": self.task.cell.options["release_hooks"],
                "overlap_reduce_scatter": module.process_group_reduce_scatter
                is not module.process_group,
            },
        }


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = new


def _scaler(task: Task, device: torch.device) -> Any:
    if task.precision != "fp16":
        return torch.amp.GradScaler(device.type, enabled=False)
    return ShardedGradScaler()


if __name__ == "__main__":
    main(FairscaleFsdp)
