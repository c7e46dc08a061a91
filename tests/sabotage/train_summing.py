"""DDP that adds the ranks' gradients instead of averaging them."""

from torch import Tensor

from shardmark.launching.rank import main
from train_ddp import Ddp


class DdpSumming(Ddp):
    """Scales the loss up by what DDP divides by."""

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.task.runtime.world_size)


if __name__ == "__main__":
    main(DdpSumming)
