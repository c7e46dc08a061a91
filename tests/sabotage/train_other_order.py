"""DDP that trains on the right samples in another order."""

from torch import Tensor

from shardmark.launching.rank import main
from shardmark.workload import data
from train_ddp import Ddp

right_order = data.epoch_order


def other_order(seed: int, epoch: int, samples: int) -> Tensor:
    """The next seed's order."""
    return right_order(seed + 1, epoch, samples)


if __name__ == "__main__":
    data.epoch_order = other_order
    main(Ddp)
