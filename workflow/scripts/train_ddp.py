"""DistributedDataParallel: full replicas; the backward pass averages gradients by buckets."""

from __future__ import annotations

import inspect
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from shardmark.launching.rank import main
from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state

# The gradient of a 1x1 convolution on channels_last inputs differs from the bucket's view only in
# the stride of a dimension of size 1, which does not change the memory layout.
warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")

# Off, because a broadcast in the forward pass would give every rank the batch-norm statistics of
# rank 0, which no other strategy does. torch 2.12 renamed the switch.
_BUFFERS_STAY: dict[str, Any] = next(
    {name: False}
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)
_HOOKS = {
    "bf16_compress": default_hooks.bf16_compress_hook,
    "fp16_compress": default_hooks.fp16_compress_hook,
}


class Ddp(Strategy):
    """DistributedDataParallel, set up as in its documentation."""

    module: DistributedDataParallel

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        options = task.cell.options
        model = task.build_model()
        self.module = DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            bucket_cap_mb=options["bucket_cap_mb"],
            static_graph=options["static_graph"],
            gradient_as_bucket_view=True,
            # Costs a walk over the graph in each step, so only where the model needs it. A static
            # graph finds unused parameters by itself.
            find_unused_parameters=(
                bool(task.uses.unused or task.uses.why_unknown) and not options["static_graph"]
            ),
            **_BUFFERS_STAY,
        )
        if options["comm_hook"] != "none":
            self.module.register_comm_hook(None, _HOOKS[options["comm_hook"]])
        if task.cell.compilation == "model":
            self.module.compile(dynamic=False)
        self.optimizer = task.build_optimizer(model)
        if options["zero_redundancy"]:
            # The groups have all of the optimizer's settings.
            groups: Any = self.optimizer.param_groups
            self.optimizer = ZeroRedundancyOptimizer(groups, type(self.optimizer))

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Average gradients over the ranks in the last micro-batch only."""
        return nullcontext() if last else self.module.no_sync()

    def full_state_dict(self) -> StateDict:
        """This rank's state; every rank has all parameters."""
        return unwrap_state(self.module.state_dict())

    def effective_config(self) -> dict[str, Any]:
        """The settings, with DDP's own."""
        logged = cast(Any, self.module)._get_ddp_logging_data()
        buckets = logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]
        sharded = isinstance(self.optimizer, ZeroRedundancyOptimizer)
        return super().effective_config() | {
            "zero_stage": 1 if sharded else 0,
            "shard_ranks": cast(Any, self.optimizer).world_size if sharded else 1,
            "bucket_bytes": [int(size) for size in buckets.split(",")],
            "buffers_broadcast": cast(Any, self.module).will_sync_module_buffers(),
            "own": {
                "bucket_cap_mb": self.module.bucket_bytes_cap / 2**20,
                "gradient_as_bucket_view": self.module.gradient_as_bucket_view,
                "static_graph": self.module.static_graph,
                "find_unused_parameters": self.module.find_unused_parameters,
                "comm_hook": logged.get("comm_hook", "none"),
                "optimizer_wrapper": type(self.optimizer).__name__ if sharded else "none",
            },
        }


if __name__ == "__main__":
    main(Ddp)
