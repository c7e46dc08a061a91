"""DDP whose last rank fails in the second step, as the environment's FAILURE says."""

import os

import torch
from torch import Tensor

from shardmark.launching.rank import main
from shardmark.workload.contract import Inputs
from train_ddp import Ddp


class Failing(Ddp):
    """Trains one step."""

    steps = 0

    def forward(self, inputs: Inputs) -> Tensor:
        self.steps += 1
        runtime = self.task.runtime
        if self.steps == 2 and runtime.rank == runtime.world_size - 1:
            fail(os.environ["FAILURE"])
        return super().forward(inputs)


def fail(kind: str) -> None:
    if kind == "memory":
        torch.empty(1 << 60, dtype=torch.uint8)
    if kind == "device memory":
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    raise ArithmeticError("the wheels came off")


if __name__ == "__main__":
    main(Failing)
