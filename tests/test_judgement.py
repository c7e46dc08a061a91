"""The gate's judgement of trajectories with steps left out, or without numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import run_parity
from parity_cases import ROOT, case_of
from shardmark.cells import oracle_cases
from shardmark.config.loading import load
from shardmark.parity import deviations, oracle
from shardmark.parity import oracles as oracles_of_cases
from shardmark.parity.cases import surrogate_cell
from shardmark.parity.deviations import deviation, summary_difference, summary_of
from shardmark.parity.judgement import floor_and_tolerance, judge, judge_real_model
from shardmark.parity.oracle import Trajectory, run_oracle
from shardmark.parity.trajectory_files import write_plain
from shardmark.parity_result import Deviation, Parity, PrecisionParity, read_parity
from shardmark.training.updates import MOST_SKIPPED, taken_until_it_updates
from shardmark.workload.built_in import make_workload
from test_language_gate import GPT


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


def test_weights_of_another_shape_are_no_weights_of_the_oracle() -> None:
    flat, square = {"w": torch.ones(4)}, {"w": torch.ones(2, 2)}
    with pytest.raises(
        deviations.Incomparable, match=r"weight w has the shape \(4,\), not \(2, 2\)"
    ):
        deviation(Trajectory([1.0], flat, flat, flat), Trajectory([1.0], square, square, square))


def test_a_tenth_of_a_gpu_in_other_hands_is_not_the_oracles_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for mine, free, others in ((70, 2, False), (60, 2, True), (0, 80, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, mine=mine: mine)
        assert oracles_of_cases.others_use_memory(torch.device("cuda")) == others


def test_deviations_are_the_same_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def weights() -> dict[str, torch.Tensor]:
        shapes = {"matrix": (3, 5), "number": (), "vector": (7,)}
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    mine, its = (Trajectory([1.0], weights(), weights(), weights()) for _ in range(2))

    def norm(*terms: tuple[int, dict[str, torch.Tensor]]) -> float:
        parts = [sum(sign * each[name].double() for sign, each in terms) for name in terms[0][1]]
        return math.sqrt(sum(float(torch.as_tensor(part).square().sum()) for part in parts))

    update = ((1, its.after_first_update), (-1, its.initial))
    for chunk in (2, 100):
        monkeypatch.setattr(deviations, "CHUNK", chunk)
        found = deviation(mine, its)
        moved = ((1, mine.after_first_update), (-1, mine.initial))
        distance = norm(*moved, (-1, its.after_first_update), (1, its.initial))
        assert found.first_update == pytest.approx(distance / norm(*update))
        assert found.final_weights == pytest.approx(
            norm((1, mine.final), (-1, its.final)) / norm((1, its.final))
        )
        norms = summary_of(its, torch.device("cpu"))["update norms"]
        assert math.hypot(*norms.values()) == pytest.approx(norm(*update))


def test_a_model_too_large_for_one_gpu_is_compared_by_its_small_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The real model of this case has the width of the whole one.
    case = case_of("ddp", 1, **GPT)

    def run_small_ones(*args: Any, **settings: Any) -> Trajectory:
        if settings["keep_final"]:
            return run_oracle(*args, **settings)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(oracles_of_cases, "run_oracle", run_small_ones)
    monkeypatch.setattr(oracles_of_cases, "others_use_memory", lambda device: True)
    with pytest.raises(torch.OutOfMemoryError):
        oracles_of_cases.make_oracles([case], torch.device("cpu"), last=False)
    # A neighbour that has left meanwhile may have been the cause, too.
    there = iter([True, False])
    monkeypatch.setattr(oracles_of_cases, "others_use_memory", lambda device: next(there))
    with pytest.raises(torch.OutOfMemoryError):
        oracles_of_cases.make_oracles([case], torch.device("cpu"), last=False)
    monkeypatch.setattr(oracles_of_cases, "others_use_memory", lambda device: True)
    beside = oracles_of_cases.make_oracles([case], torch.device("cpu"))["left_out"]
    assert beside.startswith("its oracle does not fit beside other processes on its GPU")
    monkeypatch.setattr(oracles_of_cases, "others_use_memory", lambda device: False)
    oracle = tmp_path / "ranks1.pt"
    write_plain(oracles_of_cases.make_oracles([case], torch.device("cpu")), oracle)
    parity = run_parity.run_parity(case, oracle, tmp_path / "gate/w/ddp/ranks1.json")
    assert (parity.status, parity.real_model) == ("passed", None)
    assert "does not fit on one GPU, so only a small version was compared" in str(parity.reason)


def test_a_step_that_never_updates_is_not_taken_for_ever() -> None:
    taken: list[int] = []
    taken_until_it_updates(lambda: taken.append(1))
    assert len(taken) == 1 + MOST_SKIPPED


def trajectory(*losses: float) -> Trajectory:
    weights = [{"w": torch.tensor([value])} for value in (1.0, 2.0, 3.0)]
    return Trajectory(list(losses), *weights)


def oracles(floor: float) -> dict[str, dict[str, object]]:
    noise = Deviation(loss=floor, first_update=floor, final_weights=floor)
    known = {
        "trajectory": trajectory(1.0, 0.5),
        "floor": noise,
        "first_update_floor": floor,
        "rounding": Deviation(loss=0.1, first_update=0.2, final_weights=0.3),
    }
    return {"fp32": known, "fp16": known, "fp16 parameters": known}


TIED: dict[str, Any] = GPT | {"model": GPT["model"] | {"tied": True}}
SUMMARY: dict[str, dict[Any, float]] = {
    "losses": {0: 1.0, 1: 0.5},
    "update norms": {"a": 3.0, "b": 4.0},
}
REAL: dict[str, Any] = {
    "summary": SUMMARY,
    "floor": dict.fromkeys(SUMMARY, 1e-7),
    "rounding": dict.fromkeys(SUMMARY, 0.4),
}


def test_noise_without_a_bound_excuses_nothing() -> None:
    case = case_of("ddp", 2, precision="fp16")
    for precision in ("fp32", "fp16"):
        verdict = judge(precision, trajectory(1.0, 0.5), oracles(math.inf), case)
        assert "cannot judge" in (verdict.reason or "")
        assert not verdict.passed


@pytest.mark.parametrize(
    ("strategy", "changes", "wide"),
    [
        ("ddp", {}, False),
        ("fsdp2_fp16", {}, False),
        ("fsdp_fp16", {}, True),
        ("fsdp_fp16", {"batch": {"per_gpu": 16, "accumulate": 2}}, True),
        ("fsdp2_fp16", {"batch": {"per_gpu": 16, "accumulate": 2}}, False),
        ("fsdp2_fp16", TIED | {"batch": {"per_gpu": 4, "accumulate": 2}}, True),
        ("fsdp2_fp16", TIED, False),
        ("ddp", {"batch": {"per_gpu": 16, "accumulate": 2}}, False),
        ("ddp", {"compile": "block"}, True),
        ("zero3_bf16_communication", {}, True),
    ],
)
def test_only_what_rounds_elsewhere_may_deviate_as_far_as_rounding(
    strategy: str, changes: dict[str, Any], wide: bool
) -> None:
    case = case_of(strategy, 2, precision="fp16", **changes)
    _, tolerance = floor_and_tolerance("fp16", oracles(1e-7), case)
    assert (tolerance.loss == 0.2) == wide
    assert (tolerance.first_update == 0.4) == wide
    assert (tolerance.final_weights == 0.6) == wide
    real = {"fp16": REAL, "fp16 parameters": REAL}
    assert (judge_real_model(REAL["summary"], real, case).tolerance == 0.8) == wide
    _, exact = floor_and_tolerance("fp32", oracles(1e-7), case)
    assert exact.loss == exact.final_weights == case.gate.tolerance


def test_only_the_oracles_that_the_matrix_needs_are_trained() -> None:
    raw: dict[str, Any] = {
        "run": "test",
        "matrix": {
            "workloads": ["a", "b"],
            "strategies": ["ddp", "low"],
            "gpus": [2],
            "seeds": [0],
        },
        "workloads": dict.fromkeys("ab", GPT | {"precision": "bf16"}),
        "variants": {"low": {"base": "fsdp2", "param_dtype": "bf16"}},
        "cluster": {"device": "cpu"},
    }
    raw["matrix"]["only"] = [{"workloads": ["a"]}, {"workloads": ["b"], "strategies": ["ddp"]}]
    config = load(raw, ROOT)
    needed = {
        name: {case.rounding for case in oracle_cases(config, name, ranks=2)} for name in "ab"
    }
    assert needed == {"a": {"autocast", "parameters"}, "b": {"autocast"}}


@pytest.mark.parametrize("losses", [(math.nan, 0.5), (1.0, math.nan)])
def test_no_number_anywhere_passes(losses: tuple[float, float]) -> None:
    case = case_of("ddp", 2, precision="fp16")
    assert not judge("fp16", trajectory(*losses), oracles(1e-7), case).passed
    for part, name in [("losses", 0), ("losses", 1), ("update norms", "a")]:
        lost = SUMMARY | {part: SUMMARY[part] | {name: math.nan}}
        assert summary_difference(lost, SUMMARY)[part] == math.inf
        assert not judge_real_model(lost, {"fp16": REAL}, case).passed


def test_a_deviation_just_above_the_tolerance_is_not_written_like_it() -> None:
    verdict = judge("fp32", trajectory(1 + 1.01e-5, 0.5), oracles(1e-7), case_of("ddp", 2))
    assert verdict.reason == "fp32: loss deviates by 1.01e-05, tolerance 1.00e-05"


def test_a_summary_without_an_update_or_a_step_agrees_with_nothing() -> None:
    still = SUMMARY | {"update norms": {"a": 0.0, "b": 0.0}}
    assert summary_difference(still, still)["update norms"] == math.inf
    shorter = SUMMARY | {"losses": {0: 1.0}}
    assert set(summary_difference(shorter, SUMMARY).values()) == {math.inf}


def test_errors_of_parameters_that_cancel_in_the_norm_of_the_update_are_seen() -> None:
    other = SUMMARY | {"update norms": {"a": 4.0, "b": 3.0}}
    assert summary_difference(other, SUMMARY)["update norms"] == pytest.approx(2**0.5 / 5)


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
        reason="fp32: loss deviates by inf, tolerance 1.00e-05",
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
