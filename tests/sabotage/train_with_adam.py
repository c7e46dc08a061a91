"""DDP around another optimizer than the workload's, as a framework's own Adam would be."""

from __future__ import annotations

import dataclasses

import torch

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_ddp import Ddp


class WithAdam(Ddp):
    def __init__(self, task: Task) -> None:
        super().__init__(
            dataclasses.replace(
                task, build_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.001)
            )
        )


if __name__ == "__main__":
    main(WithAdam)
