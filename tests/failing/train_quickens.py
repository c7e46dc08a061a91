"""DDP whose steps are slow until the steady window begins."""

from __future__ import annotations

import time

from shardmark.launching.rank import main
from train_ddp import Ddp

# Of a small test cell: four of its epoch, the inspected one, four of the warm-up.
SLOW_STEPS = 9


class Quickening(Ddp):
    steps = 0

    def step(self) -> None:
        if self.steps < SLOW_STEPS:
            time.sleep(0.05)
        self.steps += 1
        super().step()


if __name__ == "__main__":
    main(Quickening)
