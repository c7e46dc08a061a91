"""DDP that fails with a batch of more than LIMIT samples, on the last rank, as FAILURES says.

FAILURES is a file with one failure per line; each process group takes the first line that is left,
and the last line stays.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor

from shardmark.launching.rank import main
from shardmark.workload.contract import Inputs
from train_ddp import Ddp


class Limited(Ddp):
    def forward(self, inputs: Inputs) -> Tensor:
        runtime = self.task.runtime
        too_large = len(inputs[0]) > int(os.environ["LIMIT"])
        if too_large and runtime.rank == runtime.world_size - 1:
            fail(Path(os.environ["FAILURES"]))
        return super().forward(inputs)


def fail(file: Path) -> None:
    how, *left = file.read_text().splitlines()
    if left:
        file.write_text("\n".join(left))
    match how:
        case "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "no kernel":
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
        case _:
            raise ArithmeticError("the wheels came off")


if __name__ == "__main__":
    main(Limited)
