"""ZeRO under an autocast of the loop's alone, which DeepSpeed switches off in its engine.

DeepSpeed asks whether CUDA's autocast is on; without a GPU that is set here, and it then switches
off the CPU's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import train_deepspeed
from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from shardmark.workload.contract import Inputs
from shardmark.workload.precision import autocast

engine_config = train_deepspeed.engine_config


def without_autocast(task: Task, stage: int) -> dict[str, Any]:
    config = engine_config(task, stage)
    del config["torch_autocast"]
    return config


train_deepspeed.engine_config = without_autocast


class OuterAutocast(train_deepspeed.Zero):
    def forward(self, inputs: Inputs) -> Tensor:
        with autocast(self.task.precision, self.device.type):
            torch.set_autocast_enabled("cuda", True)
            try:
                return super().forward(inputs)
            finally:
                torch.set_autocast_enabled("cuda", False)


if __name__ == "__main__":
    main(OuterAutocast)
