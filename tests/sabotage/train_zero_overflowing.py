"""ZeRO whose loss scale is so high at first that gradients overflow and steps are left out."""

from __future__ import annotations

import torch

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_deepspeed import Zero


class Overflowing(Zero):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**22)
        self.optimizer.torch_autocast_gradscaler = scaler


if __name__ == "__main__":
    main(Overflowing)
