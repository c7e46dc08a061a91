"""FSDP2 whose blocks should be compiled, but the compiler gives up without an error."""

import torch

from shardmark.launching.rank import main
from train_fsdp2 import Fsdp2

if __name__ == "__main__":
    torch.compiler.set_stance("force_eager")
    main(Fsdp2)
