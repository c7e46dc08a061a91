"""The verdict: what is planted is shown, and what the runs cannot show is open."""

from __future__ import annotations

import pandas as pd
import pytest

from result_tables import OTHERS, cells_table
from shardmark.statistics.comparisons import EXPLORATORY, PRIMARY, compare
from shardmark.statistics.standing import VERDICTS, Verdict
from shardmark.statistics.verdict import pareto_set, verdicts

GIB = 2**30


def verdict_of(cells: pd.DataFrame) -> Verdict:
    """The verdict on a table of one GPU count."""
    (verdict,) = verdicts(cells, compare(cells, "ddp"), "ddp")
    return verdict


def with_memory(cells: pd.DataFrame, gib: dict[str, float]) -> pd.DataFrame:
    return cells.assign(memory_used_peak_bytes=cells["strategy"].map(gib) * GIB)


def test_a_strategy_that_is_faster_than_every_other_is_called_the_fastest() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}))
    assert found.fastest.best == "fsdp2"
    assert found.fastest.is_settled
    assert found.fastest.worse == ["ddp", "fsdp"]
    assert found.fastest.value == pytest.approx(10_600, rel=0.01)


def test_two_that_are_equivalent_leave_no_fastest() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.03}))
    assert not found.fastest.is_settled
    assert found.fastest.worse == ["ddp"]
    assert len(found.fastest.equivalent) == 1
    assert found.fastest.tier == "established", "that they are equivalent"


def test_faster_than_the_baseline_is_not_the_fastest() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.06, "fsdp2": 1.055}, sd=0.015)
    assert "faster" in set(compare(cells, "ddp").verdict)
    found = verdict_of(cells)
    assert found.fastest.open
    assert not found.fastest.is_settled


def test_one_seed_shows_nothing() -> None:
    cells = with_memory(
        cells_table({"ddp": 1.0, "fsdp": 2.0, "fsdp2": 3.0}, range(1)),
        {"ddp": 12, "fsdp": 10, "fsdp2": 20},
    )
    found = verdict_of(cells)
    assert found.fastest.tier == "open"
    assert found.pareto == ["fsdp", "fsdp2"], "by the estimates, however few runs there are"


def test_three_runs_make_it_likely_and_six_establish_it() -> None:
    ratios = {"ddp": 1.2} | {name: 1 - index / 50 for index, name in enumerate(OTHERS)}
    few = verdict_of(cells_table(ratios, range(3), sd=0.001))
    assert few.fastest.tier == "likely"
    more = verdict_of(cells_table(ratios, range(6), sd=0.001))
    assert more.fastest.tier == "established"
    assert more.fastest.ratios["dp"] == pytest.approx(1 / 1.2, rel=0.005)


def test_a_fastest_that_is_likely_against_one_is_likely_at_all() -> None:
    cells = cells_table({"ddp": 1.2, "fsdp": 1.0, "fsdp2": 1.0})
    cells.loc[(cells["strategy"] == "fsdp2") & (cells["seed"] > 3), "excluded"] = "oom"
    assert verdict_of(cells).fastest.tier == "likely"


def test_an_open_ranking_says_how_many_runs_would_settle_it() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.0, "fsdp2": 0.5})
    # DDP varies by 4 %, and its mean is 2 % higher.
    changes = [1.06, 0.98, 1.06, 0.98, 1.06, 0.98, 1.06, 0.98, 1.02]
    cells.loc[cells["strategy"] == "ddp", "items_per_s"] *= changes
    found = verdict_of(cells)
    assert (found.fastest.tier, found.fastest.best) == ("open", "ddp")
    assert found.fastest.open == ["fsdp"]
    assert found.fastest.worse == ["fsdp2"]
    rows = compare(cells, "ddp")
    (needed,) = rows[(rows.strategy == "fsdp") & (rows.family == "primary")].seeds_needed
    assert found.fastest.more_runs == needed - 9 > 0
    assert found.fastest.too_few == []
    assert verdict_of(cells_table({"ddp": 1.0, "fsdp": 0.5})).fastest.more_runs is None


def test_excluded_cells_are_counted_by_reason() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}, range(10))
    fsdp = cells["strategy"] == "fsdp"
    cells.loc[fsdp & (cells["seed"] == 0), ["status", "excluded"]] = "oom"
    cells.loc[fsdp & (cells["seed"] == 1), "excluded"] = "throttled"
    cells.loc[cells["strategy"] == "fsdp2", "excluded"] = "parity failed"
    found = verdict_of(cells)
    assert found.excluded == {"fsdp": {"oom": 1, "throttled": 1}, "fsdp2": {"parity failed": 10}}
    assert found.runs == {"ddp": 10, "fsdp": 8, "fsdp2": 0}
    assert found.fastest.best == "fsdp"


def test_what_may_not_be_compared_is_listed() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06})
    cells.loc[cells["strategy"] == "fsdp", "torch"] = "2.16.0"
    assert verdict_of(cells).fastest.not_compared == ["fsdp"]


def test_what_could_not_be_compared_leaves_the_choice_open() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9, "fsdp2": 1.5}, range(10))
    assert verdict_of(cells).fastest.tier == "established"
    cells.loc[cells["strategy"] == "fsdp2", "torch"] = "2.16.0"
    fastest = verdict_of(cells).fastest
    assert (fastest.best, fastest.tier, fastest.not_compared) == ("ddp", "open", ["fsdp2"])


def test_a_strategy_without_a_pair_of_the_baselines_can_be_the_best() -> None:
    cells = cells_table({"ddp": 0.7, "fsdp": 0.8, "fsdp2": 1.2}, range(12))
    without = (cells["strategy"] == "ddp") & (cells["seed"] >= 6)
    without |= (cells["strategy"] == "fsdp2") & (cells["seed"] < 6)
    found = verdict_of(cells[~without])
    fastest = found.fastest
    assert (fastest.best, fastest.worse, fastest.not_compared) == ("fsdp2", ["fsdp"], ["ddp"])
    assert found.pareto == ["fsdp2"]


def test_without_a_usable_baseline_the_rest_is_still_judged() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06})
    cells.loc[cells["strategy"] == "ddp", ["status", "excluded", "items_per_s"]] = [
        "oom",
        "oom",
        None,
    ]
    found = verdict_of(cells)
    assert (found.fastest.best, found.fastest.is_settled) == ("fsdp2", True)


def test_nothing_usable_has_no_best() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.03}, status="oom", excluded="oom"))
    assert found.fastest.best is None
    assert found.pareto == []


def test_pareto_leaves_out_what_another_beats() -> None:
    ratios = {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.95, "dp": 0.85}
    memory = {"ddp": 12.0, "fsdp": 10.0, "fsdp2": 9.0, "dp": 8.0}
    found = verdict_of(with_memory(cells_table(ratios, energy_per_item_j=None), memory))
    # fsdp is slower than fsdp2 and needs more; each of the others is best in something.
    assert found.pareto == ["ddp", "fsdp2", "dp"]
    assert found.objectives == ["items_per_s", "memory_used_peak_bytes"]
    assert found.energy is None
    assert found.memory is not None
    assert (found.memory.best, found.memory.value) == ("dp", 8 * GIB)


def test_equivalent_by_one_objective_and_better_by_another_beats() -> None:
    cells = with_memory(cells_table({"ddp": 1.0, "fsdp": 1.0}), {"ddp": 12.0, "fsdp": 9.0})
    assert verdict_of(cells).pareto == ["fsdp"]


def test_equals_beat_neither() -> None:
    unpriced = {"energy_per_item_j": None}
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.0}, **unpriced))
    assert found.pareto == ["ddp", "fsdp"]


def test_fewer_runs_keep_no_strategy_in_the_pareto_set() -> None:
    cells = with_memory(cells_table({"ddp": 1.0, "fsdp": 0.8}), {"ddp": 10.0, "fsdp": 12.0})
    cells.loc[(cells["strategy"] == "fsdp") & (cells["seed"] > 0), "excluded"] = "oom"
    found = verdict_of(cells)
    assert found.runs["fsdp"] == 1
    assert found.pareto == ["ddp"]


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


def test_every_group_has_a_verdict_and_it_is_read_back_as_it_was_written() -> None:
    tables = [cells_table({"ddp": 1.0, "fsdp": 1.03}, gpus=gpus) for gpus in (4, 1)]
    cells = pd.concat(tables)
    found = verdicts(cells, compare(cells, "ddp"), "ddp")
    assert [one.gpus for one in found] == [1, 4]
    assert VERDICTS.validate_json(VERDICTS.dump_json(found)) == found


def test_one_strategy_alone_is_not_shown_to_be_the_fastest() -> None:
    assert not verdict_of(cells_table({"ddp": 1.0})).fastest.is_settled
