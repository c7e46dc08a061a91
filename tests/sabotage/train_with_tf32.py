"""DDP that allows TensorFloat-32 when it is built."""

from __future__ import annotations

import torch

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_ddp import Ddp


class WithTf32(Ddp):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        torch.set_float32_matmul_precision("high")


if __name__ == "__main__":
    main(WithTf32)
