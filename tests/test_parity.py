"""The gate itself: real processes, real strategies, and four that train wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import run_parity
from parity_cases import (
    DEVICE,
    ROOT,
    STRATEGIES,
    case_of,
    launched,
)
from shardmark.errors import UserError
from shardmark.parity.judgement import ROUNDING_RMS
from shardmark.parity_result import Parity
from test_language_gate import RECOMMENDED, language_case

Gate = Callable[..., Parity]
SABOTAGE = ROOT / "tests/sabotage"
COMPILING = ROOT / "tests/compiling"
# On a CPU DataParallel makes no replicas.
DISTRIBUTED = [name for name in STRATEGIES if name != "dp" or DEVICE == "cuda"]


def assert_passed(parity: Parity) -> None:
    assert parity.status == "passed", parity.reason
    fp32 = parity.precisions[0]
    assert fp32.deviation.loss <= 1e-5
    assert fp32.deviation.final_weights <= 1e-5
    assert fp32.noise_floor.loss <= 1e-6
    assert fp32.noise_floor.final_weights <= 1e-6
    assert len(parity.losses) >= 8


@pytest.mark.parametrize("damage", ["cut off", "another byte", "empty"])
def test_a_damaged_oracle_is_named_and_removed(damage: str, tmp_path: Path) -> None:
    oracle = tmp_path / "ranks1.pt"
    torch.save({"fp32": torch.zeros(1000)}, oracle)
    content = oracle.read_bytes()
    middle = len(content) // 2
    run_parity.require_whole(oracle)
    changed = {
        "cut off": content[:middle],
        "another byte": content[:middle] + b"!" + content[middle + 1 :],
    }
    oracle.write_bytes(changed.get(damage, b""))
    with pytest.raises(UserError, match=r"ranks1\.pt: was damaged and has been removed; the same"):
        run_parity.run_parity(case_of("ddp", 1), oracle, tmp_path / "ranks1.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"ranks1\.pt: is missing"):
        run_parity.require_whole(oracle)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_matches_the_oracle(strategy: str, gate: Gate) -> None:
    assert_passed(gate(case_of(strategy, 1)))


@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_two_ranks_match_the_oracle_in_float32_and_bf16(strategy: str, gate: Gate) -> None:
    parity = gate(case_of(strategy, 2, precision="bf16"))
    assert_passed(parity)
    assert [result.precision for result in parity.precisions] == ["fp32", "bf16"]


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="on GPUs every case is launched")
@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 1), ("deepspeed_zero3", 2)])
def test_processes_that_are_launched_train_as_forks_do(
    strategy: str, ranks: int, oracles: Path, gate: Gate
) -> None:
    case = case_of(strategy, ranks, precision="bf16")
    parity = launched(case, oracles)
    assert_passed(parity)
    assert parity.losses == gate(case).losses


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_three_ranks_match_with_clipping_checkpointing_and_two_groups(
    strategy: str, gate: Gate
) -> None:
    case = case_of(
        strategy,
        3,
        activation_checkpointing="block",
        optimizer={
            "learning_rate": 0.05,
            "momentum": 0.9,
            # Large, so that a norm or bias that decays is seen.
            "weight_decay": 0.05,
            "decay": "matrices",
            # The surrogate's first gradient has a norm of at least 1.5.
            "clip_norm": 0.5,
        },
    )
    assert_passed(gate(case))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_four_ranks_match_the_oracle(strategy: str, gate: Gate) -> None:
    assert_passed(gate(case_of(strategy, 4)))


@pytest.mark.slow
def test_compiled_blocks_that_are_checkpointed_match(oracles: Path) -> None:
    case = case_of("fsdp2", 2, compile="block", activation_checkpointing="block")
    assert_passed(launched(case, oracles, COMPILING / "train_compiled.py"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp_bf16", "fsdp2_bf16", "zero3_bf16_communication"])
def test_a_frameworks_own_mixed_precision_matches(strategy: str, gate: Gate) -> None:
    case = case_of(strategy, 2, precision="bf16")
    parity = gate(case)
    assert_passed(parity)
    fp32, bf16 = parity.precisions
    if strategy == "fsdp2_bf16":
        assert bf16.deviation.first_update < ROUNDING_RMS["bf16"] / 4
    assert fp32.tolerance.first_update < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp2", "fairscale_fsdp", "deepspeed_zero3"])
def test_accumulation_synchronised_batchnorm_and_loader_match(strategy: str, gate: Gate) -> None:
    case = case_of(
        strategy,
        2,
        batchnorm="sync",
        batch={"per_gpu": 16, "accumulate": 2},
        dataset={"name": "synthetic", "loader": "dataloader", "loader_workers": 1},
    )
    assert_passed(gate(case))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_zero2"])
def test_a_transformer_with_adamw_matches(strategy: str, gate: Gate) -> None:
    case = case_of(
        strategy,
        2,
        model={"name": "vit_b_16"},
        optimizer={"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05},
        dataset={"name": "synthetic", "image_size": 32},
    )
    parity = gate(case)
    assert_passed(parity)
    assert parity.real_model is not None


@pytest.mark.slow
def test_fp16_with_its_loss_scaler_matches(gate: Gate) -> None:
    # Not ResNet: a CPU takes half a minute for its convolutions in fp16.
    assert_passed(gate(language_case("fsdp", 2, "fp16")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "script"),
    [("ddp", "train_overflowing.py"), ("deepspeed_zero1", "train_zero_overflowing.py")],
)
def test_fp16_matches_where_ranks_leave_out_more_steps_than_the_oracle(
    strategy: str, script: str, gate: Gate
) -> None:
    assert_passed(gate(language_case(strategy, 2, "fp16"), SABOTAGE / script))


@pytest.mark.skipif(DEVICE == "cuda", reason="on GPUs DataParallel makes replicas")
def test_dp_with_two_replicas_on_a_cpu_is_unsupported_and_starts_nothing(tmp_path: Path) -> None:
    parity = run_parity.run_parity(case_of("dp", 2), tmp_path / "no such oracle", tmp_path)
    assert parity.status == "unsupported"
    assert "CPU" in (parity.reason or "")


def test_deepspeeds_default_clipping_is_caught(gate: Gate) -> None:
    case = case_of("zero1_default_clipping", 2)
    parity = gate(case)
    assert parity.status == "failed", parity.precisions
    assert "fp32" in (parity.reason or "")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2_bf16_reduction", "fsdp2_all_bf16"])
def test_reduction_in_bf16_is_caught(strategy: str, gate: Gate) -> None:
    case = case_of(strategy, 2, precision="bf16")
    parity = gate(case)
    assert parity.precisions[0].passed, "in float32 there is nothing to catch"
    assert parity.status == "failed", parity.precisions
    assert "bf16: first update" in (parity.reason or "")


@pytest.mark.slow
def test_gradients_that_are_summed_are_caught_though_every_step_clips(gate: Gate) -> None:
    parity = gate(language_case("ddp", 2, "as timed"), SABOTAGE / "train_summing.py")
    exact, unclipped, _ = parity.precisions
    assert [part.precision for part in parity.precisions] == ["fp32", "fp32 unclipped", "bf16"]
    assert exact.passed, "the clipped gradient is the same"
    assert not unclipped.passed


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*DISTRIBUTED, *RECOMMENDED])
def test_a_language_model_as_it_is_timed_matches(strategy: str, gate: Gate) -> None:
    parity = gate(language_case(strategy, 2, "as timed"))
    assert_passed(parity)
    assert parity.real_model is not None
    if strategy in ("fsdp_bf16", "fsdp2_bf16"):
        # Compared with an oracle that rounds where they do.
        assert parity.precisions[-1].deviation.first_update < ROUNDING_RMS["bf16"] / 4


@pytest.mark.parametrize("script", ["train_without_averaging.py", "train_other_order.py"])
def test_a_strategy_that_trains_another_model_is_caught(script: str, gate: Gate) -> None:
    parity = gate(case_of("ddp", 2), SABOTAGE / script)
    assert parity.status == "failed", parity.precisions
