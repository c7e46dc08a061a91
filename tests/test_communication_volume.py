"""The bytes of a step: real cells of two ranks against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from real_cells import cell_named, metrics_of_run
from shardmark.results.certificate import Row, certify
from shardmark.results.communication_volume import Volume, allowed_slack, expected_volume

# A hidden layer of 4,096 is four fifths of the model. It is in no shard unit, and its weight alone,
# 68 % of the model, is large enough for ZeRO-3 to shard.
WIDE: dict[str, Any] = {"accumulate": 2, "hidden_units": 4096}


def volumes(metrics: Any) -> dict[str, Row]:
    certificate = certify([metrics], "ddp")
    return {row.setting.split()[0]: row for row in certificate.rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "reduced", "gathered"),
    [
        ("ddp_zero1", "1.00", "1.00"),
        ("ddp", "1.00", "0.00"),
        ("ddp_bf16_hook", "0.50", "0.00"),
        # Two micro-batches: blocks (0.2) are gathered four times, the rest (0.8) twice.
        ("fsdp", "1.00", "2.40"),
        ("fsdp2", "1.00", "2.40"),
        # FairScale keeps the rest gathered between micro-batches.
        ("fairscale_fsdp", "1.00", "1.60"),
        ("fsdp_bf16", "1.00", "1.20"),
        ("fsdp_zero2", "1.00", "1.00"),
        ("fsdp2_zero2", "1.00", "2.00"),
        ("fairscale_zero2", "1.00", "1.00"),
        ("deepspeed_zero1", "1.00", "1.00"),
        ("zero1_bf16_communication", "0.50", "1.00"),
        ("deepspeed_zero2", "2.00", "1.00"),
        # The large weight once per micro-batch, the small parameters once.
        ("deepspeed_zero3", "2.00", "1.68"),
    ],
)
def test_two_micro_batches_move_what_the_strategy_must(
    strategy: str, reduced: str, gathered: str
) -> None:
    rows = volumes(metrics_of_run(strategy, **WIDE))
    assert (rows["reduced"].values, rows["reduced"].flagged) == ({strategy: reduced}, {})
    assert (rows["gathered"].values, rows["gathered"].flagged) == ({strategy: gathered}, {})
    config = metrics_of_run(strategy, **WIDE).effective_config
    assert config is not None
    # FSDP1 adds the gradients of micro-batches in the type of the gathered parameters.
    assert config.accumulation_dtype == ("bfloat16" if strategy == "fsdp_bf16" else "float32")


@pytest.mark.slow
def test_copies_average_their_shards_on_top() -> None:
    result = metrics_of_run("fsdp2_hsdp", 4, **WIDE)
    rows = volumes(result)
    assert (rows["reduced"].values, rows["reduced"].flagged) == ({"fsdp2_hsdp": "1.50"}, {})
    assert (rows["gathered"].values, rows["gathered"].flagged) == ({"fsdp2_hsdp": "2.40"}, {})
    certificate = certify([result], "ddp")
    values = {row.setting: (row.values["fsdp2_hsdp"], row.flagged) for row in certificate.rows}
    assert values["replicas that share one copy of what is sharded"] == ("2", {})
    assert values["replicas that gather parameters together"] == ("[2]", {})
    # Each rank holds half of the state, not a quarter.
    assert result.memory is not None
    half = result.memory.parameters * 4 // 2
    assert result.memory.predicted.parameters_bytes == half
    assert result.memory.measured[0].parameters_bytes == pytest.approx(half, rel=0.05)


@pytest.mark.slow
def test_copies_that_do_not_average_are_flagged() -> None:
    result = metrics_of_run("fsdp2_hsdp", 4, **WIDE)
    config = result.effective_config
    assert config is not None
    apart = [one for one in config.collectives if one.kind != "all_reduce"]
    without = config.model_copy(update={"collectives": apart})
    rows = volumes(result.model_copy(update={"effective_config": without}))
    assert rows["reduced"].flagged.keys() == {"fsdp2_hsdp"}


def test_groups_of_another_size_than_the_options_say_are_flagged() -> None:
    result = metrics_of_run("fsdp2_hsdp", 4, **WIDE)
    options = result.cell.options | {"shard_size": None, "reshard_after_forward": 2}
    cell = result.cell.model_copy(update={"options": options})
    flagged = {row.setting for row in certify([result.model_copy(update={"cell": cell})]).flagged}
    assert flagged >= {
        "replicas that share one copy of what is sharded",
        "replicas that gather parameters together",
    }


def test_one_replica_is_judged_by_nothing() -> None:
    rows = volumes(metrics_of_run("ddp", 1))
    assert not rows["reduced"].flagged
    assert rows["reduced"].values == {"ddp": "1.00"}, "DDP reduces even with itself"


def test_results_without_a_count_of_unit_parameters_are_judged_by_a_range() -> None:
    cell = cell_named("fsdp2", batch={"global": 16, "accumulate": 4})
    assert expected_volume(cell, 100, None).gathered == Volume(4, 8)
    assert expected_volume(cell, 100, 50).gathered == Volume(6, 6)


def test_zero3_gathers_a_large_model_again_in_the_backward_pass() -> None:
    cell = cell_named("deepspeed_zero3")
    assert expected_volume(cell, 500_000_000, None).gathered == Volume(1, 1)
    assert expected_volume(cell, 500_000_001, None).gathered == Volume(1, 2)


def test_zero3_gathers_part_of_it_in_16_bits_if_it_communicates_in_them() -> None:
    cell = cell_named("deepspeed_zero3")
    low = cell.model_copy(update={"options": cell.options | {"low_precision_communication": True}})
    assert expected_volume(low, 100, None).gathered == Volume(0.5, 1)
    assert expected_volume(low, 100, None).reduced == Volume(0.5, 1)


def test_what_is_not_trained_may_stay_and_what_is_used_again_may_be_gathered_again() -> None:
    plain = expected_volume(cell_named("fsdp2"), 100, 50)
    assert plain.with_uses(untrained=0, reuses=False) == plain
    volume = plain.with_uses(untrained=0.4, reuses=True)
    assert volume.reduced == Volume(0.6, 1)
    assert volume.reduced.allows(0.6, slack=0.1)
    assert not volume.reduced.allows(0.4, slack=0.1)
    assert volume.gathered.allows(9, slack=0.1)
    assert str(volume.gathered) == "0.90 or more"
    ddp = expected_volume(cell_named("ddp"), 100, 50).with_uses(untrained=0.4, reuses=True)
    assert not ddp.gathered.allows(1, slack=0.1), "DDP gathers nothing, however often it is used"


def test_a_volume_allows_padding_and_no_more() -> None:
    assert Volume(1, 2).allows(2.2, slack=0.1)
    assert not Volume(1, 2).allows(2.3, slack=0.1)
    assert not Volume(1, 2).allows(0.8, slack=0.1)
    assert Volume(0, 0).allows(0.05, slack=0.1)
    assert not Volume(0, 0).allows(0.2, slack=0.1)


def test_statistics_of_synchronised_batch_norm_are_allowed_for() -> None:
    assert allowed_slack(cell_named("ddp")) == 0.1
    assert allowed_slack(cell_named("ddp", batchnorm="sync")) == pytest.approx(0.12)
