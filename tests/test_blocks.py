"""Checkpointing and compilation of blocks: the order of their wrappers, and names without them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import pytest
import torch
from torch import nn

from shardmark.optimizers import Optimizer
from shardmark.training.loop import make_task
from shardmark.workload.blocks import outermost_modules, plain_name, wrap_blocks
from shardmark.workload.built_in import make_workload
from shardmark.workload.optimizers import build_optimizer, count_dimensions
from small_matrix import cell_at


def network(norm: type[nn.Module] = nn.LayerNorm) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), norm(8)) for _ in range(2)]
    return nn.Sequential(nn.Linear(4, 8), *blocks, nn.Linear(8, 3))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if type(part) is nn.Sequential and part is not model]


def wrapped(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Sequential, list[nn.Module]]:
    # Generating code would take half a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = network()
    blocks = blocks_of(model)
    wrap_blocks(model, blocks, "block", "block")
    return model, outermost_modules(model, blocks)


def test_compilation_goes_around_checkpointing_and_strategies_shard_what_is_outermost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, units = wrapped(monkeypatch)
    assert units == [model[1], model[2]]
    kinds = [type(part).__name__ for part in units[0].modules()]
    assert kinds == ["OptimizedModule", "CheckpointWrapper", "Sequential", "Linear", "LayerNorm"]
    plain = network()
    assert outermost_modules(plain, blocks_of(plain)) == blocks_of(plain)


def test_wrapped_blocks_keep_their_names_and_compute_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = wrapped(monkeypatch)
    plain = network()
    assert [plain_name(name) for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    inputs = torch.randn(5, 4)
    for each in (model, plain):
        each(inputs).square().sum().backward()
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_checkpointing_saves_no_state_of_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    wrap_blocks(model, blocks_of(model), "block", "none")
    reads: list[str] = []
    read = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: reads.append("read") or read())
    model(torch.randn(5, 4)).sum().backward()
    assert not reads


@pytest.mark.parametrize("compilation", ["none", "block"])
def test_recomputation_does_not_update_batchnorms_statistics_again(
    compilation: Literal["none", "block"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model, plain = network(nn.BatchNorm1d), network(nn.BatchNorm1d)
    wrap_blocks(model, blocks_of(model), "block", compilation)
    for _ in range(2):
        inputs = torch.randn(5, 4)
        for each in (model, plain):
            each(inputs).square().sum().backward()
    mine = {plain_name(name): buffer for name, buffer in model.named_buffers()}
    torch.testing.assert_close(mine, dict(plain.named_buffers()))
    assert mine["1.1.num_batches_tracked"] == 2
    for own, its in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, its.grad)


def test_only_matrices_decay_whatever_shape_their_shards_have() -> None:
    settings = Optimizer(learning_rate=0.1, weight_decay=0.5, decay="matrices")
    model = network()
    known = count_dimensions(model)
    for parameter in model.parameters():  # as FSDP1 has them
        parameter.data = parameter.data.flatten()
    decayed, kept = build_optimizer(model, settings, 0.1, known).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    assert [parameter.numel() for parameter in decayed["params"]] == [32, 64, 64, 24]
    assert len(kept["params"]) == len(known) - 4
    (alone,) = build_optimizer(model, Optimizer(learning_rate=0.1), 0.1).param_groups
    assert len(alone["params"]) == len(known)


@pytest.mark.parametrize(("decay", "built"), [("all", 0), ("matrices", 1)])
def test_a_second_network_is_built_only_where_dimensions_matter(
    decay: str, built: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_at(workloads__small__optimizer={"learning_rate": 0.1, "decay": decay})
    seeds: list[int] = []

    def build(seed: int) -> nn.Module:
        seeds.append(seed)
        return network()

    runtime = cast(Any, None)  # only a strategy reads it
    workload = make_workload(cell.definition)
    monkeypatch.setattr(workload, "build_model", build)
    task = make_task(cell, runtime, workload)
    task.build_optimizer(network())
    assert seeds == [cell.seed] * built
