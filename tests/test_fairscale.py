"""FairScale's hooks: released after each pass, where FairScale 0.4.13 itself lets them pile up."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

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
