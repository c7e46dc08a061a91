"""DDP that runs out of a GPU's memory as often as there are files in the folder FAILURES."""

import os
from pathlib import Path

import torch
from torch import Tensor

from shardmark.launching.rank import main
from shardmark.workload.contract import Inputs
from train_ddp import Ddp


class Failing(Ddp):
    """Each failure removes a file."""

    def forward(self, inputs: Inputs) -> Tensor:
        for failure in Path(os.environ["FAILURES"]).iterdir():
            failure.unlink()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.95 GiB")
        return super().forward(inputs)


if __name__ == "__main__":
    main(Failing)
