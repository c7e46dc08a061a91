"""A sharded optimizer whose ranks keep to themselves the parameters that they update."""

from __future__ import annotations

from typing import Any, cast

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_ddp import Ddp


class WithoutBroadcast(Ddp):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        cast(Any, self.optimizer)._sync_params = lambda: None


if __name__ == "__main__":
    main(WithoutBroadcast)
