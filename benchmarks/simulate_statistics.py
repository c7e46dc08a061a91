"""What the statistics do when the truth is known: false claims, coverage, power, by simulation.

    python benchmarks/simulate_statistics.py         docs/statistics.csv, docs/statistics-*.svg

A synthetic run's log-throughput is a truth, plus noise of its own, plus what its block or its
devices do to it. The families that the library compares are made of such runs and judged by the
library itself. It takes about five minutes on one core.
"""
# ruff: noqa: E402 - the library stands beside the workflow's scripts and is not installed.

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shardmark.statistics import sign_flips, stratified
from shardmark.statistics.family import (
    ALPHA,
    FEWEST_ESTABLISHED,
    Family,
    PairedFamily,
    Shift,
    UnpairedFamily,
    agreeing_intervals,
    equivalence_p,
)

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Array]

# Of other claims than that of a difference, half as many.
SIMULATIONS = 2000
# Permutations take longer.
UNPAIRED_SIMULATIONS = 500
SIZES = (3, 4, 5, 6, 7, 8, 9, 12, 20)
# Families of other sizes than that of eight strategies.
OTHER_FAMILIES = (1, 3, 12)
OTHER_SIZES = (3, 6, 9, 12)
# Scenarios whose power is not of interest.
ERROR_SIZES = (3, 5, 6, 9, 12, 20)
FAMILY = 7
SEED = 20260101
MARGIN = 0.02
BOUND = math.log1p(MARGIN)
# From run to run on one device.
RUN_SD = 0.005
# The spreads of the strategies of the shipped example, from the steadiest to the noisiest.
SHIPPED = (0.003, 0.21)
# Where a family needs more flips or permutations than this, the simulation draws so many; the
# library draws ten times more.
DRAWN = 2000
# From device to device: 8 % on average (Sinha et al. 2022).
NODE_SD = 0.08
NODES = 4
SLOW_DOWNS = (0.01, 0.02, 0.03)


def normal(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """Symmetric noise, alike for all strategies."""
    return generator.normal(0, RUN_SD, (n, strategies))


def as_shipped(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """Normal noise with the spreads of the shipped example, from 0.3 to 21 %."""
    spreads = np.geomspace(*SHIPPED, strategies) if strategies > 2 else np.array(SHIPPED)
    return generator.normal(0, 1, (n, strategies)) * spreads


def with_outliers(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """One run in nine is 20 % slower."""
    slow = generator.random((n, strategies)) < 1 / 9
    return normal(generator, n, strategies) - 0.2 * slow


def drifting_machine(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """The machine drifts from block to block, for all strategies alike."""
    return normal(generator, n, strategies) + _drift(generator, n, 1)


def drifting_alone(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """Every strategy drifts from block to block in its own way."""
    return normal(generator, n, strategies) / 2 + _drift(generator, n, strategies) / 4


def _drift(generator: np.random.Generator, n: int, strategies: int, phi: float = 0.8) -> Array:
    """AR(1) of a standard deviation of 2 %."""
    steps = generator.normal(0, 0.02, (n, strategies))
    steps[1:] *= math.sqrt(1 - phi**2)
    for block in range(1, n):
        steps[block] += phi * steps[block - 1]
    return steps


def skewed(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """Some runs are much slower and none much faster: exponential noise."""
    return -RUN_SD * (generator.exponential(1, (n, strategies)) - 1)


def skewed_against_normal(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """Skewed noise of every strategy but the baseline, whose noise is symmetric."""
    noise = skewed(generator, n, strategies)
    noise[:, 0] = normal(generator, n, 1)[:, 0]
    return noise


def with_gaps(generator: np.random.Generator, n: int, strategies: int) -> Array:
    """One run in nine is missing."""
    noise = as_shipped(generator, n, strategies)
    noise[generator.random((n, strategies)) < 1 / 9] = np.nan
    return noise


@dataclass(frozen=True)
class Scenario:
    """A way in which runs vary.

    Attributes:
        name: in tables and figures.
        draw: noise of shape (blocks, strategies), the baseline first.
        holds: whether the guarantee of tier 1 holds: log-ratios are jointly symmetric.
        paired: whether all strategies of a block run on the same devices; else each run falls on
            one of a few nodes by chance.
        power: whether to simulate what is found, too.
    """

    name: str
    draw: Draw
    holds: bool
    paired: bool = True
    power: bool = False


SCENARIOS = (
    Scenario("normal, 0.5 %", normal, holds=True, power=True),
    Scenario("spreads 0.3 to 21 %", as_shipped, holds=True, power=True),
    Scenario("one run in nine missing", with_gaps, holds=True),
    Scenario("machine drifts", drifting_machine, holds=True),
    Scenario("one run in nine 20 % slower", with_outliers, holds=False),
    Scenario("skewed", skewed, holds=False),
    Scenario("skewed against normal", skewed_against_normal, holds=False),
    Scenario("each strategy drifts", drifting_alone, holds=False),
    Scenario("normal, 0.5 %", normal, holds=False, paired=False, power=True),
    Scenario("spreads 0.3 to 21 %", as_shipped, holds=False, paired=False),
    Scenario("one run in nine 20 % slower", with_outliers, holds=False, paired=False),
)


@dataclass(frozen=True)
class Experiment:
    """Synthetic families of one scenario and size.

    Attributes:
        scenario: how runs vary.
        comparisons: in a family.
        n: runs of each strategy.
    """

    scenario: Scenario
    comparisons: int
    n: int
    generator: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        key = [SEED, self.comparisons, self.n, self.scenario.paired, *self.scenario.name.encode()]
        object.__setattr__(self, "generator", np.random.default_rng(key))

    def events(self, *, claims: bool) -> Iterator[tuple[str, float, bool]]:
        """What happens in one family: the quantity, the true difference in %, whether it did.

        Args:
            claims: whether to look at more than differences of nothing and coverage.
        """
        noise = self.scenario.draw(self.generator, self.n, self.comparisons + 1)
        nodes = self.generator.integers(NODES, size=noise.shape)
        if not self.scenario.paired:
            noise = noise + self.generator.normal(0, NODE_SD, NODES)[nodes]

        def family(shifts: float | Array, baseline: int = 0) -> Family | None:
            values = noise + np.insert(np.broadcast_to(shifts, self.comparisons), 0, 0.0)
            return self._family(values, nodes, baseline)

        equal = family(0.0)
        if equal is None:
            return
        p = equal.two_sided_p()
        # Some comparisons of a family may have fewer runs than the others.
        for tier, own in (("established", equal.established), ("likely", ~equal.established)):
            if own.any():
                yield f"false difference, {tier}", 0.0, bool((p[own] <= ALPHA).any())
        # Away from no difference, where an interval holds the truth exactly if p is above 5 %.
        truth = math.log(0.97)
        if slower := family(truth):
            low, high = agreeing_intervals(
                slower.estimates, slower.half_widths(), slower.two_sided_p()
            )
            covered = ~((low > truth) | (high < truth))
            yield "coverage, all intervals", -3.0, bool(covered.all())
            yield "coverage, one interval", -3.0, bool(covered[0])
        if not claims:
            return
        shifts = np.where(np.arange(self.comparisons) % 2, BOUND, -BOUND)
        if edge := family(shifts):
            found = equivalence_p(edge, MARGIN) <= ALPHA
            yield "false equivalence", 100 * MARGIN, bool(found.any())
        if slower := family(-BOUND):
            ones = np.ones(len(slower.estimates))
            below = slower.one_sided_p(Shift(-ones, -BOUND * ones), corrected=True)
            above = slower.one_sided_p(Shift(ones, -BOUND * ones), corrected=False)
            yield "false regression", -100 * MARGIN, bool((below <= ALPHA).any())
            yield "false all-clear", -100 * MARGIN, bool((above <= ALPHA).all())
        yield "false fastest", 0.0, self._fastest_is_claimed(noise, nodes)
        if self.scenario.power:
            yield "power, equivalence", 0.0, bool(equivalence_p(equal, MARGIN)[0] <= ALPHA)
            for slow_down in SLOW_DOWNS:
                shifts = np.zeros(self.comparisons)
                shifts[0] = math.log1p(-slow_down)
                if planted := family(shifts):
                    shown = planted.two_sided_p()[0] <= ALPHA and planted.estimates[0] < 0
                    yield "power, difference", -100 * slow_down, bool(shown)

    def _fastest_is_claimed(self, noise: Array, nodes: npt.NDArray[np.int_]) -> bool:
        """Whether one of two equally fast strategies is called the fastest; the rest is slower."""
        values = noise.copy()
        values[:, 2:] += math.log(0.5)
        if np.isnan(values[:, :2]).all(axis=0).any():
            return False
        best = int(np.nanmean(values[:, :2], axis=0).argmax())
        family = self._family(values, nodes, best)
        if family is None or len(family.estimates) < self.comparisons:
            return False
        return bool(((family.two_sided_p() <= ALPHA) & (family.estimates < 0)).all())

    def _family(
        self, values: Array, nodes: npt.NDArray[np.int_], baseline: int = 0
    ) -> Family | None:
        others = [place for place in range(values.shape[1]) if place != baseline]
        if self.scenario.paired:
            differences = values[:, others] - values[:, [baseline]]
            known = ~np.isnan(differences).all(axis=0)
            return PairedFamily(differences[:, known], corrected=True) if known.any() else None

        def by_node(place: int) -> dict[str, list[float]]:
            found: dict[str, list[float]] = {}
            for node, value in zip(nodes[:, place], values[:, place], strict=True):
                found.setdefault(str(node), []).append(float(value))
            return found

        reference = by_node(baseline)
        sides = [side for side in map(by_node, others) if side.keys() & reference.keys()]
        items = [stratified.Stratified(side, reference) for side in sides]
        return UnpairedFamily(items, corrected=True) if items else None


def plan(sizes: Iterable[int]) -> Iterator[tuple[Experiment, bool]]:
    """All experiments, and whether to look at more than differences of nothing and coverage."""
    for scenario in SCENARIOS:
        for n in sizes:
            if n in (SIZES if scenario.power else ERROR_SIZES) and (
                scenario.paired or n in OTHER_SIZES
            ):
                yield Experiment(scenario, FAMILY, n), True
            if scenario.power and n in OTHER_SIZES:
                for comparisons in OTHER_FAMILIES:
                    yield Experiment(scenario, comparisons, n), False


def simulate(
    simulations: int = SIMULATIONS,
    sizes: Iterable[int] = SIZES,
    unpaired: int = UNPAIRED_SIMULATIONS,
) -> pd.DataFrame:
    """All rates.

    Returns:
        scenario, paired, holds, comparisons, n, quantity, difference_pct, rate, standard_error,
        simulations.
    """
    sign_flips.flips.cache_clear()
    stratified.labellings.cache_clear()
    before = sign_flips.DRAWN, sign_flips.MOST_EXACT, stratified.MOST
    sign_flips.DRAWN, sign_flips.MOST_EXACT, stratified.MOST = DRAWN, 12, DRAWN
    try:
        return pd.DataFrame(_rates(simulations, sizes, unpaired))
    finally:
        sign_flips.DRAWN, sign_flips.MOST_EXACT, stratified.MOST = before
        sign_flips.flips.cache_clear()
        stratified.labellings.cache_clear()


def _rates(simulations: int, sizes: Iterable[int], unpaired: int) -> Iterator[dict[str, object]]:
    for experiment, claims in plan(sizes):
        scenario = experiment.scenario
        number = simulations if scenario.paired else unpaired
        counts: Counter[tuple[str, float]] = Counter()
        happened: Counter[tuple[str, float]] = Counter()
        for place in range(number):
            # Other claims than that of a difference take longer: every second family.
            for quantity, difference, event in experiment.events(claims=claims and place % 2 == 0):
                counts[quantity, difference] += 1
                happened[quantity, difference] += event
        for (quantity, difference), count in counts.items():
            # So few families had a comparison of that tier that their rate says nothing.
            if count < number / 10:
                continue
            rate = happened[quantity, difference] / count
            yield {
                "scenario": scenario.name,
                "paired": scenario.paired,
                "holds": scenario.holds,
                "comparisons": experiment.comparisons,
                "n": experiment.n,
                "quantity": quantity,
                "difference_pct": difference,
                "rate": rate,
                "standard_error": math.sqrt(rate * (1 - rate) / count),
                "simulations": count,
            }


# Okabe & Ito's colours; the dashes tell them apart without colour.
STYLES = {
    "normal, 0.5 %": ("#0072B2", "-"),
    "spreads 0.3 to 21 %": ("#000000", "-"),
    "one run in nine missing": ("#009E73", "--"),
    "machine drifts": ("#56B4E9", "--"),
    "one run in nine 20 % slower": ("#D55E00", ":"),
    "skewed": ("#E69F00", ":"),
    "skewed against normal": ("#CC79A7", "-."),
    "each strategy drifts": ("#555555", "-."),
}
POWER_STYLES = {
    ("power, difference", -1.0): ("#56B4E9", ":", "1 % slower, shown"),
    ("power, difference", -2.0): ("#0072B2", "--", "2 % slower, shown"),
    ("power, difference", -3.0): ("#000000", "-", "3 % slower, shown"),
    ("power, equivalence", 0.0): ("#009E73", "-.", "equal, called equivalent"),
}


def tidy(axes: Axes, title: str, ylabel: str) -> None:
    """The frame of every panel."""
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("runs of each strategy, n", fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xticks(range(4, 21, 2))
    axes.axvline(FEWEST_ESTABLISHED - 0.5, color="#aaaaaa", lw=0.8, ls=":")
    axes.spines[["top", "right"]].set_visible(False)


def draw_by_scenario(axes: Axes, rates: pd.DataFrame) -> None:
    """One line per scenario."""
    for name, rows in rates.groupby("scenario", sort=False):
        color, dashes = STYLES[str(name)]
        axes.plot(rows["n"], 100 * rows["rate"], dashes, color=color, lw=1.4, label=name)


def limit(axes: Axes, level: float, rates: pd.DataFrame, *, below: bool) -> None:
    """What is promised, with the error of the simulation beyond it."""
    error = 2 * math.sqrt(level * (1 - level) / rates["simulations"].min())
    ends = (level - error, level) if below else (level, level + error)
    axes.axhspan(100 * ends[0], 100 * ends[1], color="#e0e0e0", lw=0)
    axes.axhline(100 * level, color="#333333", lw=0.8)


def chosen(rates: pd.DataFrame, quantity: str, *, paired: bool) -> pd.DataFrame:
    """The rates of a quantity in families of eight strategies.

    A quantity of both tiers is that of the tier that the number of runs allows.
    """
    tier = np.where(rates["n"] >= FEWEST_ESTABLISHED, "established", "likely")
    of_it = (rates["quantity"] == quantity) | (
        rates["quantity"] == np.char.add(f"{quantity}, ", tier)
    )
    return rates[of_it & (rates["comparisons"] == FAMILY) & (rates["paired"] == paired)]


def draw_coverage(rates: pd.DataFrame, path: Path) -> None:
    """Coverage of the 95 % intervals."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, paired in zip(both, (True, False), strict=True):
        rows = chosen(rates, "coverage, all intervals", paired=paired)
        limit(axes, 0.95, rows, below=True)
        draw_by_scenario(axes, rows)
        axes.set_ylim(70, 100.5)
        tidy(axes, "paired" if paired else "unpaired, four nodes", "all seven hold the truth, %")
    save_with_legend(figure, both[0], path)


def draw_errors(rates: pd.DataFrame, path: Path) -> None:
    """False claims, in families of seven comparisons."""
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    panels = [
        ("false difference", True, "Seven equal to the baseline", "any called different, %"),
        ("false difference", False, "The same, unpaired", "any called different, %"),
        ("false equivalence", True, "Seven at the margin", "any called equivalent, %"),
        ("false regression", True, "Seven 2 % slower than before", "any called a regression, %"),
    ]
    grid = figure.subplots(2, 2, sharey=True).ravel()
    for axes, (quantity, paired, title, ylabel) in zip(grid, panels, strict=True):
        rows = chosen(rates, quantity, paired=paired)
        limit(axes, ALPHA, rows, below=False)
        draw_by_scenario(axes, rows)
        tidy(axes, title, ylabel)
    grid[0].set_ylim(0, 30)
    save_with_legend(figure, grid[0], path)


def draw_power(rates: pd.DataFrame, path: Path) -> None:
    """What is found, among seven comparisons."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, paired in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        for (quantity, difference), (color, dashes, label) in POWER_STYLES.items():
            rows = chosen(rates, quantity, paired=paired)
            rows = rows[
                (rows["scenario"] == "normal, 0.5 %") & (rows["difference_pct"] == difference)
            ]
            axes.plot(rows["n"], 100 * rows["rate"], dashes, color=color, lw=1.4, label=label)
        axes.set_ylim(-2, 102)
        where = "paired" if paired else "unpaired, four nodes"
        tidy(axes, f"{where}, {100 * RUN_SD:g} % from run to run", "of the simulations, %")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    save(figure, path)


def save_with_legend(figure: Figure, axes: Axes, path: Path) -> None:
    """As ``save``, with a legend of what is in ``axes`` below the figure."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        fontsize=7,
        frameon=False,
        loc="outside lower center",
        ncols=4,
    )
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As SVG without a date, so that the same rates give the same file."""
    with rc_context({"svg.hashsalt": "shardmark", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Simulate, and write the table and its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder to write to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    rates = simulate()
    rates.round({"rate": 6, "standard_error": 6}).to_csv(output / "statistics.csv", index=False)
    draw_coverage(rates, output / "statistics-coverage.svg")
    draw_errors(rates, output / "statistics-errors.svg")
    draw_power(rates, output / "statistics-power.svg")


if __name__ == "__main__":
    main()
