"""The table to choose a strategy by: what is best, what it costs, and how sure it is."""

from __future__ import annotations

import pandas as pd
import pytest

from gpu_matrix import config_of
from result_tables import cells_table
from shardmark.report.decisions import decisions
from shardmark.statistics.comparisons import compare
from shardmark.statistics.verdict import verdicts

GIB = 2**30
SPEEDS = {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.8}
MEMORY = {"ddp": 12, "fsdp": 10, "fsdp2": 8}


def row_of(cells: pd.DataFrame) -> list[str]:
    found = verdicts(cells, compare(cells, "ddp"), "ddp")
    (row,) = decisions(config_of(), [one.as_dict() for one in found]).rows
    return row


def with_memory(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.assign(memory_used_peak_bytes=cells["strategy"].map(MEMORY) * GIB)


def test_the_best_says_how_sure_by_how_much_and_at_what_cost() -> None:
    cells = with_memory(cells_table(SPEEDS, energy_per_image_j=None))
    _, runs, fastest, memory, energy = row_of(cells)
    assert runs == "9"
    assert fastest.startswith("ddp, 10,")
    assert "[shown to be better than fsdp, fsdp2] [next: fsdp, −1" in fastest
    assert fastest.endswith(" [with 12.0 GiB]")
    assert memory.startswith("fsdp2, 8.0 GiB [shown to be better than ddp, fsdp]")
    assert "[next: fsdp, +25.0 % against it] [at " in memory
    assert memory.endswith("[at 8,014 images/s (−19.9 %)]"), "what it costs in speed"
    assert energy == "not measured"


def test_a_best_of_many_is_better_than_their_number() -> None:
    others = {f"s{place}": 0.9 for place in range(4)}
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0, **others}))
    assert "[shown to be better than all 4 others]" in fastest


def test_equals_are_called_so_with_the_margin() -> None:
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0, "fsdp": 1.0, "fsdp2": 0.8}))
    assert "[shown to be better than fsdp2; equivalent within 2 % to " in fastest


def test_few_runs_tell_nothing_apart_and_the_table_says_so() -> None:
    _, runs, fastest, _, _ = row_of(cells_table(SPEEDS, range(3)))
    assert runs == "3"
    assert "[not told apart yet from fsdp, fsdp2]" in fastest
    assert "shown" not in fastest


def test_a_strategy_alone_is_the_best_of_one() -> None:
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0}))
    assert fastest.endswith("images/s [nothing to compare to] [with 10.0 GiB, 0.04 J per image]")


@pytest.mark.parametrize("names", [3, 4])
def test_more_than_three_names_are_a_number(names: int) -> None:
    others = {f"s{place}": 0.9 for place in range(names)}
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0, **others}, range(3)))
    said = {3: "from s0, s1, s2]", 4: "from any of the 4 others]"}
    assert said[names] in fastest


def drifting(cells: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """All but three of its cells marked as suspect."""
    of_it = (cells["strategy"] == strategy) & (cells["seed"] > 2)
    return cells.assign(validity=cells["validity"].where(~of_it, "suspect"))


def test_what_suspect_runs_would_change_stands_beside_what_is_shown_without_them() -> None:
    cells = drifting(with_memory(cells_table(SPEEDS)), "fsdp")
    _, runs, fastest, memory, _ = row_of(cells)
    assert runs == "3 to 9"
    assert "[shown to be better than fsdp2; not told apart yet from fsdp]" in fastest
    assert "[with the suspect runs too: shown to be better than fsdp, fsdp2]" in fastest
    assert "not told apart yet from fsdp" in memory


def test_suspect_runs_that_change_nothing_are_said_to() -> None:
    cells = cells_table(SPEEDS)
    last = (cells["strategy"] == "fsdp") & (cells["seed"] == 8)
    cells = cells.assign(validity=cells["validity"].where(~last, "suspect"))
    _, _, fastest, _, _ = row_of(cells)
    assert "[with the suspect runs too: the same]" in fastest


def test_another_best_by_suspect_runs_is_named() -> None:
    cells = drifting(cells_table({"ddp": 1.0, "fsdp": 0.99}, sd=0.0001), "fsdp")
    lifted = (cells["validity"] == "suspect").map({True: 1.2, False: 1.0})
    cells = cells.assign(images_per_s=cells["images_per_s"] * lifted)
    _, _, fastest, _, _ = row_of(cells)
    assert fastest.startswith("ddp, ")
    assert "[with the suspect runs too: fsdp, " in fastest


def test_another_set_of_as_many_strategies_is_not_the_same() -> None:
    names = [f"{group}{place}" for group in "ab" for place in range(4)]
    cells = cells_table({"ddp": 1.0} | dict.fromkeys(names, 0.9))
    suspect = (cells["seed"] > 2) & cells["strategy"].str.startswith("a")
    cells = cells.assign(validity=cells["validity"].where(~suspect, "suspect"))
    (found,) = verdicts(cells, compare(cells, "ddp"), "ddp")
    plain = found.as_dict()
    # As if the suspect runs showed what is open without them, and left open what is shown.
    swap = {"worse": found.fastest.open, "open": found.fastest.worse}
    plain["with_suspects"]["fastest"] = plain["fastest"] | swap
    (row,) = decisions(config_of(), [plain]).rows
    assert "too: the same" not in row[2]
    assert "with the suspect runs too: shown to be better than 4 of the 8 others" in row[2]


def test_where_all_is_suspect_the_table_says_what_it_would_be() -> None:
    cells = with_memory(cells_table(SPEEDS)).assign(validity="suspect")
    _, runs, fastest, memory, energy = row_of(cells)
    assert runs == "0"
    assert fastest.startswith("no usable cell [with the suspect runs too: ddp, shown to be better")
    assert memory.startswith("no usable cell [with the suspect runs too: fsdp2, shown to be")
    assert energy.startswith("no usable cell")
