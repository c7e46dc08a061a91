"""DDP that runs out of a GPU's memory beside other cases of the gate; ALONE_IT says how alone."""

import os

import torch
from torch import Tensor

from shardmark.launching.rank import main
from shardmark.parity.side_by_side import ALONE_VARIABLE
from shardmark.workload.contract import Inputs
from train_ddp import Ddp


class Failing(Ddp):
    """Its first step needs too much memory."""

    def forward(self, inputs: Inputs) -> Tensor:
        if ALONE_VARIABLE not in os.environ or os.environ["ALONE_IT"] != "passes":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.95 GiB")
        return super().forward(inputs)


if __name__ == "__main__":
    main(Failing)
