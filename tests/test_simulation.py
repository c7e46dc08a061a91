"""What the statistics promise, held against runs whose truth is known.

benchmarks/simulate_statistics.py does this at full size; here it is small, seeded, and can fail.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
SIMULATIONS = 200
SIZES = (4, 6, 9)
# What tier 1 promises where log-ratios are jointly symmetric, and tier 2 where noise is normal.
PROMISED = (
    "false difference, established",
    "false difference, likely",
    "false equivalence",
    "false regression",
    "false all-clear",
    "false fastest",
)


@cache
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "simulate_statistics", ROOT / "benchmarks/simulate_statistics.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def rates() -> pd.DataFrame:
    """The rates of the small simulation in families of seven comparisons."""
    found = simulation().simulate(SIMULATIONS, SIZES, unpaired=20)
    return found[found["comparisons"] == 7]


def within(rows: pd.DataFrame, level: float) -> pd.Series:
    """The rates less the level, less four standard errors: of fifty, one beyond has 0.002."""
    error = 4 * (level * (1 - level) / rows["simulations"]) ** 0.5
    return rows["rate"] - level - error


@pytest.mark.slow
def test_false_claims_are_at_most_one_in_twenty_where_that_is_promised() -> None:
    rows = rates()[rates()["holds"] & rates()["quantity"].isin(PROMISED)]
    assert set(rows["quantity"]) == set(PROMISED)
    assert within(rows, 0.05).max() <= 0, rows[within(rows, 0.05) > 0]


@pytest.mark.slow
def test_intervals_hold_all_truths_together_as_often_as_they_say() -> None:
    rows = rates()[rates()["holds"] & (rates()["quantity"] == "coverage, all intervals")]
    missed = rows.assign(rate=1 - rows["rate"])
    assert within(missed, 0.05).max() <= 0, rows


@pytest.mark.slow
def test_six_runs_show_a_slow_down_of_three_percent_and_nine_one_of_two() -> None:
    rows = rates()[rates()["paired"] & (rates()["scenario"] == "normal, 0.5 %")]
    power = rows[rows["quantity"] == "power, difference"].set_index(["difference_pct", "n"])["rate"]
    assert power[-3.0, 6] > 0.8
    assert power[-2.0, 9] > 0.9


@pytest.mark.slow
def test_a_strategy_that_drifts_by_itself_breaks_the_promise() -> None:
    """Blocks that are not independent are what no test of blocks can see."""
    rows = rates()[(rates()["scenario"] == "each strategy drifts") & (rates()["n"] == 9)]
    assert rows.set_index("quantity")["rate"]["false difference, established"] > 0.3


def test_the_page_of_the_statistics_rests_on_a_full_simulation() -> None:
    table = pd.read_csv(ROOT / "docs/statistics.csv")
    assert set(table["n"]) == {3, 4, 5, 6, 7, 8, 9, 12, 20}
    assert set(table["comparisons"]) == {1, 3, 7, 12}
    promised = table[table["holds"]]
    claims = promised[promised["quantity"].isin(PROMISED)]
    # From six runs on, only a family that lacks some makes a likely claim.
    rare = (claims["quantity"] == "false difference, likely") & (claims["n"] >= 6)
    assert claims[~rare]["simulations"].min() >= 900
    assert claims[rare]["simulations"].min() >= 200
    # Of 180 rates of 5 %, one beyond four standard errors has a chance of 0.006.
    assert within(claims, 0.05).max() <= 0, claims[within(claims, 0.05) > 0]
    text = (ROOT / "docs/statistics.md").read_text()
    at_nine = table[(table["n"] == 9) & (table["comparisons"] == 7) & table["paired"]]
    power = at_nine[
        (at_nine["quantity"] == "power, difference") & (at_nine["difference_pct"] == -1)
    ]
    shown = power.set_index("scenario")["rate"]["normal, 0.5 %"]
    assert f"{100 * shown:.0f} %" in text
