"""Bytes of model state: ZeRO's formulas, and what real ranks hold beside them; and model costs."""

from __future__ import annotations

import pytest
import torch

from real_cells import cell_named, metrics_of_run
from shardmark.measurement.model_cost import cost_of
from shardmark.measurement.model_state import bytes_each, host_bytes, predicted, storages
from shardmark.metrics import Memory, ModelState
from shardmark.optimizers import Optimizer
from shardmark.workload.built_in import make_workload

WHOLE = 78_042 * 4  # ResNet-8's parameters in float32
HALF = WHOLE // 2


def memory_of(strategy: str) -> Memory:
    memory = metrics_of_run(strategy).memory
    assert memory is not None
    print(strategy, memory)
    assert len(memory.measured) == 2
    return memory


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_the_formulas_give_the_papers_figures(stage: int, gigabytes: float) -> None:
    state = predicted(7_500_000_000, stage, 64, (2, 2, 12))
    assert sum(state.model_dump().values()) / 1e9 == pytest.approx(gigabytes, rel=5e-3)


def test_the_optimizer_says_how_many_numbers_it_keeps_a_parameter() -> None:
    assert bytes_each(Optimizer(learning_rate=0.1), "fp32") == (4, 4, 4)
    assert bytes_each(Optimizer(learning_rate=0.1, momentum=0.0), "fp32") == (4, 4, 0)
    assert bytes_each(Optimizer(name="adam", learning_rate=0.1), "fp32") == (4, 4, 8)


def test_views_of_one_memory_count_it_once_and_whole() -> None:
    buffer = torch.zeros(1000)
    assert sum(storages([buffer[:10], buffer[10:20], None]).values()) == 4000


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp2"])
def test_torchs_own_strategies_hold_what_is_predicted(strategy: str) -> None:
    memory = memory_of(strategy)
    size = WHOLE if strategy == "ddp" else HALF
    expected = ModelState(parameters_bytes=size, gradients_bytes=size, optimizer_state_bytes=size)
    assert memory.predicted == expected
    for state in memory.measured:
        for name, found in state:
            assert found == pytest.approx(getattr(expected, name), rel=1e-3), name


def test_what_is_offloaded_is_not_in_the_devices_memory() -> None:
    on_device = torch.zeros(1000, device="meta")
    offloaded, counter = torch.zeros(500), torch.zeros(())
    assert host_bytes([on_device, offloaded, offloaded[:10], counter, None], "cuda") == 2000
    assert host_bytes([offloaded], "cpu") == 0, "there it is the device's memory"
    sizes = {
        offload: predicted(1000, 3, 2, (4, 4, 8), offload)
        for offload in ("none", "optimizer", "all")
    }
    assert {name: state.host_bytes for name, state in sizes.items()} == {
        "none": 0,
        "optimizer": 6000,
        "all": 8000,
    }
    assert sizes["optimizer"].device_bytes == 2000


def test_a_sharded_optimizer_holds_part_of_its_state() -> None:
    memory = metrics_of_run("ddp_zero1", accumulate=2, hidden_units=4096).memory
    assert memory is not None
    whole = memory.parameters * 4
    assert (memory.zero_stage, memory.predicted.optimizer_state_bytes) == (1, whole // 2)
    # Each parameter's momentum is on one rank.
    assert sum(state.optimizer_state_bytes for state in memory.measured) == whole


def test_what_zero_holds_beside_its_formula_is_seen() -> None:
    one = memory_of("deepspeed_zero1")
    assert one.zero_stage == 1
    assert one.predicted.optimizer_state_bytes == HALF
    for state in one.measured:
        assert state.parameters_bytes == pytest.approx(WHOLE, rel=1e-3)
        # Float32 parameters have a float32 copy beside the momentum.
        assert state.optimizer_state_bytes == pytest.approx(2 * HALF, rel=1e-3)
    # Parameters of fewer than 100,000 elements, here all, stay gathered beside their shards.
    for state in memory_of("deepspeed_zero3").measured:
        assert state.parameters_bytes == pytest.approx(WHOLE + HALF, rel=1e-3)


def test_fairscales_gradient_bucket_is_held_whole() -> None:
    memory = memory_of("fairscale_fsdp")
    bucket = 25 * 2**20 // 2
    assert [state.gradients_bytes for state in memory.measured] == [bucket, bucket]


def test_flops_of_resnet50_are_those_of_its_layers() -> None:
    model = {"name": "resnet50"}
    cell = cell_named("ddp", model=model, dataset={"name": "synthetic", "image_size": 224})
    large = cost_of(make_workload(cell.definition))
    # He et al. 2015, table 1: 3.8e9 multiply-adds; torchvision's has its stride in the 3x3 layer
    # and 4.09e9. The backward pass costs twice that, less the gradient of the image.
    forward = 2 * 4.09e9
    stem = 2 * 7 * 7 * 3 * 64 * 112 * 112
    print(large)
    assert large.flops_per_item == pytest.approx(3 * forward - stem, rel=5e-3)


def test_one_rank_has_nothing_to_shard_whatever_fsdp1_is_told() -> None:
    memory = metrics_of_run("fsdp", 1).memory
    assert memory is not None
    assert memory.zero_stage == 0
