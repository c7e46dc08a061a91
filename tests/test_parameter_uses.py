"""The parity gate on networks that tie, reuse, leave out or freeze parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity_cases import ROOT, STRATEGIES, case_of
from shardmark.cells import ParityCase
from shardmark.config.schema import OwnWorkload
from shardmark.parity.cases import rounding_of, surrogate_name_of
from shardmark.parity.judgement import ROUNDING_RMS
from shardmark.parity_result import Parity
from shardmark.workload.built_in import make_workload
from shardmark.workload.own_check import check_training
from shardmark.workload.parameter_uses import ParameterUses, parameter_uses
from test_language_gate import RECOMMENDED

Gate = Callable[[ParityCase], Parity]
USES = ("tied", "reused", "unused", "frozen")


def case_with(strategy: str, ranks: int, *uses: str, **changes: Any) -> ParityCase:
    """A case in bf16 whose network uses its parameters in these ways."""
    workload: dict[str, Any] = {
        "model": None,
        "file": "tests/networks/odd_uses.py",
        "options": {"uses": list(uses)},
        "dataset": {"samples": 4096, "items_per_sample": 16, "unit": "tokens"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
        "batch": {"per_gpu": 4},
        "precision": "bf16",
    }
    return case_of(strategy, ranks, **(workload | changes))


def uses_of(*uses: str) -> ParameterUses:
    return parameter_uses(make_workload(case_with("ddp", 1, *uses).cell.definition))


def test_what_is_tied_reused_unused_or_frozen_is_seen_without_memory() -> None:
    assert uses_of() == ParameterUses()
    assert uses_of("tied") == ParameterUses(tied=frozenset({"embedding.weight"}))
    reused = uses_of("reused").reused
    assert {"norm.weight", "blocks.0.up.weight"} < reused
    assert "blocks.1.up.weight" not in reused
    unused = uses_of("unused").unused
    assert {"spare.weight", "blocks.0.spare.bias"} < unused
    assert len(unused) == 8
    frozen = uses_of("frozen", "unused")
    assert {"embedding.weight", "blocks.1.up.weight", "blocks.0.norm.weight"} < frozen.frozen
    assert not frozen.frozen & frozen.unused


def test_the_verdict_names_what_is_not_compared() -> None:
    words = surrogate_name_of(case_with("ddp", 1, "tied", "unused"))
    assert words == "the model itself; parameters: 1 tied, 8 unused and not compared"


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("pass", True),
        # The meta device refuses it, fake tensors do not.
        ("assert len(tokens + torch.zeros(1, device='cpu').long())", True),
        ("assert tokens.max().item() < 64", False),
    ],
)
def test_the_check_before_any_job_names_the_uses(line: str, known: bool, tmp_path: Path) -> None:
    definition = case_with("ddp", 1, "tied", "unused", "reused").cell.definition
    assert isinstance(definition, OwnWorkload)
    text = (ROOT / definition.file).read_text()
    file = tmp_path / "mine.py"
    file.write_text(text.replace("x = self.embedding", f"{line}; x = self.embedding"))
    lines = check_training(definition.model_copy(update={"file": str(file)}))
    assert "parameters that are tied: 1, among them embedding.weight." in lines
    words = "parameters that are unused: 8, among them blocks.0.spare.bias."
    assert (words in lines) == known
    unknown = [line for line in lines if line.startswith("parameters that are unused or reused")]
    assert bool(unknown) != known


@pytest.mark.parametrize(
    ("strategy", "uses", "changes", "rounding"),
    [
        ("fsdp", ["reused"], {}, "each use"),
        ("fsdp", ["tied"], {"precision": "fp32"}, "autocast"),
        ("fsdp", [], {}, "autocast"),
        ("fsdp_bf16", ["reused"], {}, "parameters"),
        ("fsdp2", ["reused"], {}, "autocast"),
        ("fairscale_fsdp", ["reused"], {}, "each use"),
        ("fairscale_fsdp", ["reused", "frozen"], {}, "autocast"),
        (
            "fairscale_fsdp",
            ["reused"],
            {"optimizer": {"name": "adamw", "learning_rate": 1e-3, "decay": "matrices"}},
            "autocast",
        ),
        ("dp", ["reused"], {}, "each use"),
    ],
)
def test_a_weight_that_is_no_leaf_is_rounded_at_each_use(
    strategy: str, uses: list[str], changes: dict[str, Any], rounding: str
) -> None:
    case = case_with(strategy, 2, *uses, **changes)
    assert rounding_of(case, case.cell.definition.precision) == rounding


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "dp"])
def test_a_network_that_does_all_four_is_trained_as_by_the_oracle(
    strategy: str, gate: Gate
) -> None:
    assert_passed(gate(case_with(strategy, 2, *USES)))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks"), [(1, 2), (3, 3)])
def test_such_a_network_is_trained_by_deepspeeds_bf16_mode(
    stage: int, ranks: int, gate: Gate
) -> None:
    # At three ranks the last shards are padded.
    parity = gate(case_with(f"zero{stage}_bf16", ranks, *USES))
    assert parity.status == "passed", parity.reason


@pytest.mark.slow
def test_such_a_network_is_trained_by_copies_in_groups(gate: Gate) -> None:
    parity = gate(case_with("fsdp2_hsdp", 4, *USES, precision="fp32"))
    assert parity.status == "passed", parity.reason


@pytest.mark.parametrize("strategy", ["fsdp", "fairscale_fsdp"])
def test_flat_parameters_that_are_used_twice_match_an_oracle_bit_by_bit(
    strategy: str, gate: Gate
) -> None:
    parity = gate(case_with(strategy, 2, "reused"))
    assert_passed(parity)
    assert parity.precisions[1].deviation.first_update == 0


def assert_passed(parity: Parity) -> None:
    assert parity.status == "passed", parity.reason
    # Each has an oracle that rounds where it does; nothing is excused.
    assert parity.precisions[1].tolerance.first_update <= ROUNDING_RMS["bf16"] / 4


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("uses", ["tied", "reused", "unused", "frozen", "all, as timed"])
def test_all_ranks_strategies_and_uses_agree(uses: str, ranks: int, gate: Gate) -> None:
    """Print a row of the table: ``pytest -m long tests/test_parameter_uses.py -rP``."""
    as_timed: dict[str, Any] = {
        "activation_checkpointing": "block",
        "batch": {"per_gpu": 8, "accumulate": 2},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "decay": "matrices",
            "clip_norm": 0.5,
        },
    }
    names, changes = (USES, as_timed) if uses == "all, as timed" else ((uses,), {})
    row, failed = {}, {}
    for strategy in (*STRATEGIES, *RECOMMENDED):
        case = case_with(strategy, ranks, *names, **changes)
        if case.cell.unsupported:
            row[strategy] = "unsupported"
            continue
        parity = gate(case)
        row[strategy] = parity.status
        if parity.status != "passed":
            failed[strategy] = parity.reason
    print(f"{uses}, {ranks} ranks:", ", ".join(f"{name} {row[name]}" for name in row))
    assert not failed


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [("ddp", 2), ("fsdp2", 2), ("fsdp", 2), ("fsdp2_hsdp", 4), ("fsdp_hsdp", 4)],
)
@pytest.mark.parametrize("compilation", ["none", "block"])
@pytest.mark.parametrize("uses", ["tied", "reused", "unused", "frozen", "all"])
def test_compiled_blocks_and_copies_in_groups_agree(
    uses: str, compilation: str, strategy: str, ranks: int, gate: Gate
) -> None:
    """Print a cell of the table: ``pytest -m long tests/test_parameter_uses.py -rP``."""
    names = USES if uses == "all" else (uses,)
    parity = gate(case_with(strategy, ranks, *names, compile=compilation))
    print(f"{uses}, compile: {compilation}, {strategy} at {ranks} ranks: {parity.status}")
    assert parity.status == "passed", parity.reason
    if compilation == "none":
        # A compiler leaves out roundings, for which the gate has a tolerance of its own.
        assert_passed(parity)
