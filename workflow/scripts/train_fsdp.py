"""FSDP1: FullyShardedDataParallel, with one flat parameter per block."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.fsdp import (
    BackwardPrefetch,
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecision,
    ShardingStrategy,
    StateDictType,
)
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import CustomPolicy

from shardmark.launching.rank import main
from shardmark.training.device_mesh import data_mesh
from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state

# Whether there are several copies of the model's state, and the option.
_SHARDING = {
    (False, "full_shard"): ShardingStrategy.FULL_SHARD,
    (False, "shard_grad_op"): ShardingStrategy.SHARD_GRAD_OP,
    (True, "full_shard"): ShardingStrategy.HYBRID_SHARD,
    (True, "shard_grad_op"): ShardingStrategy._HYBRID_SHARD_ZERO2,
}
# With one rank FSDP shards nothing (NO_SHARD), whatever is configured.
_ZERO_STAGE = {
    ShardingStrategy.FULL_SHARD: 3,
    ShardingStrategy.SHARD_GRAD_OP: 2,
    ShardingStrategy.HYBRID_SHARD: 3,
    ShardingStrategy._HYBRID_SHARD_ZERO2: 2,
    ShardingStrategy.NO_SHARD: 0,
}
_PREFETCH = {
    "backward_pre": BackwardPrefetch.BACKWARD_PRE,
    "backward_post": BackwardPrefetch.BACKWARD_POST,
    "none": None,
}


class Fsdp(Strategy):
    """FullyShardedDataParallel with a wrapping policy; without one, nothing would overlap."""

    module: FullyShardedDataParallel

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        options = task.cell.options
        model = task.build_outline()
        units = task.shard_units(model)
        param_dtype, reduce_dtype = task.low_dtype("param_dtype"), task.low_dtype("reduce_dtype")
        self.autocasts = param_dtype is None
        # FSDP itself keeps batch-norm in float32.
        mixed = MixedPrecision(param_dtype=param_dtype, reduce_dtype=reduce_dtype or torch.float32)
        mesh = data_mesh(task)
        self.module = FullyShardedDataParallel(
            model,
            # Without copies FSDP uses all ranks by itself.
            device_mesh=mesh if mesh.ndim == 2 else None,
            sharding_strategy=_SHARDING[mesh.ndim == 2, options["sharding"]],
            auto_wrap_policy=CustomPolicy(lambda module: module in units),
            backward_prefetch=_PREFETCH[options["backward_prefetch"]],
            mixed_precision=mixed if param_dtype or reduce_dtype else None,
            device_id=self.device,
            # FSDP calls it for each module of a unit that is still on the meta device.
            param_init_fn=task.materialiser(model).own,
            use_orig_params=True,
        )
        # A plain scaler would look for infinities only in this rank's shard.
        self.scaler = ShardedGradScaler(self.device.type, enabled=task.precision == "fp16")
        self.optimizer = task.build_optimizer(self.module)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients in the last micro-batch only.

        One rank has nobody to reduce with. There FSDP1's ``no_sync`` refuses tied parameters in low
        precision: it assigns the low gradient of one to the other in float32 (torch 2.15).
        """
        alone = self.task.runtime.world_size == 1
        return nullcontext() if last or alone else self.module.no_sync()

    def clip(self, norm: float) -> None:
        """Clip by the norm over the shards of all ranks."""
        self.module.clip_grad_norm_(norm)

    def accumulation_dtype(self) -> torch.dtype:
        """That of the gathered parameter: FSDP1 reduces only the sum, and rounds it before that.

        Seen with torch 2.15: after a micro-batch in ``no_sync``, the flat parameter's gradient is
        in ``param_dtype``. FSDP2 keeps it in ``reduce_dtype``. One rank never enters ``no_sync``.
        """
        if self.task.runtime.world_size == 1:
            return super().accumulation_dtype()
        units = FullyShardedDataParallel.fsdp_modules(self.module)
        # torch has no public way to read it.
        handle = next(unit._handle for unit in units if unit._handle is not None)
        return cast(torch.dtype, handle._fwd_bwd_param_dtype)

    def full_state_dict(self) -> StateDict:
        """The parameters and buffers, gathered on rank 0."""
        config = FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
        with FullyShardedDataParallel.state_dict_type(
            self.module, StateDictType.FULL_STATE_DICT, config
        ):
            return unwrap_state(self.module.state_dict())

    def effective_config(self) -> dict[str, Any]:
        """The settings, with the number of units and FSDP's own options."""
        units = FullyShardedDataParallel.fsdp_modules(self.module)
        mixed = self.module.mixed_precision
        return super().effective_config() | {
            "zero_stage": _ZERO_STAGE[self.module.sharding_strategy],
            "shard_ranks": dist.get_world_size(self.module.process_group),
            "sharded_units": len(units),
            "own": {
                "sharding": self.module.sharding_strategy.name.lower(),
                "backward_prefetch": getattr(self.module.backward_prefetch, "name", "none").lower(),
                "limit_all_gathers": self.module.limit_all_gathers,
                "param_dtype": str(mixed.param_dtype or torch.float32),
                "reduce_dtype": str(mixed.reduce_dtype or torch.float32),
            },
        }


if __name__ == "__main__":
    main(Fsdp)
