"""DDP that forgets to average gradients: every rank trains a model of its own."""

from contextlib import AbstractContextManager

from shardmark.launching.rank import main
from train_ddp import Ddp


class DdpWithoutAveraging(Ddp):
    """Never leaves no_sync."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        return self.module.no_sync()


if __name__ == "__main__":
    main(DdpWithoutAveraging)
