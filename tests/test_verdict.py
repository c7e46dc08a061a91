"""The verdict: what is planted is said, what is not shown is not, reservations come first."""

from __future__ import annotations

import pandas as pd
import pytest

from result_tables import GPU, OTHERS, cells_table
from shardmark.report.sentences import sentences
from shardmark.statistics.comparisons import EXPLORATORY, PRIMARY, compare
from shardmark.statistics.standing import VERDICTS, Verdict
from shardmark.statistics.verdict import pareto_set, verdicts

GIB = 2**30


def judged(cells: pd.DataFrame) -> tuple[Verdict, list[str]]:
    """The verdict on a table of one GPU count, and its sentences."""
    comparisons = compare(cells, "ddp")
    (verdict,) = verdicts(cells, comparisons, "ddp")
    return verdict, sentences(verdict, comparisons)


def verdict_of(cells: pd.DataFrame) -> Verdict:
    return judged(cells)[0]


def with_memory(cells: pd.DataFrame, gib: dict[str, float]) -> pd.DataFrame:
    return cells.assign(memory_used_peak_bytes=cells["strategy"].map(gib) * GIB)


def test_a_strategy_that_is_faster_than_every_other_is_called_the_fastest() -> None:
    verdict, sentences = judged(cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}))
    assert verdict.fastest.best == "fsdp2"
    assert verdict.fastest.shown
    assert verdict.fastest.worse == ["ddp", "fsdp"]
    assert sentences[0].startswith("FSDP2 is the fastest: 10,6")
    assert "against DDP +6." in sentences[0] or "against DDP +5." in sentences[0]


def test_two_that_are_equivalent_leave_no_fastest() -> None:
    verdict, sentences = judged(cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.03}))
    assert not verdict.fastest.shown
    assert verdict.fastest.worse == ["ddp"]
    assert sentences[0] == "No strategy is shown to be the fastest."
    assert "is the fastest" not in " ".join(sentences)
    assert "equivalent to it within 2 %: FSDP1" in " ".join(sentences)


def test_faster_than_the_baseline_is_not_the_fastest() -> None:
    verdict, sentences = judged(cells_table({"ddp": 1.0, "fsdp": 1.06, "fsdp2": 1.055}, sd=0.015))
    assert "is the fastest" not in " ".join(sentences)
    assert verdict.fastest.open
    assert "Against DDP, the baseline, with 95 % intervals: faster: " in " ".join(sentences)


def test_one_seed_is_said_first_and_nothing_is_claimed_of_it() -> None:
    cells = with_memory(
        cells_table({"ddp": 1.0, "fsdp": 2.0, "fsdp2": 3.0}, range(1)),
        {"ddp": 12, "fsdp": 10, "fsdp2": 20},
    )
    verdict, sentences = judged(cells)
    assert sentences[0] == (
        "There is one run of each strategy, which can show nothing: from 3 runs on a difference "
        "can be likely, from 6 on established."
    )
    for claim in ("is the fastest", "needs the least", "shown to be slower"):
        assert claim not in " ".join(sentences)
    assert "not told apart from any other" in " ".join(sentences)
    assert "intervals" not in " ".join(sentences), "one run has none"
    assert verdict.fastest.tier == "open"
    assert verdict.pareto == ["fsdp", "fsdp2"], "by the estimates, however few runs there are"


def test_three_runs_make_it_likely_and_six_establish_it() -> None:
    ratios = {"ddp": 1.2} | {name: 1 - index / 50 for index, name in enumerate(OTHERS)}
    few, sentences = judged(cells_table(ratios, range(3), sd=0.001))
    assert few.fastest.tier == "likely"
    assert sentences[0].startswith("DDP is likely the fastest: ")
    more, sentences = judged(cells_table(ratios, range(6), sd=0.001))
    assert more.fastest.tier == "established"
    assert sentences[0].startswith("DDP is the fastest: ")
    assert more.fastest.ratios["dp"] == pytest.approx(1 / 1.2, rel=0.005)


def test_a_fastest_that_is_likely_against_one_is_likely_at_all() -> None:
    cells = cells_table({"ddp": 1.2, "fsdp": 1.0, "fsdp2": 1.0})
    cells.loc[(cells["strategy"] == "fsdp2") & (cells["seed"] > 3), "excluded"] = "oom"
    assert verdict_of(cells).fastest.tier == "likely"


def test_an_open_ranking_says_how_many_runs_would_settle_it() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.0, "fsdp2": 0.5})
    # DDP varies by 4 %, and its mean is 2 % higher.
    changes = [1.06, 0.98, 1.06, 0.98, 1.06, 0.98, 1.06, 0.98, 1.02]
    cells.loc[cells["strategy"] == "ddp", "images_per_s"] *= changes
    verdict = verdict_of(cells)
    assert (verdict.fastest.tier, verdict.fastest.best) == ("open", "ddp")
    assert verdict.fastest.open == ["fsdp"]
    assert verdict.fastest.worse == ["fsdp2"]
    assert verdict.fastest.seeds_needed is not None
    assert verdict.fastest.seeds_needed > 9
    assert verdict_of(cells_table({"ddp": 1.0, "fsdp": 0.5})).fastest.seeds_needed is None


def test_failures_and_exclusions_are_said_before_the_verdict() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}, range(10))
    fsdp = cells["strategy"] == "fsdp"
    cells.loc[fsdp & (cells["seed"] == 0), ["status", "excluded"]] = "oom"
    cells.loc[fsdp & (cells["seed"] == 1), "excluded"] = "throttled"
    cells.loc[cells["strategy"] == "fsdp2", "excluded"] = "parity failed"
    verdict, sentences = judged(cells)
    assert verdict.excluded["fsdp"] == {"oom": 1, "throttled": 1}
    assert sentences[:4] == [
        "Not all have the same number of runs: FSDP1 8, the others 10.",
        "Left out, oom: 1 of 10 cells of FSDP1.",
        "Left out, throttled: 1 of 10 cells of FSDP1.",
        "Left out, parity failed: 10 of 10 cells of FSDP2.",
    ]
    assert sentences[4].startswith("FSDP1 is the fastest: ")


def test_one_reason_of_many_cells_is_told_once() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}, range(10))
    cells.loc[cells["seed"] < 3, "excluded"] = "shared GPU"
    told = [text for text in judged(cells)[1] if text.startswith("Left out")]
    assert told == [
        "Left out, shared GPU: 3 of 10 cells of DDP, 3 of 10 cells of FSDP1 and "
        "3 of 10 cells of FSDP2."
    ]


def test_one_cell_is_told_of_as_one() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03}, seeds=[0])
    cells.loc[cells["strategy"] == "fsdp", ["status", "excluded"]] = "oom"
    assert "Left out, oom: the only cell of FSDP1." in judged(cells)[1]


def test_the_fastest_of_some_is_not_called_the_fastest_of_all() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06})
    cells.loc[cells["strategy"] == "fsdp", "torch"] = "2.16.0"
    _, sentences = judged(cells)
    assert sentences[0] == ("FSDP1 is not compared to DDP: mixed torch: 2.15.0 / 2.16.0.")
    assert sentences[1].startswith("FSDP2 is the fastest of those compared: ")


def test_without_a_usable_baseline_the_rest_is_still_judged() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06})
    cells.loc[cells["strategy"] == "ddp", ["status", "excluded", "images_per_s"]] = [
        "oom",
        "oom",
        None,
    ]
    _, sentences = judged(cells)
    assert sentences[:2] == [
        "Left out, oom: 9 of 9 cells of DDP.",
        "DDP, the baseline, has no usable cell to compare to.",
    ]
    assert sentences[2].startswith("FSDP2 is the fastest: ")


def test_nothing_usable_is_said_and_no_more() -> None:
    verdict, sentences = judged(
        cells_table({"ddp": 1.0, "fsdp": 1.03}, status="oom", excluded="oom")
    )
    assert verdict.fastest.best is None
    assert sentences[-1] == "No strategy has a usable cell."
    assert verdict.pareto == []


def test_pareto_leaves_out_what_another_beats() -> None:
    ratios = {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.95, "dp": 0.85}
    memory = {"ddp": 12.0, "fsdp": 10.0, "fsdp2": 9.0, "dp": 8.0}
    verdict, sentences = judged(with_memory(cells_table(ratios, energy_per_image_j=None), memory))
    # fsdp is slower than fsdp2 and needs more; each of the others is best in something.
    assert verdict.pareto == ["ddp", "fsdp2", "dp"]
    assert verdict.objectives == ["images_per_s", "memory_used_peak_bytes"]
    assert verdict.energy is None
    assert "By throughput and memory together, these are beaten by none (exploratory): " in (
        " ".join(sentences)
    )
    assert (
        "DataParallel needs the least memory: 8.0 GiB at the peak of its fullest GPU"
        in " ".join(sentences)
    )


def test_equivalent_by_one_objective_and_better_by_another_beats() -> None:
    cells = with_memory(cells_table({"ddp": 1.0, "fsdp": 1.0}), {"ddp": 12.0, "fsdp": 9.0})
    assert verdict_of(cells).pareto == ["fsdp"]


def test_equals_beat_neither() -> None:
    unpriced = {"energy_per_image_j": None}
    verdict = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.0}, **unpriced))
    assert verdict.pareto == ["ddp", "fsdp"]


def test_fewer_runs_keep_no_strategy_in_the_pareto_set() -> None:
    cells = with_memory(cells_table({"ddp": 1.0, "fsdp": 0.8}), {"ddp": 10.0, "fsdp": 12.0})
    cells.loc[(cells["strategy"] == "fsdp") & (cells["seed"] > 0), "excluded"] = "oom"
    verdict = verdict_of(cells)
    assert verdict.runs["fsdp"] == 1
    assert verdict.pareto == ["ddp"]


def test_three_that_would_beat_each_other_in_a_circle_all_stay() -> None:
    metrics = (PRIMARY, *EXPLORATORY[:2])
    # 128ths, which add up exactly: each gains 3.1 % on the next by one, loses 1.6 % by the others.
    gains = {
        "a": (4 / 128, 2 / 128, 0.0),
        "b": (0.0, 4 / 128, 2 / 128),
        "c": (2 / 128, 0.0, 4 / 128),
    }
    levels = {
        metric: {name: (1 if metric is PRIMARY else -1) * own[place] for name, own in gains.items()}
        for place, metric in enumerate(metrics)
    }
    assert pareto_set(levels, 0.02) == ["a", "b", "c"]


def test_unpaired_comparisons_are_said_so() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells["device_uuids"] = [GPU.format((7 * index) % 5) for index in range(len(cells))]
    assert judged(cells)[1][0] == (
        "The runs of FSDP1 are not paired with those of DDP, since they were on different devices."
    )


def test_every_group_has_a_verdict_and_it_is_read_back_as_it_was_written() -> None:
    tables = [cells_table({"ddp": 1.0, "fsdp": 1.03}, gpus=gpus) for gpus in (4, 1)]
    cells = pd.concat(tables)
    verdict = verdicts(cells, compare(cells, "ddp"), "ddp")
    assert [one.gpus for one in verdict] == [1, 4]
    assert VERDICTS.validate_json(VERDICTS.dump_json(verdict)) == verdict


def test_one_strategy_alone_is_not_called_the_fastest() -> None:
    _, sentences = judged(cells_table({"ddp": 1.0}))
    assert sentences[0].startswith("Only DDP has usable cells: ")
    assert "fastest" not in " ".join(sentences)
