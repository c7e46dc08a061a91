"""What cells change in FairScale 0.4.13: hooks that pile up, and a second communicator."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from fairscale.nn.data_parallel import FullyShardedDataParallel

from real_cells import cell_named
from shardmark.processes.heartbeat import Heartbeat
from shardmark.training.loop import make_task, take_step, training_data
from shardmark.training.runtime import start_runtime
from shardmark.workload.built_in import make_workload
from train_fairscale_fsdp import FairscaleFsdp

STEPS = 3
# Of ResNet-8: its three blocks, and the network around them.
UNITS = 4


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    yield
    dist.destroy_process_group()


def hooks() -> int:
    """Backward hooks of FairScale that are alive."""
    gc.collect()
    return sum(
        type(found) is functools.partial
        and getattr(found.func, "__name__", "") == "_post_backward_hook"
        for found in gc.get_objects()
    )


@pytest.mark.parametrize(("release", "left"), [(True, 0), (False, STEPS * 2 * UNITS)])
def test_hooks_do_not_pile_up(one_process: None, release: bool, left: int) -> None:
    cell = cell_named("fairscale_fsdp", gpus=1, batch={"global": 16, "accumulate": 2})
    cell = cell.model_copy(update={"options": cell.options | {"release_hooks": release}})
    runtime = start_runtime(cell)
    workload = make_workload(cell.definition)
    strategy = FairscaleFsdp(make_task(cell, runtime, workload))
    data = training_data(
        workload,
        workload.rows(Path(), train=True),
        cell.seed,
        replicas=runtime.replicas,
        replica_count=1,
        per_replica=16,
        device=runtime.device,
    )
    strategy.train()
    for micro_batches in data.epoch(0, STEPS):
        take_step(strategy, micro_batches, Heartbeat())
    assert hooks() == left


@pytest.mark.parametrize(
    ("overlap", "precision", "overlaps"),
    [(None, "bf16", True), (None, "fp16", False), (False, "bf16", False), (True, "fp16", True)],
)
def test_in_fp16_all_collectives_have_one_communicator(
    one_process: None, overlap: bool | None, precision: str, overlaps: bool
) -> None:
    cell = cell_named("fairscale_fsdp", gpus=1, precision=precision)
    cell = cell.model_copy(update={"options": cell.options | {"overlap_reduce_scatter": overlap}})
    strategy = FairscaleFsdp(make_task(cell, start_runtime(cell), make_workload(cell.definition)))
    units = [part for part in strategy.module.modules() if type(part) is FullyShardedDataParallel]
    assert len(units) == UNITS
    groups = {part.process_group for part in units}
    groups |= {part.process_group_reduce_scatter for part in units}
    # The loss is averaged over the default process group.
    assert (groups == {dist.group.WORLD}) is not overlaps
    assert strategy.effective_config()["own"]["overlap_reduce_scatter"] is overlaps
