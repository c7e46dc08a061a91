"""The gate's judgement of trajectories with steps left out, or without numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from parity_cases import case_of
from shardmark.metrics import Deviation, Parity, PrecisionParity, read_parity
from shardmark.parity import oracle
from shardmark.parity.gate import (
    deviation,
    judge,
    summary_difference,
    surrogate_cell,
)
from shardmark.parity.oracle import Trajectory, run_oracle, taken_until_it_updates
from shardmark.workload.built_in import make_workload


def test_an_oracle_whose_first_steps_overflow_trains_as_one_whose_scale_was_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # ResNet-50 at 224 px in float16 on two H100: the ranks' losses are twice as large as a
    # replica's share in the oracle's, so they left out one step more.
    cell = surrogate_cell(case_of("ddp", 1, precision="fp16"), "fp16")
    workload = make_workload(cell.definition)

    def train(scale: float) -> Trajectory:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        monkeypatch.setattr(oracle, "grad_scaler", lambda *_: scaler)
        found = run_oracle(
            cell,
            workload,
            workload.rows(Path(), train=True),
            lambda: workload.surrogate(cell.seed),
            steps=2,
            device=torch.device("cpu"),
        )
        assert scaler.get_scale() == min(scale, highest)
        return found

    highest = 2.0**17
    right, too_high = train(2.0**17), train(2.0**24)
    assert too_high.losses == right.losses
    for name, weights in right.after_first_update.items():
        assert torch.equal(too_high.after_first_update[name], weights)
    assert any(
        not torch.equal(value, right.initial[name])
        for name, value in right.after_first_update.items()
    )


def test_a_step_that_never_updates_is_not_taken_for_ever() -> None:
    taken: list[int] = []
    taken_until_it_updates(lambda: taken.append(1))
    assert len(taken) == 1 + oracle.MOST_SKIPPED


def trajectory(*losses: float) -> Trajectory:
    weights = [{"w": torch.tensor([value])} for value in (1.0, 2.0, 3.0)]
    return Trajectory(list(losses), *weights)


def oracles(floor: float) -> dict[str, dict[str, object]]:
    noise = Deviation(loss=floor, first_update=floor, final_weights=floor)
    known = {"trajectory": trajectory(1.0, 0.5), "floor": noise, "first_update_floor": floor}
    return {"fp32": known, "fp16": known}


def test_noise_without_a_bound_excuses_nothing() -> None:
    case = case_of("ddp", 2, precision="fp16")
    for precision in ("fp32", "fp16"):
        verdict = judge(precision, trajectory(1.0, 0.5), oracles(math.inf), case)
        assert "cannot judge" in (verdict.reason or "")
        assert not verdict.passed


@pytest.mark.parametrize("losses", [(math.nan, 0.5), (1.0, math.nan)])
def test_no_number_anywhere_passes(losses: tuple[float, float]) -> None:
    case = case_of("ddp", 2, precision="fp16")
    assert not judge("fp16", trajectory(*losses), oracles(1e-7), case).passed
    summary = {"loss_0": 1.0, "loss_1": 0.5, "first_update_norm": 2.0}
    for name in summary:
        assert summary_difference(summary | {name: math.nan}, summary) == math.inf


def test_a_summary_without_an_update_or_a_step_agrees_with_nothing() -> None:
    still = {"loss_0": 1.0, "first_update_norm": 0.0}
    assert summary_difference(still, still) == math.inf
    assert summary_difference(still, {"loss_0": 1.0}) == math.inf


def test_a_verdict_on_no_numbers_can_be_read_back(tmp_path: Path) -> None:
    lost = deviation(trajectory(math.nan), trajectory(1.0))
    case = case_of("ddp", 2)
    parity = Parity(
        workload="w",
        strategy="ddp",
        ranks=2,
        device="cpu",
        backend="gloo",
        status="failed",
        reason="fp32: loss deviates by inf, tolerance 1.0e-05",
        losses=[math.nan],
        precisions=[
            PrecisionParity(
                precision="fp32", deviation=lost, noise_floor=lost, tolerance=lost, passed=False
            )
        ],
        case_sha256=case.fingerprint(),
        code_sha256="",
    )
    path = tmp_path / "ranks2.json"
    path.write_text(parity.model_dump_json(by_alias=True))
    assert math.isinf(read_parity(path).precisions[0].deviation.loss)
    assert math.isnan(read_parity(path).losses[0])
