"""DDP that prints whether it is still alive when the process group is destroyed."""

from __future__ import annotations

import weakref
from typing import Any

import torch.distributed as dist

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_ddp import Ddp

LIVING: weakref.WeakSet[Ddp] = weakref.WeakSet()


class Watched(Ddp):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        LIVING.add(self)


destroy = dist.destroy_process_group


def destroy_and_tell(*args: Any) -> None:
    print(f"strategies alive: {len(LIVING)}", flush=True)
    destroy(*args)


if __name__ == "__main__":
    dist.destroy_process_group = destroy_and_tell
    main(Watched)
