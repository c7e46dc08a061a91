"""FSDP2 whose blocks torch compiles without generating code, which takes a CPU a minute."""

from functools import partial

import torch

from shardmark.launching.rank import main
from train_fsdp2 import Fsdp2

if __name__ == "__main__":
    torch.compile = partial(torch.compile, backend="aot_eager")
    main(Fsdp2)
