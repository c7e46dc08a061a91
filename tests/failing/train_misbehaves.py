"""DDP whose last rank does in its fourth forward pass what MISBEHAVIOUR says."""

import ctypes
import os
import signal
import time

from torch import Tensor

from shardmark.training.rank import main
from shardmark.workload.data import Batch
from train_ddp import Ddp


class Misbehaving(Ddp):
    """Trains three steps."""

    steps = 0

    def forward(self, batch: Batch) -> Tensor:
        self.steps += 1
        runtime = self.task.runtime
        if self.steps == 4 and runtime.rank == runtime.world_size - 1:
            misbehave(os.environ["MISBEHAVIOUR"])
        return super().forward(batch)


def misbehave(how: str) -> None:
    match how:
        case "hang":
            time.sleep(600)
        case "crash":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "eat memory":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20) * 16))


if __name__ == "__main__":
    main(Misbehaving)
