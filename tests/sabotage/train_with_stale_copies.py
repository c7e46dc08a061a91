"""ZeRO-3 whose groups go on with the copy that they kept before the update."""

from __future__ import annotations

from typing import Any, cast

from shardmark.launching.rank import main
from shardmark.training.strategy import Task
from train_deepspeed import Zero


class WithStaleCopies(Zero):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        cast(Any, self.optimizer).invalidate_secondary_tensor = lambda: None


if __name__ == "__main__":
    main(WithStaleCopies)
