"""HSDP whose copies do not average their gradients: each copy trains a model of its own."""

from __future__ import annotations

import train_fsdp2
from shardmark.launching.rank import main
from shardmark.training.device_mesh import data_mesh
from shardmark.training.strategy import Task


class CopiesApart(train_fsdp2.Fsdp2):
    def __init__(self, task: Task) -> None:
        train_fsdp2.data_mesh = lambda task: data_mesh(task)["shard"]
        super().__init__(task)


if __name__ == "__main__":
    main(CopiesApart)
