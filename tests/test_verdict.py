"""The verdict: what is planted is said, what is not shown is not, reservations come first."""

from __future__ import annotations

import json

import pandas as pd

from result_tables import GPU, OTHERS, cells_table
from shardmark.statistics.comparisons import compare
from shardmark.statistics.standing import Verdict
from shardmark.statistics.verdict import verdicts

GIB = 2**30


def verdict_of(cells: pd.DataFrame, baseline: str = "ddp") -> Verdict:
    (found,) = verdicts(cells, compare(cells, baseline), baseline)
    return found


def with_memory(cells: pd.DataFrame, gib: dict[str, float]) -> pd.DataFrame:
    return cells.assign(memory_used_peak_bytes=cells["strategy"].map(gib) * GIB)


def test_a_strategy_that_is_faster_than_every_other_is_called_the_fastest() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}))
    assert found.fastest.best == "fsdp2"
    assert found.fastest.shown
    assert found.fastest.worse == ["ddp", "fsdp"]
    assert found.sentences[0].startswith("fsdp2 is the fastest: 10,6")
    assert "against ddp +6." in found.sentences[0] or "against ddp +5." in found.sentences[0]


def test_two_that_are_equivalent_leave_no_fastest() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.03}))
    assert not found.fastest.shown
    assert found.fastest.worse == ["ddp"]
    assert found.sentences[0] == "No strategy is shown to be the fastest."
    assert "is the fastest" not in found.text
    assert "equivalent to it within 2 %: fsdp" in found.text


def test_faster_than_the_baseline_is_not_the_fastest() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.06, "fsdp2": 1.055}, sd=0.015))
    assert "is the fastest" not in found.text
    assert found.fastest.open
    assert "Against ddp, the baseline, with 95 % intervals: faster: " in found.text


def test_one_seed_is_said_first_and_nothing_is_claimed_of_it() -> None:
    cells = with_memory(
        cells_table({"ddp": 1.0, "fsdp": 2.0, "fsdp2": 3.0}, range(1)),
        {"ddp": 12, "fsdp": 10, "fsdp2": 20},
    )
    found = verdict_of(cells)
    assert found.sentences[0] == (
        "There is one run of each strategy: nothing here can be significant."
    )
    for claim in ("is the fastest", "needs the least", "shown to be slower", "beaten"):
        assert claim not in found.text
    assert "not told apart from any other" in found.text
    assert "intervals" not in found.text, "one run has none"
    assert "No strategy can be ruled out" in found.text
    assert found.pareto == ["ddp", "fsdp", "fsdp2"]


def test_too_few_seeds_for_the_family_are_said_first_with_the_number_needed() -> None:
    ratios = {"ddp": 1.0} | {name: 1 + index / 10 for index, name in enumerate(OTHERS, 1)}
    found = verdict_of(cells_table(ratios, range(6)))
    assert found.cannot
    assert found.sentences[0] == (
        "With n = 6 no difference from ddp can be significant: 7 comparisons need at least "
        "9 seeds, as pairs."
    )
    assert not found.fastest.shown


def test_failures_and_suspects_are_said_before_the_verdict() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}, range(10))
    fsdp = cells["strategy"] == "fsdp"
    cells.loc[fsdp & (cells["seed"] == 0), "status"] = "oom"
    marked(cells, fsdp & (cells["seed"] == 1), "hot: 95 °C")
    cells.loc[cells["strategy"] == "fsdp2", "parity"] = "failed"
    found = verdict_of(cells)
    assert found.left_out["fsdp"] == {"oom": 1, "suspect (hot)": 1}
    assert found.sentences[:4] == [
        "Not all have the same number of runs: fsdp 8, the others 10.",
        "Left out, oom: 1 of 10 cells of fsdp.",
        "Left out, suspect (hot): 1 of 10 cells of fsdp.",
        "Left out, parity failed: 10 of 10 cells of fsdp2.",
    ]
    assert found.sentences[4].startswith("fsdp is the fastest: ")


def marked(cells: pd.DataFrame, which: pd.Series[bool], reason: str) -> None:
    cells.loc[which, ["validity", "validity_reasons"]] = ["suspect", reason]


def test_one_reason_of_many_cells_is_told_once() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06}, range(10))
    for seed in (0, 1, 2):
        marked(cells, cells["seed"] == seed, f"drifting: steps became {seed}.5 % slower")
    told = [text for text in verdict_of(cells).sentences if text.startswith("Left out")]
    assert told == [
        "Left out, suspect (drifting): 3 of 10 cells of ddp, 3 of 10 cells of fsdp and "
        "3 of 10 cells of fsdp2."
    ]


def test_what_leaving_suspects_out_decides_is_said() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.8})
    marked(cells, (cells["strategy"] == "fsdp") & (cells["seed"] > 2), "drifting: by 9 %")
    found = verdict_of(cells)
    assert found.fastest.open == ["fsdp"], "three pairs cannot be significant"
    assert found.with_suspects is not None
    assert found.with_suspects.fastest.worse == ["fsdp", "fsdp2"]
    assert found.with_suspects.with_suspects is None
    (said,) = [text for text in found.sentences if text.startswith("With 6 suspect cells")]
    assert "counted too (exploratory): ddp is the fastest: 10," in said
    assert "Against ddp, the baseline, with 95 % intervals: slower: fsdp (−" in said
    own = next(text for text in found.sentences if text.startswith("Against ddp"))
    assert "nor can it be at this n: fsdp" in own, "the tests themselves leave them out"


def test_suspects_that_would_not_count_either_way_are_no_reason_to_ask() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9})
    of_it = cells["strategy"] == "fsdp"
    marked(cells, of_it & (cells["seed"] < 2), "drifting: by 9 %")
    cells.loc[of_it, "parity"] = "failed"
    assert verdict_of(cells).with_suspects is None


def test_what_suspects_may_not_be_compared_to_is_said() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.8})
    one = (cells["strategy"] == "fsdp") & (cells["seed"] == 8)
    marked(cells, one, "drifting: by 9 %")
    cells.loc[one, "driver"] = "999"
    (said,) = [text for text in verdict_of(cells).sentences if text.startswith("With one suspect")]
    assert "fsdp is not compared to ddp: mixed driver" in said


def test_without_suspects_nothing_is_said_of_them() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 0.9}))
    assert found.with_suspects is None
    assert "suspect" not in found.text


def test_one_cell_is_told_of_as_one() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03}, seeds=[0])
    cells.loc[cells["strategy"] == "fsdp", "status"] = "oom"
    assert "Left out, oom: the only cell of fsdp." in verdict_of(cells).sentences


def test_the_fastest_of_some_is_not_called_the_fastest_of_all() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06})
    cells.loc[cells["strategy"] == "fsdp", "torch"] = "2.16.0"
    found = verdict_of(cells)
    assert found.sentences[0] == ("fsdp is not compared to ddp: mixed torch: 2.15.0 and 2.16.0.")
    assert found.sentences[1].startswith("fsdp2 is the fastest of those compared: ")


def test_without_a_usable_baseline_the_rest_is_still_judged() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 1.03, "fsdp2": 1.06})
    cells.loc[cells["strategy"] == "ddp", ["status", "images_per_s"]] = ["oom", None]
    found = verdict_of(cells)
    assert found.sentences[:2] == [
        "Left out, oom: 9 of 9 cells of ddp.",
        "ddp, the baseline, has no usable cell to compare to.",
    ]
    assert found.sentences[2].startswith("fsdp2 is the fastest: ")


def test_nothing_usable_is_said_and_no_more() -> None:
    found = verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.03}, status="oom"))
    assert found.fastest.best is None
    assert found.sentences[-1] == "No strategy has a usable cell."
    assert found.pareto == []


def test_pareto_leaves_out_only_what_is_shown_to_be_beaten() -> None:
    ratios = {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.95, "dp": 0.85}
    memory = {"ddp": 12.0, "fsdp": 10.0, "fsdp2": 9.0, "dp": 8.0}
    found = verdict_of(with_memory(cells_table(ratios, energy_per_image_j=None), memory))
    # fsdp is slower than fsdp2 and needs more; each of the others is best in something.
    assert found.pareto == ["ddp", "fsdp2", "dp"]
    assert found.objectives == ["images_per_s", "memory_used_peak_bytes"]
    assert found.energy is None
    assert "By throughput and memory together, these are beaten by none (exploratory): " in (
        found.text
    )
    assert "dp needs the least memory: 8.0 GiB at the peak of its fullest GPU" in found.text
    few = cells_table(ratios, range(5), energy_per_image_j=None)
    assert verdict_of(with_memory(few, memory)).pareto == list(ratios)


def test_equivalent_by_one_objective_and_better_by_another_beats() -> None:
    cells = with_memory(cells_table({"ddp": 1.0, "fsdp": 1.0}), {"ddp": 12.0, "fsdp": 9.0})
    assert verdict_of(cells).pareto == ["fsdp"]


def test_what_is_open_beats_nothing_and_equals_beat_neither() -> None:
    unpriced = {"energy_per_image_j": None}
    noisy = cells_table({"ddp": 1.0, "fsdp": 0.99}, sd=0.03, noise=1, **unpriced)
    found = verdict_of(with_memory(noisy, {"ddp": 12.0, "fsdp": 9.0}))
    assert found.fastest.open == ["fsdp"]
    assert found.pareto == ["ddp", "fsdp"]
    assert verdict_of(cells_table({"ddp": 1.0, "fsdp": 1.0}, **unpriced)).pareto == ["ddp", "fsdp"]


def test_unpaired_comparisons_are_said_so() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells["device_uuids"] = [GPU.format((7 * index) % 5) for index in range(len(cells))]
    assert verdict_of(cells).sentences[0] == (
        "The runs of fsdp are not paired with those of ddp, since they were on different devices."
    )


def test_every_group_has_a_verdict_and_it_is_plain_data() -> None:
    tables = [cells_table({"ddp": 1.0, "fsdp": 1.03}, gpus=gpus) for gpus in (4, 1)]
    cells = pd.concat(tables)
    found = verdicts(cells, compare(cells, "ddp"), "ddp")
    assert [one.gpus for one in found] == [1, 4]
    assert json.loads(json.dumps(found[0].as_dict()))["fastest"]["best"] == "fsdp"


def test_one_strategy_alone_is_not_called_the_fastest() -> None:
    found = verdict_of(cells_table({"ddp": 1.0}))
    assert found.sentences[0].startswith("Only ddp has usable cells: ")
    assert "fastest" not in found.text
