"""The answer of the first screen: the right strategy, how sure it is, and when nobody can say."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from result_tables import cells_table
from shardmark.report.answer import Answer, make_answer
from shardmark.results.largest_batch_rows import LargestBatchRow
from shardmark.results.run_record import RunRecord
from shardmark.statistics.findings import find

GIB = 2**30
SPEEDS = {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.8}


def two_gpus(
    ratios: dict[str, float], seeds: int = 6, gib: dict[str, float] | None = None, **changes: Any
) -> pd.DataFrame:
    """Runs on two GPUs of 80 GiB."""
    cells = cells_table(
        ratios,
        range(seeds),
        gpus=2,
        window_s=30.0,
        final_accuracy=0.7,
        memory_capacity_bytes=80 * GIB,
        lane="same_arithmetic",
        **changes,
    )
    if gib:
        cells["memory_used_peak_bytes"] = cells.strategy.map(gib) * GIB
    return cells


NO_SEARCH = pd.DataFrame(columns=list(LargestBatchRow.model_fields))


def answer_of(
    cells: pd.DataFrame, device: str = "cuda", largest: pd.DataFrame = NO_SEARCH
) -> Answer:
    record = RunRecord(
        run="t",
        baseline="ddp",
        device=device,
        steady_min_s=30.0,
        subjects={"w": "resnet50 on cifar10"},
        workloads={"w": "resnet50 on cifar10 (...)"},
        chance_accuracy={"w": 0.1},
        labels={},
        colours={},
        config={},
        certificates=[],
        environment=[],
    )
    findings = find(cells, "ddp", 0.02)
    return make_answer("w", cells, record, findings.verdicts, findings.scaling, largest)


def failed(cells: pd.DataFrame, strategy: str, outcome: str) -> pd.DataFrame:
    own = cells.strategy == strategy
    changes = {"status": outcome, "outcome": outcome, "excluded": outcome, "items_per_s": None}
    for column, value in changes.items():
        cells[column] = cells[column].mask(own, value)
    return cells


def test_a_choice_that_could_not_meet_everyone_says_so() -> None:
    cells = two_gpus(
        {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 1.5}, gib={"ddp": 40, "fsdp": 40, "fsdp2": 9}
    )
    cells.loc[cells.strategy == "fsdp2", "driver"] = "580.1"
    found = answer_of(cells)
    assert (found.badge, found.lead) == ("open", "Use DDP, as far as can be compared.")
    assert "Not comparable: FSDP2." in found.text
    assert "No compared strategy needs over 2 % less memory." in found.text
    cells.loc[cells.strategy == "fsdp", "driver"] = "580.2"
    assert answer_of(cells).lead == "No strategy can be compared with FSDP2."


def test_the_fastest_is_recommended_with_its_price_and_the_alternatives() -> None:
    cells = two_gpus(
        {"ddp": 1.0, "fsdp2": 0.64, "deepspeed_zero3": 0.23, "dp": 0.5},
        gib={"ddp": 9, "fsdp2": 6, "deepspeed_zero3": 6, "dp": 9},
    )
    found = answer_of(failed(cells, "dp", "oom"))
    assert found.badge == "established"
    assert found.text.startswith("Use DDP. Fastest on 2 GPUs. Per GPU: batch 512, 5,00")
    assert "images/s, 9.0 of 80 GiB. If memory is tight: FSDP2 (3" in found.text
    assert " % slower, 33 % less memory). Avoid DeepSpeed ZeRO-3 (7" in found.text
    assert " % slower than DDP). " in found.text
    assert found.text.endswith("Out of memory: DataParallel.")
    assert len(found.text.split()) < 60


def test_three_runs_make_it_likely() -> None:
    found = answer_of(two_gpus(SPEEDS, seeds=3))
    assert (found.badge, found.lead) == ("likely", "Use DDP.")


def test_a_close_second_is_named_with_its_price_unless_another_sentence_names_it() -> None:
    close = {"ddp": 1.0, "fsdp": 0.975, "fsdp2": 0.8}
    assert "GiB. Close behind: FSDP1 (2." in answer_of(two_gpus(close, sd=0.001)).text
    frugal = answer_of(two_gpus(close, gib={"ddp": 9, "fsdp": 6, "fsdp2": 6}, sd=0.001))
    assert "If memory is tight: FSDP1 (" in frugal.text
    assert "Close behind" not in frugal.text
    assert "Close behind" not in answer_of(two_gpus(SPEEDS)).text


def test_what_is_open_names_the_rivals_and_the_runs_that_would_settle_it() -> None:
    found = answer_of(two_gpus({"ddp": 1.0, "fsdp": 0.99, "fsdp2": 0.8}, sd=0.012))
    assert found.badge == "open"
    assert found.lead == "Use DDP or FSDP1."
    assert found.more_runs.startswith("About ")
    assert found.more_runs.endswith(" more runs of each would settle it.")


def test_a_strategy_far_behind_is_no_equal_choice_for_want_of_runs() -> None:
    cells = two_gpus({"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.3}, seeds=3)
    cells = cells[(cells.strategy != "fsdp2") | (cells.seed < 2)]
    found = answer_of(cells)
    assert (found.badge, found.lead) == ("open", "Use DDP.")
    assert "Far behind so far: FSDP2 (70 % slower than DDP)." in found.text
    assert found.more_runs == "Choosing takes at least 3 runs of FSDP2."


def test_two_strategies_that_many_runs_cannot_separate_are_both_named() -> None:
    found = answer_of(two_gpus({"ddp": 1.0, "fsdp": 0.99}, sd=0.03))
    assert (found.badge, found.lead) == ("open", "Use DDP or FSDP1.")


def test_a_strategy_whose_every_run_has_a_device_fault_is_named() -> None:
    cells = two_gpus(SPEEDS)
    own = cells.strategy == "fsdp"
    cells["excluded"] = cells.excluded.mask(own, "throttled")
    cells["outcome"] = cells.outcome.mask(own, "device fault")
    assert "Excluded for a device fault: FSDP1." in answer_of(cells).text


def test_too_few_runs_choose_nothing() -> None:
    found = answer_of(two_gpus(SPEEDS, seeds=2))
    assert (found.badge, found.lead) == ("open", "Too few runs to choose.")
    assert found.more_runs == "Choosing takes at least 3 runs of each strategy."


def test_equals_are_both_recommended() -> None:
    found = answer_of(two_gpus({"ddp": 1.0, "fsdp": 1.0, "fsdp2": 0.8}))
    assert found.badge == "established"
    assert found.lead in ("Use DDP or FSDP1.", "Use FSDP1 or DDP.")
    assert "Equal within 2 %" in found.text


@pytest.mark.parametrize(
    ("changes", "device", "words"),
    [
        ({"gpus": 1}, "cuda", "One GPU cannot answer which strategy is best on several"),
        ({"window_s": 1.0}, "cuda", "The timed windows last 1.0 s, too short"),
        ({"final_accuracy": 0.11}, "cuda", "No strategy learned anything: the best test accuracy"),
        ({}, "cpu", "All cells ran on CPUs"),
    ],
)
def test_data_that_cannot_answer_say_so_first_and_call_nothing_best(
    changes: dict[str, Any], device: str, words: str
) -> None:
    found = answer_of(two_gpus(SPEEDS).assign(**changes), device)
    assert found.badge == "no answer"
    assert found.text.startswith(words)
    for claim in ("Use ", "astest", "Avoid", "memory is tight"):
        assert claim not in found.text


def test_generated_images_have_no_level_of_chance() -> None:
    record_less = answer_of(two_gpus(SPEEDS).assign(final_accuracy=None))
    assert record_less.badge == "established"


def test_without_any_result_the_failures_are_the_answer() -> None:
    cells = two_gpus(SPEEDS)
    for name in SPEEDS:
        cells = failed(cells, name, "oom")
    found = answer_of(cells)
    assert (
        found.text == "No strategy has a result that counts. Out of memory: DDP, FSDP1 and FSDP2."
    )


def test_a_workload_that_has_not_run_names_no_strategy() -> None:
    cells = two_gpus(SPEEDS).assign(outcome="missing", status=None, excluded="missing")
    assert answer_of(cells).text == "No result yet."


def test_a_strategy_that_trains_another_model_is_named() -> None:
    cells = two_gpus(SPEEDS)
    cells.loc[cells.strategy == "fsdp", ["excluded", "parity"]] = ["parity failed", "failed"]
    assert "Not proven to train the same model: FSDP1." in answer_of(cells).text


def test_a_failed_gate_counts_more_than_one_that_has_not_run() -> None:
    cells = two_gpus(SPEEDS).assign(excluded="parity missing", parity="missing")
    other = cells[cells.strategy == "fsdp"].assign(
        gpus=4, excluded="parity failed", parity="failed"
    )
    text = answer_of(pd.concat([cells, other], ignore_index=True)).text
    assert "Not proven to train the same model: FSDP1." in text
    assert "Not yet checked by the parity gate: DDP and FSDP2." in text


def test_a_strategy_whose_gate_has_not_run_is_named_with_what_runs_it() -> None:
    cells = two_gpus(SPEEDS).assign(excluded="parity missing", parity="missing")
    assert answer_of(cells).text == (
        "No strategy has a result that counts. Not yet checked by the parity gate: DDP, FSDP1 and "
        "FSDP2. The command that runs the matrix also runs the gate."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"excluded": "parity failed", "parity": "failed"}, "Not proven to train the same model"),
        ({"excluded": "not training"}, "Not proven to train the same model"),
        ({"excluded": "not compiled"}, "Ran uncompiled, although it should be compiled"),
        ({"excluded": "refused", "outcome": "refused", "status": ""}, "Its file does not count"),
    ],
)
def test_why_a_strategy_is_left_out_does_not_hide_behind_a_missing_seed(
    changes: dict[str, Any], words: str
) -> None:
    cells = two_gpus(SPEEDS)
    own = cells.strategy == "fsdp"
    cells.loc[own, list(changes)] = list(changes.values())
    cells.loc[own & (cells.seed == 5), ["status", "outcome", "excluded"]] = [
        "",
        "missing",
        "missing",
    ]
    assert f"{words}: FSDP1." in answer_of(cells).text


def test_results_on_one_gpu_answer_nothing_about_two_where_all_ran_out_of_memory() -> None:
    large = two_gpus(SPEEDS)
    for strategy in SPEEDS:
        large = failed(large, strategy, "oom")
    found = answer_of(pd.concat([two_gpus(SPEEDS).assign(gpus=1), large], ignore_index=True))
    assert found.badge == "no answer"
    assert found.text.startswith("One GPU cannot answer")
    words = "No strategy has a result that counts on 2 GPUs. Out of memory: DDP, FSDP1 and FSDP2."
    assert words in found.text
    found = answer_of(pd.concat([two_gpus(SPEEDS), large.assign(gpus=4)], ignore_index=True))
    assert found.lead == "Use DDP."
    assert words.replace("2 GPUs", "4 GPUs") in found.text


def test_failed_runs_of_the_best_strategy_are_named() -> None:
    cells = two_gpus({"ddp": 1.0, "fsdp": 0.9}, seeds=9)
    some = failed(cells[cells.seed < 3].copy(), "ddp", "oom")
    found = answer_of(pd.concat([some, cells[cells.seed >= 3]], ignore_index=True))
    assert found.lead == "Use DDP."
    assert "3 of its 9 runs: out of memory." in found.text


def test_a_best_strategy_of_another_arithmetic_says_so() -> None:
    words = "It changes the arithmetic"
    cells = two_gpus(SPEEDS)
    assert words not in answer_of(cells).text
    cells.loc[cells.strategy == "ddp", "lane"] = "other_arithmetic"
    assert words in answer_of(cells).text


def test_an_equal_strategy_is_named_beside_one_that_is_open() -> None:
    cells = two_gpus({"ddp": 1.0, "fsdp2": 1.001, "fsdp": 1.0}, sd=0.001)
    noisy = cells.strategy == "fsdp"
    cells.loc[noisy, "items_per_s"] *= [0.9, 1.1, 0.9, 1.1, 0.9, 1.1]
    found = answer_of(cells)
    assert found.badge == "open"
    assert found.lead in ("Use FSDP2, DDP or FSDP1.", "Use DDP, FSDP2 or FSDP1.")


def test_a_strategy_that_is_slower_than_a_rival_is_no_choice() -> None:
    cells = two_gpus({"ddp": 1.0, "fsdp2": 1.1, "deepspeed_zero1": 0.9}, sd=0.001)
    outlier = (cells.strategy == "fsdp2") & (cells.seed == 0)
    cells.loc[outlier, "items_per_s"] *= 0.7
    found = answer_of(cells)
    assert found.badge == "open"
    assert found.lead == "Use FSDP2 or DDP."


def test_memory_is_tight_for_whom_another_saves_more_than_the_margin() -> None:
    speeds = {"fsdp2": 1.1, "ddp": 1.0, "deepspeed_zero1": 0.9, "deepspeed_zero3": 0.3}
    # DDP needs 1.5 % less than FSDP2, ZeRO-1 2.9 %.
    gib = {"fsdp2": 41.2, "ddp": 40.6, "deepspeed_zero1": 40.0, "deepspeed_zero3": 39.0}
    found = answer_of(two_gpus(speeds, gib=gib, sd=0.001))
    assert "If memory is tight: DeepSpeed ZeRO-1 (18 % slower, 2.9 % less memory)." in found.text
    assert "Avoid DeepSpeed ZeRO-3" in found.text
    # It is as good a choice for tight memory as the one that is named.
    found = answer_of(two_gpus(speeds | {"deepspeed_zero1": 0.32}, gib=gib, sd=0.001))
    assert "If memory is tight: DeepSpeed ZeRO-1 (71 % slower" in found.text
    assert "Avoid" not in found.text


def test_runs_on_devices_that_never_met_do_not_count_as_runs_to_compare() -> None:
    cells = two_gpus({"ddp": 1.0, "fsdp": 0.99}, seeds=9, sd=0.02)
    met = cells.seed < 2
    others = [f"GPU-{index}" for index in range(len(cells))]
    cells["device_uuids"] = cells.device_uuids.where(met, others)
    found = answer_of(cells)
    assert found.lead == "Too few runs to choose."
    assert found.more_runs.endswith("with the same seeds on the same devices.")


def test_what_may_not_be_compared_is_named() -> None:
    cells = two_gpus(SPEEDS)
    cells.loc[cells.strategy == "fsdp", "torch"] = "2.16.0"
    assert "Not comparable: FSDP1." in answer_of(cells).text


def test_another_best_at_another_count_is_said() -> None:
    small, large = two_gpus({"ddp": 1.0, "fsdp": 1.2}), two_gpus(SPEEDS).assign(gpus=4)
    found = answer_of(pd.concat([small, large], ignore_index=True))
    assert found.lead == "Use DDP."
    assert "On 2 GPUs, FSDP1 is fastest." in found.text


def test_the_largest_batches_are_a_sentence_of_their_own_at_the_same_gpu_count() -> None:
    rows = [
        ("ddp", 2, "found", 8, 24_900.0),
        ("fsdp2", 2, "reached_most", 16, 34_100.0),
        ("fsdp2", 1, "found", 4, 99_999.0),
        ("deepspeed_zero1", 2, "does_not_fit", None, None),
        ("ddp_bf16_hook", 2, "found", 8, 99_999.0),
        ("fsdp", 2, "found", 8, 99_999.0),
    ]
    columns = ["strategy", "gpus", "status", "per_gpu_batch", "items_per_s_per_gpu"]
    largest = pd.DataFrame(rows, columns=columns).assign(unit="tokens", lane="same_arithmetic")
    largest.loc[largest.strategy == "ddp_bf16_hook", "lane"] = "other_arithmetic"
    cells = two_gpus(SPEEDS)
    cells.loc[cells.strategy == "fsdp", "parity"] = "failed"
    without, found = answer_of(cells), answer_of(cells, largest=largest)
    (added,) = [part for part in found.rest if part not in without.rest]
    assert added == (
        "At the largest batch that fits (tokens/s per GPU, measured once):",
        "FSDP2 34,100 (batch 16 or more) and DDP 24,900 (batch 8).",
    )
    assert (found.badge, found.lead) == (without.badge, without.lead)
