"""FSDP2 told to reshard after the forward pass, whose units stay gathered all the same."""

from __future__ import annotations

from torch.distributed.fsdp import FSDPModule

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_fsdp2 import Fsdp2


class WithoutResharding(Fsdp2):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        assert isinstance(self.module, FSDPModule)
        self.module.set_reshard_after_forward(False)


if __name__ == "__main__":
    main(WithoutResharding)
