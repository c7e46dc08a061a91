"""What the statistics do when the truth is known: coverage, false claims, power, by simulation.

    python benchmarks/simulate_statistics.py         docs/statistics.csv, docs/statistics-*.svg

A synthetic run's log-throughput is a truth, plus noise of its own, plus what its devices do to it.
Eight strategies of n runs each are compared as the project does it: seven to a baseline, under
Holm. The exact tests are the library's null distributions, applied to thousands of comparisons at
once; tests/test_simulation.py holds them against the library one by one.
"""
# ruff: noqa: E402 - the library stands beside the workflow's scripts and is not installed.

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shardmark.statistics import rank_sum, signed_rank

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int, int]], Array]

SIMULATIONS = 10_000
SIZES = range(3, 21)
SEED = 20260101
STRATEGIES = 8
ALPHA = 0.05
BOUND = math.log1p(0.02)
# From run to run on one device; and from device to device, 8 % on average (Sinha et al. 2022).
RUN_SD = 0.005
NODE_SD = 0.08
NODES = 4
SLOW_DOWNS = (0.01, 0.02, 0.03)


def normal(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Symmetric noise."""
    return generator.normal(0, RUN_SD, shape)


def skewed(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Now and then a run is much slower, and never much faster."""
    return -RUN_SD * (generator.exponential(1, shape) - 1)


def unequally_skewed(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Skewed noise of every strategy but the baseline, whose noise is symmetric."""
    noise = skewed(generator, shape)
    noise[:, 0] = normal(generator, shape)[:, 0]
    return noise


def node_of_a_seed(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """All strategies run a seed on the same node, another for each seed."""
    return normal(generator, shape) + generator.normal(0, NODE_SD, (shape[0], 1, shape[2]))


def node_by_chance(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Every run falls on one of a few nodes as chance has it."""
    nodes = generator.normal(0, NODE_SD, (shape[0], NODES))
    chosen = generator.integers(NODES, size=(shape[0], shape[1] * shape[2]))
    return normal(generator, shape) + np.take_along_axis(nodes, chosen, 1).reshape(shape)


def node_of_a_strategy(generator: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Every strategy has a node of its own: what the project refuses to compare."""
    return normal(generator, shape) + generator.normal(0, NODE_SD, (shape[0], shape[1], 1))


@dataclass(frozen=True)
class Scenario:
    """A way in which runs vary, and the analysis that is right for it.

    Attributes:
        name: in tables and figures.
        analysis: paired or unpaired.
        draw: noise of shape (simulations, strategies, runs).
        centre: what the analysis estimates where there is no difference; not zero where the noise
            of the two sides has different shapes.
        promised: whether the error rates are guaranteed.
    """

    name: str
    analysis: str
    draw: Draw
    centre: float = 0.0
    promised: bool = True


def centre_of(draw: Draw, paired: bool) -> float:
    """The pseudo-median of the differences, or the median of all differences between the sides."""
    noise = draw(np.random.default_rng(SEED), (2_000_000, 2, 2))
    differences = noise[:, 1] - noise[:, 0]
    return float(np.median(differences.mean(axis=1) if paired else differences))


def scenarios() -> list[Scenario]:
    """All scenarios."""
    return [
        Scenario("normal", "paired", normal),
        Scenario("skewed", "paired", skewed),
        Scenario("node of a seed", "paired", node_of_a_seed),
        Scenario(
            "skewed against normal",
            "paired",
            unequally_skewed,
            centre_of(unequally_skewed, True),
            promised=False,
        ),
        Scenario("normal", "unpaired", normal),
        Scenario("skewed", "unpaired", skewed),
        Scenario("nodes by chance", "unpaired", node_by_chance),
        Scenario(
            "skewed against normal",
            "unpaired",
            unequally_skewed,
            centre_of(unequally_skewed, False),
            promised=False,
        ),
        Scenario("node of a strategy (refused)", "unpaired", node_of_a_strategy, promised=False),
    ]


def signed_rank_tails(differences: Array, shift: float = 0.0) -> tuple[Array, Array]:
    """One-sided p-values of many paired tests at once; no ties.

    Args:
        differences: shape (..., n).
        shift: under the hypothesis.

    Returns:
        P(W+ <= seen), the p of "less", and P(W+ >= seen), of "greater", each of shape (...).
    """
    n = differences.shape[-1]
    moved = differences - shift
    ranks = np.abs(moved).argsort(axis=-1).argsort(axis=-1) + 1
    seen = np.where(moved > 0, ranks, 0).sum(axis=-1)
    # The library's ranks are doubled.
    chance = signed_rank.null_distribution(tuple(range(2, 2 * n + 1, 2)))[::2]
    return _tails(chance, seen)


def rank_sum_tails(first: Array, second: Array, shift: float = 0.0) -> tuple[Array, Array]:
    """One-sided p-values of many unpaired tests at once; no ties.

    Args:
        first: shape (..., n).
        second: shape (..., m), broadcast against it.
        shift: of the first side under the hypothesis.
    """
    second = np.broadcast_to(second, (*first.shape[:-1], second.shape[-1]))
    pooled = np.concatenate([first - shift, second], axis=-1)
    ranks = pooled.argsort(axis=-1).argsort(axis=-1) + 1
    n = first.shape[-1]
    seen = ranks[..., :n].sum(axis=-1)
    chance = rank_sum.null_distribution(tuple(range(2, 2 * pooled.shape[-1] + 1, 2)), n)[::2]
    return _tails(chance, seen)


def _tails(chance: Array, seen: npt.NDArray[np.int_]) -> tuple[Array, Array]:
    at_most = np.cumsum(chance)
    at_least = np.cumsum(chance[::-1])[::-1]
    return at_most[seen], at_least[seen]


def signed_rank_interval(differences: Array, level: float = 0.95) -> tuple[Array, Array]:
    """The ends of many paired intervals: order statistics of the Walsh averages."""
    walsh = np.sort(signed_rank.walsh_averages(differences), axis=-1)
    chance = signed_rank.null_distribution(tuple(range(2, 2 * differences.shape[-1] + 1, 2)))[::2]
    return _order_statistics(walsh, chance, level)


def rank_sum_interval(first: Array, second: Array, level: float = 0.95) -> tuple[Array, Array]:
    """The ends of many unpaired intervals: order statistics of all differences."""
    n, m = first.shape[-1], second.shape[-1]
    differences = (first[..., :, None] - second[..., None, :]).reshape(*first.shape[:-1], n * m)
    chance = rank_sum.null_distribution(tuple(range(2, 2 * (n + m) + 1, 2)), n)[::2]
    return _order_statistics(np.sort(differences, axis=-1), chance[n * (n + 1) // 2 :], level)


def _order_statistics(ordered: Array, chance: Array, level: float) -> tuple[Array, Array]:
    # The first count of values below the shift that is not rejected.
    first = int(np.argmax(np.cumsum(chance) > (1 - level) / 2))
    if first == 0:
        everything = np.full(ordered.shape[:-1], np.inf)
        return -everything, everything
    return ordered[..., first - 1], ordered[..., -first]


def holm(p: Array) -> Array:
    """Holm's adjusted p-values of many families at once, over the last axis."""
    order = p.argsort(axis=-1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(steps, axis=-1))
    result = np.empty_like(p)
    np.put_along_axis(result, order, adjusted, -1)
    return result


class Experiment:
    """Synthetic comparisons of one scenario and size.

    Args:
        scenario: how runs vary.
        n: runs of each strategy.
        simulations: synthetic comparisons.
        seed: of the noise.
    """

    def __init__(self, scenario: Scenario, n: int, simulations: int, seed: int = SEED) -> None:
        self.scenario = scenario
        self.n = n
        generator = np.random.default_rng([seed, n, *scenario.name.encode()])
        self.noise = scenario.draw(generator, (simulations, STRATEGIES, n))
        self.noise[:, 1:] -= scenario.centre

    def tails(self, values: Array, to: int = 0, shift: float = 0.0) -> tuple[Array, Array]:
        """The p of "less" and of "greater" of every strategy but ``to``, compared to it."""
        others = np.delete(values, to, axis=1)
        if self.scenario.analysis == "paired":
            return signed_rank_tails(others - values[:, [to]], shift)
        return rank_sum_tails(others, values[:, [to]], shift)

    def two_sided(self, values: Array, to: int = 0) -> Array:
        """Two-sided p-values, shape (simulations, strategies - 1)."""
        return np.minimum(1.0, 2 * np.minimum(*self.tails(values, to)))

    def equivalence(self, values: Array) -> Array:
        """The p of equivalence to the baseline, shape (simulations, strategies - 1)."""
        return np.maximum(self.tails(values, shift=-BOUND)[1], self.tails(values, shift=BOUND)[0])

    def shifted(self, shift: float, strategies: slice = slice(1, None)) -> Array:
        """The runs where some strategies differ from the baseline by ``shift``."""
        values = self.noise.copy()
        values[:, strategies] += shift
        return values

    def covered(self, shift: float = math.log(0.97)) -> npt.NDArray[np.bool_]:
        """Whether each 95 % interval of the first comparison holds the truth."""
        values = self.shifted(shift)
        if self.scenario.analysis == "paired":
            low, high = signed_rank_interval(values[:, 1] - values[:, 0])
        else:
            low, high = rank_sum_interval(values[:, 1], values[:, 0])
        return (low <= shift) & (shift <= high)

    def fastest_claimed(self, values: Array) -> npt.NDArray[np.bool_]:
        """Whether the strategy of the best median is shown to be faster than every other."""
        best = np.median(values, axis=-1).argmax(axis=1)
        claimed = np.zeros(len(values), dtype=bool)
        for strategy in range(STRATEGIES):
            mine = best == strategy
            if mine.any():
                less, greater = self.tails(values[mine], strategy)
                p = holm(np.minimum(1.0, 2 * np.minimum(less, greater)))
                claimed[mine] = ((p <= ALPHA) & (less < greater)).all(axis=1)
        return claimed

    def rates(self) -> Iterator[tuple[str, float, npt.NDArray[np.bool_]]]:
        """Each quantity: its name, the true difference in %, and whether each simulation had it."""
        yield "coverage", -3.0, self.covered()
        p = self.two_sided(self.noise)
        yield "false difference, Holm", 0.0, (holm(p) <= ALPHA).any(axis=1)
        yield "false difference, uncorrected", 0.0, (p <= ALPHA).any(axis=1)
        edge = self.equivalence(self.shifted(BOUND))
        yield "false equivalence, one comparison", 2.0, edge[:, 0] <= ALPHA
        yield "false equivalence, Holm", 2.0, (holm(edge) <= ALPHA).any(axis=1)
        yield "false fastest, all equal", 0.0, self.fastest_claimed(self.noise)
        tied = self.shifted(math.log(0.9), slice(2, None))
        yield "false fastest, two equal", 0.0, self.fastest_claimed(tied)
        for slow_down in SLOW_DOWNS:
            found = holm(self.two_sided(self.shifted(math.log1p(-slow_down), slice(1, 2))))
            yield "power, difference", -100 * slow_down, found[:, 0] <= ALPHA
        equal = holm(self.equivalence(self.noise))
        yield "power, equivalence", 0.0, equal[:, 0] <= ALPHA


def simulate(simulations: int = SIMULATIONS, sizes: Iterable[int] = SIZES) -> pd.DataFrame:
    """All rates.

    Returns:
        scenario, analysis, promised, n, quantity, difference_pct, rate, standard_error,
        simulations.
    """
    rows = []
    for scenario in scenarios():
        for n in sizes:
            for quantity, difference, events in Experiment(scenario, n, simulations).rates():
                rate = float(events.mean())
                rows.append(
                    {
                        "scenario": scenario.name,
                        "analysis": scenario.analysis,
                        "promised": scenario.promised,
                        "n": n,
                        "quantity": quantity,
                        "difference_pct": difference,
                        "rate": rate,
                        "standard_error": math.sqrt(rate * (1 - rate) / simulations),
                        "simulations": simulations,
                    }
                )
    return pd.DataFrame(rows)


# Okabe & Ito's colours; the dashes tell them apart without colour.
STYLES = {
    "normal": ("#0072B2", "-"),
    "skewed": ("#D55E00", "--"),
    "node of a seed": ("#009E73", ":"),
    "nodes by chance": ("#009E73", ":"),
    "skewed against normal": ("#555555", "-."),
}
POWER_STYLES = {
    ("power, difference", -1.0): ("#56B4E9", ":", "1 % slower, found"),
    ("power, difference", -2.0): ("#0072B2", "--", "2 % slower, found"),
    ("power, difference", -3.0): ("#000000", "-", "3 % slower, found"),
    ("power, equivalence", 0.0): ("#009E73", "-.", "equal, called equivalent"),
}


def tidy(axes: Axes, title: str, ylabel: str) -> None:
    """The frame of every panel."""
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("runs of each strategy, n", fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xticks(range(3, 21, 3))
    axes.spines[["top", "right"]].set_visible(False)


def draw_by_scenario(axes: Axes, rates: pd.DataFrame, legend: bool) -> None:
    """One line a scenario."""
    for name, rows in rates.groupby("scenario", sort=False):
        if str(name) not in STYLES:
            continue
        color, dashes = STYLES[str(name)]
        axes.plot(rows["n"], 100 * rows["rate"], dashes, color=color, lw=1.4, label=name)
    if legend:
        axes.legend(fontsize=7, frameon=False)


def limit(axes: Axes, level: float, simulations: int, below: bool) -> None:
    """What was promised, with the error of the simulation beyond it."""
    error = 2 * math.sqrt(level * (1 - level) / simulations)
    ends = (level - error, level) if below else (level, level + error)
    axes.axhspan(100 * ends[0], 100 * ends[1], color="#e0e0e0", lw=0)
    axes.axhline(100 * level, color="#333333", lw=0.8)


def draw_coverage(rates: pd.DataFrame, path: Path) -> None:
    """Coverage of the 95 % intervals."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, analysis in zip(
        figure.subplots(1, 2, sharey=True), ("paired", "unpaired"), strict=True
    ):
        chosen = rates[(rates["quantity"] == "coverage") & (rates["analysis"] == analysis)]
        limit(axes, 0.95, int(rates["simulations"].iloc[0]), below=True)
        draw_by_scenario(axes, chosen, legend=True)
        axes.set_ylim(93, 100.2)
        tidy(axes, f"95 % intervals, {analysis}", "hold the true ratio, %")
    save(figure, path)


def draw_errors(rates: pd.DataFrame, path: Path) -> None:
    """False claims, of a family of seven comparisons."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    panels = [
        ("false difference, Holm", "Seven equal to the baseline", "any called different, %"),
        ("false equivalence, Holm", "Seven at the margin, 2 % off", "any called equivalent, %"),
        ("false fastest, all equal", "Eight equal strategies", "one called the fastest, %"),
        ("false fastest, two equal", "Two equally fast, six slower", "one called the fastest, %"),
    ]
    grid = figure.subplots(2, 2, sharey=True).ravel()
    for axes, (quantity, title, ylabel) in zip(grid, panels, strict=True):
        chosen = rates[(rates["quantity"] == quantity) & (rates["analysis"] == "paired")]
        limit(axes, ALPHA, int(rates["simulations"].iloc[0]), below=False)
        draw_by_scenario(axes, chosen, legend=axes is grid[0])
        axes.set_ylim(0, 7)
        tidy(axes, title, ylabel)
    save(figure, path)


def draw_power(rates: pd.DataFrame, path: Path) -> None:
    """What is found, among seven comparisons, with 0.5 % from run to run."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, analysis in zip(
        figure.subplots(1, 2, sharey=True), ("paired", "unpaired"), strict=True
    ):
        chosen = rates[(rates["scenario"] == "normal") & (rates["analysis"] == analysis)]
        for (quantity, difference), (color, dashes, label) in POWER_STYLES.items():
            rows = chosen[
                (chosen["quantity"] == quantity) & (chosen["difference_pct"] == difference)
            ]
            axes.plot(rows["n"], 100 * rows["rate"], dashes, color=color, lw=1.4, label=label)
        axes.set_ylim(-2, 102)
        tidy(axes, f"{analysis}, {100 * RUN_SD:g} % from run to run", "of the simulations, %")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
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
