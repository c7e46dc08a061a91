"""DDP whose last rank does in its fourth step what MISBEHAVIOUR says."""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from shardmark.launching.rank import main
from shardmark.workload.contract import Inputs
from train_ddp import Ddp


class Misbehaving(Ddp):
    """Trains three steps."""

    steps = 0

    def forward(self, inputs: Inputs) -> Tensor:
        self.steps += 1
        loss = super().forward(inputs)
        return loss * misbehave(os.environ["MISBEHAVIOUR"], loss) if self.its_turn else loss

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self.its_turn and os.environ["MISBEHAVIOUR"] == "stop":
            # On a GPU the gradients are on their way: the others wait in a collective.
            Path(os.environ["STOPPED"]).touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    @property
    def its_turn(self) -> bool:
        runtime = self.task.runtime
        return self.steps == 4 and runtime.rank == runtime.world_size - 1


def misbehave(how: str, loss: Tensor) -> float:
    match how:
        case "no number":
            return float("nan")
        case "out of memory":
            torch.empty(2**50, device=loss.device)
        case "hang":
            time.sleep(600)
        case "crash":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "exit without a word":
            os._exit(0)
        case "sys.exit":
            sys.exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose the folder":
            shutil.rmtree(os.environ["SCRATCH_FOLDER"])
        case "fill the disk":
            with contextlib.suppress(OSError), Path(os.environ["FILLER"]).open("ab", 0) as filler:
                while True:
                    filler.write(bytes(4096))
        case signal_name if signal_name.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[signal_name])
            time.sleep(600)
        case "eat memory":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20) * 16))
    return 1.0


if __name__ == "__main__":
    main(Misbehaving)
