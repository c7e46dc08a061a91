"""DataParallel: one process, replicas made anew at every step, gradients summed on device 0."""

from __future__ import annotations

from typing import Any

from torch.nn import DataParallel

from shardmark.strategy import StateDict, Strategy, Task, unwrapped
from shardmark.training import main


class Dp(Strategy):
    """DataParallel over the GPUs of one node; on a CPU one plain module."""

    module: DataParallel[Any]

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        runtime = task.runtime
        devices = None
        if self.device.type == "cuda":
            devices = [0] * task.cell.gpus if runtime.shared_device else list(range(task.cell.gpus))
        self.module = DataParallel(task.build_model().to(self.device), device_ids=devices)
        self.optimizer = task.build_optimizer(self.module.parameters())

    def full_state_dict(self) -> StateDict:
        """Device 0 has all."""
        return unwrapped(self.module.state_dict())

    def effective_config(self) -> dict[str, Any]:
        """With the devices it scatters to."""
        return super().effective_config() | {"device_ids": list(self.module.device_ids)}


if __name__ == "__main__":
    main(Dp)
