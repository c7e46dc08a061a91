"""What the statistics promise, held against runs whose truth is known.

benchmarks/simulate_statistics.py does this at full size; here it is small, seeded, and can fail.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from shardmark.statistics.family import holm
from shardmark.statistics.rank_sum import RankSum
from shardmark.statistics.shift import ShiftTest, interval, two_sided_p
from shardmark.statistics.signed_rank import SignedRank

ROOT = Path(__file__).resolve().parents[1]
SIMULATIONS = 4000
SIZES = (4, 6, 9, 12)


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
    """All rates of the small simulation, by analysis, scenario and quantity, one column a size."""
    found = simulation().simulate(SIMULATIONS, SIZES)
    return found.set_index(["promised", "analysis", "scenario", "quantity", "difference_pct", "n"])


def rates_of(quantity: str, *, promised: bool = True) -> pd.Series:
    table = rates()
    return table[
        (table.index.get_level_values("quantity") == quantity)
        & (table.index.get_level_values("promised") == promised)
    ]["rate"]


def error(rate: float, simulations: int = SIMULATIONS) -> float:
    """Four standard errors: of fifty rates, one beyond it has a chance of 0.002."""
    return 4 * math.sqrt(rate * (1 - rate) / simulations)


@pytest.mark.parametrize("n", [3, 6, 9, 13])
def test_what_is_simulated_is_what_the_library_computes(n: int) -> None:
    simulated = simulation()
    generator = np.random.default_rng(n)
    first, second = generator.normal(0.3, 1, (2, 25, n))
    pairs = (
        (
            simulated.signed_rank_tails(first - second),
            simulated.signed_rank_interval(first - second),
            [SignedRank(one - other) for one, other in zip(first, second, strict=True)],
        ),
        (
            simulated.rank_sum_tails(first, second),
            simulated.rank_sum_interval(first, second),
            [RankSum(one, other) for one, other in zip(first, second, strict=True)],
        ),
    )
    tests: list[ShiftTest]
    for (less, greater), (low, high), tests in pairs:
        p = np.minimum(1, 2 * np.minimum(less, greater))
        assert p == pytest.approx([two_sided_p(test) for test in tests])
        ends = np.array([interval(test) for test in tests])
        assert low == pytest.approx(ends[:, 0], abs=1e-9)
        assert high == pytest.approx(ends[:, 1], abs=1e-9)
    families = generator.random((20, 7))
    assert simulated.holm(families) == pytest.approx(np.array([holm(p) for p in families]))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = rates_of("coverage")
    assert found.min() >= 0.95 - error(0.95), found[found < 0.95]
    # Exact, and no wider than they must be: nearly 95 % once n allows it.
    assert found.xs(12, level="n").max() <= 0.96 + error(0.96)


@pytest.mark.parametrize(
    "quantity",
    [
        "false difference, Holm",
        "false equivalence, one comparison",
        "false equivalence, Holm",
        "false fastest, all equal",
        "false fastest, two equal",
    ],
)
def test_false_claims_are_at_most_one_in_twenty(quantity: str) -> None:
    found = rates_of(quantity)
    assert found.max() <= 0.05 + error(0.05), found[found > 0.05]


def test_without_holm_the_same_simulation_breaks_the_promise() -> None:
    found = rates_of("false difference, uncorrected").xs(9, level="n")
    assert found.min() > 0.15


def test_devices_of_their_own_make_differences_of_nothing_which_is_why_they_are_refused() -> None:
    found = rates_of("false difference, Holm", promised=False)
    refused = found.xs("node of a strategy (refused)", level="scenario")
    assert refused.xs(9, level="n").item() > 0.9


def test_what_the_page_of_the_statistics_says_is_what_was_simulated() -> None:
    table = pd.read_csv(ROOT / "docs/statistics.csv")
    assert set(table["simulations"]) == {10_000}
    assert set(table["n"]) == set(range(3, 21))
    promised = table[table["promised"]].set_index("quantity")["rate"]
    assert promised.loc["coverage"].min() >= 0.95 - error(0.95, 10_000)
    for quantity in promised.index.unique():
        if quantity.startswith("false") and "uncorrected" not in quantity:
            assert promised.loc[quantity].max() <= 0.05 + error(0.05, 10_000), quantity
    few = table[(table["analysis"] == "paired") & (table["n"] < 9)]
    found = few[few["quantity"] == "power, difference"]
    assert (found["rate"] == 0).all()
