"""Strategies that shard never hold the whole model; those that replicate build it where it runs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from parity_cases import case_of
from shardmark.training.loop import make_task
from shardmark.training.runtime import start_runtime
from shardmark.training.strategy import Strategy
from shardmark.workload.built_in import make_workload
from shardmark.workload.materialising import Materialiser
from test_language_gate import GPT
from train_ddp import Ddp
from train_deepspeed import Zero
from train_fairscale_fsdp import FairscaleFsdp
from train_fsdp import Fsdp
from train_fsdp2 import Fsdp2

CLASSES: dict[str, type[Strategy]] = {
    "ddp": Ddp,
    "fsdp": Fsdp,
    "fsdp2": Fsdp2,
    "fairscale_fsdp": FairscaleFsdp,
    "deepspeed_zero3": Zero,
}
LAYERS = 4


def whole_elements(parts: list[nn.Module]) -> int:
    """Elements of the parameters that modules hold on this process, shards with what they have."""
    held: dict[int, int] = {}
    for part in parts:
        for parameter in part._parameters.values():
            if parameter is not None and not parameter.is_meta:
                local: Any = getattr(parameter, "to_local", lambda parameter=parameter: parameter)()
                held[id(parameter)] = local.numel()
    return sum(held.values())


def build(rank: int, world: int, name: str, port: int, folder: str) -> None:
    """Build a strategy as one rank, and save how much of the model it held at most."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= address | {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    model = GPT["model"] | {"layers": LAYERS}
    cell = case_of(name, world, **(GPT | {"model": model})).cell
    workload = make_workload(cell.definition)
    most = 0
    outlines: list[list[nn.Module]] = []
    begin, make = Materialiser.__init__, Materialiser._make

    def begin_and_remember(self: Materialiser, outline: nn.Module, *rest: Any) -> None:
        outlines.append(list(outline.modules()))
        begin(self, outline, *rest)

    def make_and_count(self: Materialiser, *what: Any) -> nn.Parameter:
        nonlocal most
        made = make(self, *what)
        most = max(most, whole_elements(outlines[-1]) + made.numel())
        return made

    Materialiser.__init__ = begin_and_remember  # type: ignore[method-assign]
    Materialiser._make = make_and_count  # type: ignore[method-assign]
    strategy = CLASSES[name](make_task(cell, start_runtime(cell), workload))
    if rank == 0:
        with torch.device("meta"):
            plain = workload.build_model(0)
        sizes = {
            "most": most,
            "all": sum(parameter.numel() for parameter in plain.parameters()),
            "block": sum(parameter.numel() for parameter in plain.blocks[0].parameters()),
        }
        Path(folder, "sizes.json").write_text(json.dumps(sizes))
    del strategy
    dist.destroy_process_group()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CLASSES)
def test_a_strategy_that_shards_never_holds_the_whole_model(name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(build, (2, name, port, str(tmp_path)), nprocs=2)
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    if name == "ddp":
        assert sizes["most"] >= sizes["all"]
        return
    blocks = LAYERS * sizes["block"]
    rest = sizes["all"] - blocks
    # Half of the blocks that are sharded, and one that is not yet; then half of all blocks, and
    # what belongs to none of them. With padding, and the parameter that is just made counted twice.
    unsharded = max((LAYERS + 1) / 2 * sizes["block"], blocks / 2 + rest)
    assert sizes["most"] <= 1.1 * unsharded + sizes["block"] / 2 < sizes["all"]
