"""DataParallel: one process, replicas made anew at every step, gradients summed on device 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import DataParallel

from shardmark.training.rank import main
from shardmark.training.strategy import StateDict, Strategy, Task, unwrapped
from shardmark.workload.data import Batch
from shardmark.workload.precision import autocast


class AutocastInside(nn.Module):
    """A network that enters autocast itself.

    DataParallel hands an outer autocast on to its replicas' threads without its dtype, so that
    they would compute in float16 where bfloat16 was asked for.
    """

    def __init__(self, inner: nn.Module, precision: str, device_type: str) -> None:
        super().__init__()
        self.inner = inner
        self.precision = precision
        self.device_type = device_type

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """As the network's own."""
        with autocast(self.precision, self.device_type):
            logits: Tensor = self.inner(images, keys)
        return logits


class Dp(Strategy):
    """DataParallel over the GPUs of one node; on a CPU one plain module."""

    module: DataParallel[Any]

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        runtime = task.runtime
        devices = None
        if self.device.type == "cuda":
            devices = [0] * task.cell.gpus if runtime.shared_device else list(range(task.cell.gpus))
        model = AutocastInside(task.build_model(), task.precision, self.device.type)
        self.module = DataParallel(model.to(self.device), device_ids=devices)
        self.optimizer = task.build_optimizer(self.module.parameters())

    def forward(self, batch: Batch) -> Tensor:
        """Logits (batch, classes) of all replicas' images, gathered on device 0."""
        logits: Tensor = self.module(batch.images, batch.keys)
        return logits

    def full_state_dict(self) -> StateDict:
        """Device 0 has all."""
        return unwrapped(self.module.state_dict(), "module.inner.")

    def effective_config(self) -> dict[str, Any]:
        """With the devices it scatters to."""
        return super().effective_config() | {"own": {"device_ids": list(self.module.device_ids)}}


if __name__ == "__main__":
    main(Dp)
