"""Every strategy against the baseline: a row per workload, scaling, GPU count, strategy, metric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shardmark.results.csv_tables import to_frame
from shardmark.results.same_code import SameCode
from shardmark.statistics.comparison_rows import NOT_COMPARABLE, ComparisonRow, Tier
from shardmark.statistics.eligibility import (
    GROUP,
    Identity,
    Refusal,
    check_table,
    devices_of,
    identify,
    on_same_devices,
    why_not_comparable,
)
from shardmark.statistics.family import (
    ALPHA,
    FEWEST_ESTABLISHED,
    FEWEST_LIKELY,
    Family,
    PairedFamily,
    UnpairedFamily,
    agreeing_intervals,
    equivalence_p,
)
from shardmark.statistics.seeds_needed import seeds_needed
from shardmark.statistics.stratified import Stratified

MARGIN = 0.02
OPEN = "open"
EQUIVALENT = "equivalent"


class Metric(NamedTuple):
    """A column that strategies are compared by.

    Attributes:
        column: its name in cells.csv.
        below: the word for a ratio to the baseline below 1.
        above: the word for a ratio to the baseline above 1.
    """

    column: str
    below: str
    above: str


PRIMARY = Metric("items_per_s", "slower", "faster")
EXPLORATORY = tuple(
    Metric(column, "lower", "higher")
    for column in ("memory_used_peak_bytes", "energy_per_item_j", "epoch_s_mean", "total_s")
)


class Sample(NamedTuple):
    """The usable runs of one side, by seed.

    Attributes:
        values: logarithms of the metric.
        devices: the devices that the same runs used.
    """

    values: Mapping[int, float]
    devices: Mapping[int, str]


def sample_of(side: pd.DataFrame, metric: Metric) -> Sample:
    """Return the usable runs of one strategy that have a value."""
    known = side[side[metric.column] > 0]
    seeds = [int(seed) for seed in known["seed"]]
    logs = np.log(known[metric.column].to_numpy(float)).tolist()
    return Sample(
        dict(zip(seeds, logs, strict=True)), dict(zip(seeds, devices_of(known), strict=True))
    )


@dataclass(frozen=True)
class Contrast:
    """One comparison before it is tested.

    Attributes:
        names: columns of its row: workload, scaling, gpus, strategy, baseline.
        sides: the runs in question and those they are compared with.
        refusal: why the two are not compared; None if they are.
    """

    names: Mapping[str, Any]
    sides: tuple[Sample, Sample]
    refusal: Refusal | None


class Group:
    """The runs of one workload, scaling and GPU count.

    Args:
        cells: its rows of cells.csv.
        same_code: which commits hold the same code, from the whole table.
    """

    def __init__(self, cells: pd.DataFrame, same_code: SameCode) -> None:
        self.cells = cells
        self.key = dict(zip(GROUP, cells[GROUP].iloc[0], strict=True))
        self.strategies = [str(name) for name in cells["strategy"].drop_duplicates()]
        self.usable = cells[cells["excluded"] == ""]
        self._same_code = same_code
        blocks = devices_of(self.usable).groupby(self.usable["seed"])
        self.paired = on_same_devices([list(devices) for _, devices in blocks])

    @cached_property
    def _identities(self) -> Mapping[str, Identity]:
        sides = self.usable.groupby("strategy", sort=False)
        return {str(name): identify(side, self._same_code) for name, side in sides}

    def samples(self, metric: Metric) -> Mapping[str, Sample]:
        """Return the usable runs with a value, of each strategy that has any."""
        sides = self.usable.groupby("strategy", sort=False)
        samples = {str(name): sample_of(side, metric) for name, side in sides}
        return {name: sample for name, sample in samples.items() if sample.values}

    def contrasts(self, metric: Metric, baseline: str) -> Iterator[Contrast]:
        """Yield the comparison of each other strategy with the baseline."""
        samples = self.samples(metric)
        nothing = Sample({}, {})
        for strategy in self.strategies:
            if strategy != baseline:
                sides = (samples.get(strategy, nothing), samples.get(baseline, nothing))
                names = self.key | {"strategy": strategy, "baseline": baseline}
                yield Contrast(names, sides, self._why_not((strategy, baseline), sides))

    def _why_not(self, names: tuple[str, str], sides: tuple[Sample, Sample]) -> Refusal | None:
        for name, side in zip(names, sides, strict=True):
            if not side.values:
                return Refusal(self._why_none(name), name)
        return why_not_comparable([self._identities[name] for name in names]) or why_never_met(
            sides, self.paired
        )

    def _why_none(self, name: str) -> str:
        if name in self._identities:
            return "not_measured"
        return "no_usable_cell" if name in self.strategies else "no_cell"


def why_never_met(sides: tuple[Sample, Sample], paired: bool) -> Refusal | None:
    """Return why different devices could explain a difference; None if they could not."""
    first, second = (set(side.devices.values()) - {""} for side in sides)
    if not first or not second:
        return Refusal("devices_unknown")
    if not first & second:
        return Refusal("devices_never_met")
    return Refusal("no_common_seed") if paired and not _pairs(sides) else None


def _pairs(sides: tuple[Sample, Sample]) -> dict[int, float]:
    """Return the log-ratio of each seed that both sides ran on the same devices."""
    first, second = sides
    return {
        seed: value - second.values[seed]
        for seed, value in first.values.items()
        if seed in second.values and first.devices[seed] == second.devices[seed] != ""
    }


def groups_of(cells: pd.DataFrame) -> Iterator[Group]:
    """Yield one group per workload, scaling and GPU count.

    Raises:
        UserError: if a cell is in the table twice.
    """
    check_table(cells)
    same_code = SameCode(cells)
    for _, group in cells.groupby(GROUP, sort=True):
        yield Group(group, same_code)


def compare(cells: pd.DataFrame, baseline: str, margin: float = MARGIN) -> pd.DataFrame:
    """Compare every strategy with the baseline at each workload, scaling and GPU count.

    Args:
        cells: columns as ``cell_rows.CellRow``.
        baseline: the strategy that the others are compared with.
        margin: the margin of equivalence, as a share of the ratio.

    Returns:
        Columns as ``ComparisonRow``.

    Raises:
        UserError: if a cell is in the table twice.
    """
    rows = [
        row
        for group in groups_of(cells)
        for metric in (PRIMARY, *EXPLORATORY)
        for row in judge(list(group.contrasts(metric, baseline)), metric, group.paired, margin)
    ]
    return to_frame(ComparisonRow, rows)


def family_of(contrasts: Sequence[Contrast], *, paired: bool, corrected: bool) -> Family | None:
    """Return the family of the comparisons that are not refused; None if all are.

    Args:
        contrasts: all comparisons of the family.
        paired: whether runs are compared in pairs.
        corrected: whether to correct for all of them together.
    """
    contrasts = [item for item in contrasts if item.refusal is None]
    if not contrasts:
        return None
    if not paired:
        items = [Stratified(*map(_by_devices, item.sides)) for item in contrasts]
        return UnpairedFamily(items, corrected=corrected)
    pairs = [_pairs(item.sides) for item in contrasts]
    seeds = sorted(set().union(*pairs))
    table = [[own.get(seed, math.nan) for own in pairs] for seed in seeds]
    return PairedFamily(np.array(table), corrected=corrected)


def _by_devices(side: Sample) -> dict[str, list[float]]:
    values_by_devices: dict[str, list[float]] = {}
    for seed, value in side.values.items():
        if side.devices[seed]:
            values_by_devices.setdefault(side.devices[seed], []).append(value)
    return values_by_devices


def judge(
    contrasts: Sequence[Contrast], metric: Metric, paired: bool, margin: float
) -> list[ComparisonRow]:
    """Return the rows of one family.

    Args:
        contrasts: all its comparisons.
        metric: throughput, whose tests are corrected, or another, whose tests are not.
        paired: whether runs are compared in pairs.
        margin: the margin of equivalence, as a share of the ratio.
    """
    family = family_of(contrasts, paired=paired, corrected=metric is PRIMARY)
    results = _results(family, metric, margin) if family else iter(())
    rows = []
    for item in contrasts:
        row: dict[str, Any] = dict.fromkeys(ComparisonRow.model_fields) | dict(item.names)
        row |= {
            "metric": metric.column,
            "family": "primary" if metric is PRIMARY else "exploratory",
            "paired": paired,
            "margin": margin,
        }
        if item.refusal is None:
            row |= next(results)
        else:
            row |= {"verdict": NOT_COMPARABLE, "method": "none", "reason": item.refusal.reason}
            row |= {"reason_values": item.refusal.values or None}
            row |= {"n": len(item.sides[0].values), "n_baseline": len(item.sides[1].values)}
        rows.append(ComparisonRow.model_validate(row))
    return rows


def _results(family: Family, metric: Metric, margin: float) -> Iterator[dict[str, Any]]:
    """Yield the columns of each comparison that come from the tests."""
    p, equivalence = family.two_sided_p(), equivalence_p(family, margin)
    low, high = agreeing_intervals(family.estimates, family.half_widths(), p)
    comparisons = len(p) if family.corrected else 1
    for place, estimate in enumerate(family.estimates):
        least = int(min(family.n[place], family.n_baseline[place]))
        word = metric.above if estimate > 0 else metric.below
        verdict = _verdict(p[place], equivalence[place], word)
        wanted = None
        if verdict == OPEN:
            wanted = seeds_needed(
                float(estimate), float(family.spreads[place]), least, margin, comparisons
            )
        yield {
            "verdict": verdict,
            "tier": _tier(verdict, least),
            "ratio": math.exp(estimate),
            "ci_low": _ratio(low[place]),
            "ci_high": _ratio(high[place]),
            "p_adjusted": _known(p[place]),
            "p_equivalence": _known(equivalence[place]),
            "n": int(family.n[place]),
            "n_baseline": int(family.n_baseline[place]),
            "method": family.method(place),
            "seeds_needed": wanted,
            "reason": _reason(verdict, p[place], least, wanted),
        }


def _verdict(p: float, equivalence: float, word: str) -> str:
    # Both significantly different and within the margin: that is called equivalent.
    if equivalence <= ALPHA:
        return EQUIVALENT
    return word if p <= ALPHA else OPEN


def _tier(verdict: str, n: int) -> Tier:
    if verdict == OPEN:
        return "open"
    return "established" if n >= FEWEST_ESTABLISHED else "likely"


def _reason(verdict: str, p: float, n: int, wanted: int | None) -> str | None:
    if verdict == EQUIVALENT:
        return "within_margin" if p <= ALPHA else None
    if verdict != OPEN:
        return None
    if n < FEWEST_LIKELY:
        return "few_runs"
    if math.isnan(p):
        return "no_device_with_two_runs"
    return "beyond_200_runs" if wanted is None else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _ratio(log_ratio: float) -> float | None:
    return None if math.isnan(log_ratio) else math.exp(log_ratio)
