"""DDP whose ranks divide by their own number of terms: batches with few terms weigh too much."""

from __future__ import annotations

from shardmark.launching.rank import main
from shardmark.training.runtime import Runtime
from shardmark.training.strategy import Task
from train_ddp import Ddp


class WithLocalTerms(Ddp):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        Runtime.mean_over_ranks = lambda self, value: value  # type: ignore[method-assign]


if __name__ == "__main__":
    main(WithLocalTerms)
