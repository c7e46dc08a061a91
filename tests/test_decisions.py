"""The table to choose a strategy by: what is best, what it costs, and how sure it is."""

from __future__ import annotations

import pandas as pd
import pytest

from result_tables import cells_table
from shardmark.report.decisions import decision_table
from shardmark.statistics.comparisons import compare
from shardmark.statistics.verdict import verdicts

GIB = 2**30
SPEEDS = {"ddp": 1.0, "fsdp": 0.9, "fsdp2": 0.8}
MEMORY = {"ddp": 12, "fsdp": 10, "fsdp2": 8}


def row_of(cells: pd.DataFrame) -> list[str]:
    found = verdicts(cells, compare(cells, "ddp"), "ddp")
    (row,) = decision_table(found, "cuda").rows
    return row


def with_memory(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.assign(memory_used_peak_bytes=cells["strategy"].map(MEMORY) * GIB)


def test_the_best_says_how_sure_by_how_much_and_at_what_cost() -> None:
    cells = with_memory(cells_table(SPEEDS, energy_per_image_j=None))
    _, runs, fastest, memory, energy = row_of(cells)
    assert runs == "9"
    assert fastest.startswith("DDP, 10,")
    assert "[shown to be better than FSDP1, FSDP2] [next: FSDP1, −1" in fastest
    assert fastest.endswith(" [with 12.0 GiB]")
    assert memory.startswith("FSDP2, 8.0 GiB [shown to be better than DDP, FSDP1]")
    assert "[next: FSDP1, +25.0 % against it] [at " in memory
    assert "[at 8,014 images/s (−20." in memory or "[at 8,014 images/s (−19." in memory
    assert energy == "not measured"


def test_a_best_of_many_is_better_than_their_number() -> None:
    others = {f"s{place}": 0.9 for place in range(4)}
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0, **others}))
    assert "[shown to be better than all 4 others]" in fastest


def test_equals_are_called_so_with_the_margin() -> None:
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0, "fsdp": 1.0, "fsdp2": 0.8}))
    assert "[better than FSDP2; equivalent within 2 % to " in fastest


def test_few_runs_tell_nothing_apart_and_the_table_says_so() -> None:
    _, runs, fastest, _, _ = row_of(cells_table(SPEEDS, range(2)))
    assert runs == "2"
    assert "[not told apart yet from FSDP1, FSDP2]" in fastest
    assert "shown" not in fastest
    _, _, fastest, _, _ = row_of(cells_table(SPEEDS, range(3)))
    assert "[likely better than FSDP1, FSDP2]" in fastest


def test_a_strategy_alone_is_the_best_of_one() -> None:
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0}))
    assert fastest.endswith("images/s [nothing to compare to] [with 10.0 GiB, 0.04 J per image]")


@pytest.mark.parametrize("names", [3, 4])
def test_more_than_three_names_are_a_number(names: int) -> None:
    others = {f"s{place}": 0.9 for place in range(names)}
    _, _, fastest, _, _ = row_of(cells_table({"ddp": 1.0, **others}, range(2)))
    said = {3: "from s0, s1, s2]", 4: "from any of the 4 others]"}
    assert said[names] in fastest


def test_without_a_usable_cell_the_table_says_so() -> None:
    cells = cells_table(SPEEDS, excluded="shared GPU")
    assert row_of(cells)[1:] == ["0", *["no usable cell"] * 3]
