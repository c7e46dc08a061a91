"""The parity gate on language models: every strategy trains the oracle's model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from parity_cases import STRATEGIES, case_of
from shardmark.cells import ParityCase
from shardmark.parity.judgement import ROUNDING_RMS
from shardmark.parity_result import Parity

Gate = Callable[[ParityCase], Parity]
GPT: dict[str, Any] = {
    "model": {"name": "gpt", "layers": 3, "width": 32, "heads": 2, "context": 16, "vocabulary": 80},
    "dataset": {"name": "synthetic_tokens"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
    "batch": {"per_gpu": 4},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"model": GPT["model"] | {"tied": True}},
    "accumulation": {"batch": {"per_gpu": 4, "accumulate": 2}},
    "tied, accumulation": {
        "model": GPT["model"] | {"tied": True},
        "batch": {"per_gpu": 4, "accumulate": 2},
    },
}


KINDS["fp16"] = {"precision": "fp16"}
# What the default matrix times: bf16, clipping, checkpointing, decay of matrices alone.
KINDS["as timed"] = {
    "precision": "bf16",
    "activation_checkpointing": "block",
    "optimizer": GPT["optimizer"] | {"decay": "matrices", "clip_norm": 0.5, "fused": True},
}
KINDS["bf16, tied, accumulation"] = KINDS["tied, accumulation"] | {"precision": "bf16"}
# SGD shows an error of the norm: its update grows with the gradient, unlike Adam's.
KINDS["large, clipped"] = {
    "model": GPT["model"] | {"width": 128, "vocabulary": 80_000, "tied": True, "layers": 1},
    "optimizer": {"name": "sgd", "learning_rate": 1.0, "clip_norm": 0.1},
}
RECOMMENDED = [
    "fsdp_bf16",
    "fsdp2_bf16",
    "zero1_bf16_communication",
    "zero3_bf16_communication",
    "zero1_bf16",
    "zero2_bf16",
    "zero3_bf16",
]


def language_case(strategy: str, ranks: int, kind: str) -> ParityCase:
    return case_of(strategy, ranks, **(GPT | KINDS[kind]))


def assert_all_pass(cases: list[ParityCase], gate: Gate) -> None:
    for case in cases:
        parity = gate(case)
        assert parity.status == "passed", (case.cell.title, parity.reason)
        assert parity.precisions[0].deviation.loss <= 1e-5
        assert parity.precisions[0].noise_floor.loss <= 1e-6
        assert parity.real_model is not None
        if case.cell.base in ("fsdp", "fsdp2") and case.cell.definition.batch.accumulate == 1:
            # Its own mixed precision, too, is compared with an oracle that rounds where it does.
            for precision in parity.precisions:
                rounding = ROUNDING_RMS.get(precision.precision, math.inf)
                assert precision.deviation.first_update < rounding / 4


@pytest.mark.slow
def test_every_strategy_trains_the_oracles_language_model(gate: Gate) -> None:
    chosen = [("dp", 1, "plain"), ("fsdp2", 3, "accumulation"), ("deepspeed_zero1", 4, "plain")]
    chosen += [(name, 2, "tied, accumulation") for name in STRATEGIES if name != "dp"]
    chosen += [("fsdp2_fp16", 2, "fp16"), ("ddp", 3, "as timed"), ("fsdp2_bf16", 3, "as timed")]
    chosen += [("fsdp_bf16", 1, "bf16, tied, accumulation")]
    assert_all_pass([language_case(*names) for names in chosen], gate)


@pytest.mark.slow
def test_large_parameters_are_clipped_by_their_true_norm(gate: Gate) -> None:
    names = ("fsdp", "fsdp2")
    assert_all_pass([language_case(name, 2, "large, clipped") for name in names], gate)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_bf16_mode_trains_the_oracles_language_model(stage: int, gate: Gate) -> None:
    name = f"zero{stage}_bf16"
    assert_all_pass([language_case(name, 2, "bf16, tied, accumulation")], gate)
    parity = gate(language_case(name, stage, "as timed"))
    assert parity.status == "passed", parity.reason
    # Initial values that were rounded to bf16 would be four times as far away.
    bf16 = parity.precisions[-1]
    assert bf16.deviation.final_weights < 2 * bf16.noise_floor.final_weights


@pytest.mark.slow
def test_a_reduction_in_bf16_is_caught_though_its_parameters_are_bf16(gate: Gate) -> None:
    parity = gate(language_case("fsdp2_all_bf16", 2, "as timed"))
    assert parity.precisions[0].passed
    assert "bf16: first update" in (parity.reason or "")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_all_ranks_strategies_and_kinds_agree(ranks: int, gate: Gate) -> None:
    names = (*STRATEGIES, *RECOMMENDED)
    cases = [
        language_case(name, ranks, kind)
        for kind in KINDS
        for name in names
        if name in STRATEGIES or "precision" in KINDS[kind]
    ]
    assert_all_pass([case for case in cases if not case.cell.unsupported], gate)
