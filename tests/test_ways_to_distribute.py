"""HSDP, groups that keep a copy, CPU offload and a sharded optimizer, beside the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from parity_cases import ROOT, case_of
from shardmark.cells import ParityCase
from shardmark.parity_result import Parity
from test_language_gate import GPT

Gate = Callable[..., Parity]
SABOTAGE = ROOT / "tests/sabotage"
# Two copies of two ranks each, or one copy of four that pairs keep after the forward pass.
IN_PAIRS = ("fsdp_hsdp", "fsdp2_hsdp", "fsdp2_pairs", "zero3_pairs")
OFFLOADS = (
    "fsdp2_offload",
    "zero1_offload",
    "zero2_offload",
    "zero3_offload_optimizer",
    "zero3_offload",
)
CLIPS = {"decay": "matrices", "clip_norm": 0.5}
ADAMW = GPT["optimizer"] | CLIPS | {"fused": True}
ACCUMULATES = {"batch": {"per_gpu": 4, "accumulate": 2}}
# ZeRO-3 shards only tensors of 100,000 elements, here those of the vocabulary. Pairs gather their
# own copy in the second micro-batch.
WIDE = GPT | ACCUMULATES | {"model": GPT["model"] | {"vocabulary": 4096}}
CLIPPED = GPT | ACCUMULATES | {"optimizer": ADAMW}
KINDS: dict[str, dict[str, Any]] = {
    "images": {},
    "images, accumulation, clipping": {
        "batch": {"per_gpu": 16, "accumulate": 2},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.05} | CLIPS,
    },
    "tokens": GPT,
    "tokens, accumulation": WIDE,
    "tokens, accumulation, clipping": CLIPPED,
    "tokens, accumulation, clipping, checkpoints, bf16": CLIPPED
    | {"precision": "bf16", "activation_checkpointing": "block"},
}


def assert_passes(case: ParityCase, gate: Gate) -> None:
    parity = gate(case)
    assert parity.status == "passed", (case.cell.title, parity.reason)
    assert parity.precisions[0].deviation.loss <= 1e-5
    assert parity.precisions[0].noise_floor.loss <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "kind"),
    [
        ("fsdp_hsdp", 4, "tokens, accumulation, clipping"),
        ("fsdp2_hsdp", 4, "tokens, accumulation, clipping"),
        ("fsdp2_pairs", 4, "tokens, accumulation"),
        ("zero3_pairs", 4, "tokens, accumulation"),
        ("ddp_zero1", 2, "images"),
        ("ddp_zero1", 2, "tokens, accumulation, clipping"),
        ("fsdp2_offload", 2, "tokens, accumulation, clipping"),
        ("zero1_offload", 2, "tokens, accumulation, clipping"),
        ("zero3_offload", 2, "tokens, accumulation, clipping"),
    ],
)
def test_each_way_trains_the_oracles_model(
    strategy: str, ranks: int, kind: str, gate: Gate
) -> None:
    assert_passes(case_of(strategy, ranks, **KINDS[kind]), gate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "script", "kind"),
    [
        ("fsdp2_hsdp", 4, "train_hsdp_without_averaging.py", "images"),
        ("ddp_zero1", 2, "train_without_broadcast.py", "images"),
        ("zero3_pairs", 4, "train_with_stale_copies.py", "tokens, accumulation"),
    ],
)
def test_each_way_that_goes_wrong_is_caught(
    strategy: str, ranks: int, script: str, kind: str, gate: Gate
) -> None:
    parity = gate(case_of(strategy, ranks, **KINDS[kind]), SABOTAGE / script)
    assert parity.status == "failed", parity.precisions
    assert "fp32: loss" in (parity.reason or "")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", [*IN_PAIRS, *OFFLOADS, "ddp_zero1"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_way_trains_every_kind(strategy: str, ranks: int, gate: Gate) -> None:
    """With ``-s`` it prints a row of a table, whose columns are ``KINDS``."""
    row = [strategy, str(ranks)]
    for kind in KINDS.values():
        case = case_of(strategy, ranks, **kind)
        row.append(f"unsupported: {case.cell.unsupported}")
        if not case.cell.unsupported:
            assert_passes(case, gate)
            row[-1] = "passed"
    print(f"| {' | '.join(row)} |", flush=True)
