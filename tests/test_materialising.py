"""Strategies that shard never hold the whole model; those that replicate build it where it runs."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import forked_ranks
from parity_cases import DEVICE, case_of, skip_without_gpus
from shardmark.slurm.allocation import free_port
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


def live_elements(made: list[weakref.ref[nn.Parameter]]) -> int:
    """Elements in memory of the parameters that still live, whoever holds them."""
    alive = [parameter for reference in made if (parameter := reference()) is not None]
    storages = {data.data_ptr(): data for data in (part.data.untyped_storage() for part in alive)}
    return sum(storage.nbytes() for storage in storages.values()) // 4


def build(rank: int, world: int, name: str, port: int, folder: str) -> None:
    """Build a strategy as one rank, and save how much of the model it held at most."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= address | {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    model = GPT["model"] | {"layers": LAYERS}
    cell = case_of(name, world, **(GPT | {"model": model})).cell
    workload = make_workload(cell.definition)
    most = 0
    made: list[weakref.ref[nn.Parameter]] = []
    make = Materialiser._make

    def make_and_count(self: Materialiser, *what: Any) -> nn.Parameter:
        nonlocal most
        parameter = make(self, *what)
        made.append(weakref.ref(parameter))
        most = max(most, live_elements(made))
        return parameter

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


@pytest.mark.parametrize("name", CLASSES)
def test_a_strategy_that_shards_never_holds_the_whole_model(name: str, tmp_path: Path) -> None:
    skip_without_gpus(2)
    # Forks of a process that has a GPU lose it.
    spawn = mp.spawn if DEVICE == "cuda" else forked_ranks.spawn
    spawn(build, (2, name, free_port(str(os.getpid())), str(tmp_path)), nprocs=2)
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    if name == "ddp":
        assert sizes["most"] >= sizes["all"]
        return
    blocks = LAYERS * sizes["block"]
    rest = sizes["all"] - blocks
    # Half of the blocks that are sharded, and one that is not yet; then half of all blocks, and
    # what belongs to none of them. With padding.
    unsharded = max((LAYERS + 1) / 2 * sizes["block"], blocks / 2 + rest)
    assert sizes["block"] <= sizes["most"] <= 1.1 * unsharded < sizes["all"]
