"""Data parallelism by hand: one all-reduce for the gradients of all parameters together."""

from __future__ import annotations

import torch
import torch.distributed as dist

from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state


class OneAllReduce(Strategy):
    """Every rank has the whole model, and reduces its gradients after the backward pass."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.module = task.build_model()
        self.optimizer = task.build_optimizer(self.module)

    def step(self) -> None:
        """Average the gradients over the ranks, then update."""
        gradients = [each.grad for each in self.module.parameters() if each.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        together /= self.task.runtime.world_size
        means = together.split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        super().step()

    def full_state_dict(self) -> StateDict:
        """The state of this rank; every rank has all parameters."""
        return unwrap_state(self.module.state_dict())
