"""How the strategies of one workload and GPU count rank.

The fastest strategy is compared with every other one, not just with the baseline, and these tests
are corrected for their number. The rankings by memory and energy are exploratory: their tests are
not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from shardmark.statistics.comparison_rows import NOT_COMPARABLE, ComparisonRow, Tier
from shardmark.statistics.comparisons import (
    EQUIVALENT,
    EXPLORATORY,
    MARGIN,
    PRIMARY,
    Group,
    Metric,
    groups_of,
    judge,
)
from shardmark.statistics.eligibility import GROUP, usable_cells
from shardmark.statistics.standing import Standing, Verdict

MEMORY, ENERGY = EXPLORATORY[:2]
OBJECTIVES = (PRIMARY, MEMORY, ENERGY)
# Why a comparison is open: it has too few runs for a test.
TOO_FEW = ("few_runs", "no_device_with_two_runs")
# The log-ratio of each strategy to one and the same strategy.
Levels = Mapping[str, float]


def verdicts(
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    baseline: str,
    margin: float = MARGIN,
) -> list[Verdict]:
    """Return the verdict on every workload, scaling and GPU count.

    Args:
        cells: columns as ``cell_rows.CellRow``.
        comparisons: result of ``comparisons.compare`` for these cells, with the same baseline and
            margin.
        baseline: the strategy that the others are compared with.
        margin: the margin of equivalence, as a share of the ratio.

    Raises:
        UserError: if a cell is in the table twice.
    """
    of_groups = []
    for group in groups_of(cells):
        rows = comparisons[(comparisons[GROUP] == list(group.key.values())).all(axis=1)]
        of_groups.append(_verdict(group, rows, baseline, margin))
    return of_groups


def _verdict(group: Group, rows: pd.DataFrame, baseline: str, margin: float) -> Verdict:
    usable = usable_cells(group.cells, PRIMARY.column)
    measured = [metric for metric in OBJECTIVES if _all_measured(usable, metric)]
    levels = {metric: _levels(group, metric, rows, baseline) for metric in measured}
    standings = {
        metric: _standing(group, metric, levels[metric], rows, baseline, margin)
        for metric in measured
    }
    fastest = standings.get(PRIMARY, Standing(metric=PRIMARY.column))
    if fastest.best is not None:
        levels = {
            metric: _linked(levels[metric], fastest.best, group, metric, margin)
            for metric in measured
        }
    return Verdict(
        **group.key,
        baseline=baseline,
        margin=margin,
        runs={name: int((usable["strategy"] == name).sum()) for name in group.strategies},
        excluded=_excluded(group),
        fastest=fastest,
        memory=standings.get(MEMORY),
        energy=standings.get(ENERGY),
        objectives=[metric.column for metric in measured],
        medians=_medians(usable, measured),
        pareto=pareto_set(levels, margin),
    )


def _all_measured(usable: pd.DataFrame, metric: Metric) -> bool:
    known = usable[usable[metric.column] > 0]["strategy"]
    return bool(len(usable)) and set(known) == set(usable["strategy"])


def _medians(usable: pd.DataFrame, metrics: Sequence[Metric]) -> dict[str, dict[str, float]]:
    columns = [metric.column for metric in metrics]
    table = usable.groupby("strategy", sort=False)[columns].median()
    return {
        str(name): {column: float(row[column]) for column in columns}
        for name, row in table.iterrows()
    }


def _excluded(group: Group) -> dict[str, dict[str, int]]:
    """Return how many cells each reason excludes, for each strategy with excluded cells."""
    out = group.cells[group.cells["excluded"] != ""]
    counts = {
        name: out[out["strategy"] == name]["excluded"].value_counts() for name in group.strategies
    }
    return {
        name: {str(reason): int(number) for reason, number in reasons.items()}
        for name, reasons in counts.items()
        if len(reasons)
    }


def _levels(group: Group, metric: Metric, rows: pd.DataFrame, baseline: str) -> Levels:
    """Return the log-ratio of each strategy to the baseline.

    If nothing could be compared with the baseline, this returns the mean log-value of each strategy
    instead, which ranks them just as well.
    """
    rows = rows[(rows["metric"] == metric.column) & rows["ratio"].notna()]
    if len(rows):
        ratios = zip(rows["strategy"], rows["ratio"], strict=True)
        return {baseline: 0.0} | {str(name): math.log(ratio) for name, ratio in ratios}
    samples = group.samples(metric)
    return {name: sum(own.values.values()) / len(own.values) for name, own in samples.items()}


def _standing(
    group: Group,
    metric: Metric,
    levels: Levels,
    to_baseline: pd.DataFrame,
    baseline: str,
    margin: float,
) -> Standing:
    """Compare the best strategy by a metric with every other.

    Args:
        group: the runs.
        metric: what is compared.
        levels: the log-ratio of each strategy to the baseline.
        to_baseline: rows of comparisons.csv of the group.
        baseline: the strategy that those rows compare with.
        margin: of equivalence, as a share of the ratio.
    """
    ahead, behind = metric.above, metric.below
    if metric is not PRIMARY:
        ahead, behind = behind, ahead
    best = (max if metric is PRIMARY else min)(levels, key=levels.__getitem__)
    rows, tried = _against(best, group, metric, margin), {best}
    # Ratios to the baseline choose the best. Another one may be shown to be ahead of it, for
    # instance one that has no ratio to the baseline.
    while better := [row for row in rows if row.verdict == ahead and row.strategy not in tried]:
        by_ratio = sorted(better, key=lambda row: row.ratio or 1.0, reverse=metric is PRIMARY)
        best = by_ratio[0].strategy
        rows = _against(best, group, metric, margin)
        tried.add(best)
    values = group.usable[group.usable["strategy"] == best][metric.column]
    worse = [row for row in rows if row.verdict == behind]
    # A strategy that is still ahead beats the best and is beaten by another, which shows nothing.
    left = [row for row in rows if row.verdict not in (behind, EQUIVALENT, NOT_COMPARABLE)]
    compared = [row for row in rows if row.verdict != NOT_COMPARABLE]
    all_are = len(compared) == len(rows) > 0
    equivalent = _names(row for row in rows if row.verdict == EQUIVALENT)
    baseline_may_be_best = baseline in {*_names(left), *equivalent}
    of_metric = to_baseline[to_baseline["metric"] == metric.column]
    behind_baseline = set(of_metric[of_metric["verdict"] == behind]["strategy"])
    return Standing(
        metric=metric.column,
        best=best,
        value=float(values.median()),
        tier=_weakest(compared) if all_are and not left else "open",
        ratios={row.strategy: row.ratio for row in compared if row.ratio is not None},
        equivalent=equivalent,
        open=_names(left),
        behind_baseline=[
            name for name in _names(left) if baseline_may_be_best and name in behind_baseline
        ],
        worse=_names(worse),
        not_compared=_names(row for row in rows if row.verdict == NOT_COMPARABLE),
        too_few=_names(row for row in left if row.reason in TOO_FEW),
        more_runs=_most_further(left),
    )


def _against(one: str, group: Group, metric: Metric, margin: float) -> list[ComparisonRow]:
    """Compare one strategy with every other that has a result."""
    return [
        row
        for row in judge(list(group.contrasts(metric, one)), metric, group.paired, margin)
        if row.ratio is not None or row.reason not in ("no_usable_cell", "not_measured")
    ]


def _linked(levels: Levels, fastest: str, group: Group, metric: Metric, margin: float) -> Levels:
    """Add strategies that were compared with the fastest one, but not with the baseline."""
    if set(group.samples(metric)) <= levels.keys():
        return levels
    logs = {
        row.strategy: math.log(row.ratio)
        for row in _against(fastest, group, metric, margin)
        if row.ratio is not None
    }
    common = [levels[name] - log for name, log in logs.items() if name in levels]
    if fastest not in levels and not common:
        return levels
    own = levels[fastest] if fastest in levels else sum(common) / len(common)
    return {fastest: own, **{name: own + log for name, log in logs.items()}, **levels}


def _names(rows: Iterable[ComparisonRow]) -> list[str]:
    return [row.strategy for row in rows]


def _weakest(rows: Sequence[ComparisonRow]) -> Tier:
    return "established" if all(row.tier == "established" for row in rows) else "likely"


def _most_further(rows: Sequence[ComparisonRow]) -> int | None:
    """Return how many more runs of each side would settle all of these; None if unknown."""
    further = [
        None if row.seeds_needed is None else row.seeds_needed - min(row.n, row.n_baseline)
        for row in rows
    ]
    return None if None in further else max(filter(None, further), default=None)


def pareto_set(levels: Mapping[Metric, Levels], margin: float) -> list[str]:
    """Return the strategies that no other beats.

    One strategy beats another if it is better by more than the margin in one objective, worse by
    more than the margin in none, and better in the sum of all objectives (otherwise three could
    beat each other in a circle). The estimates decide, so a strategy does not stay in the set just
    because it has few runs.

    Args:
        levels: by objective, the log-ratio of each strategy to one and the same strategy.
        margin: within which two are equal, as a share of the ratio.
    """
    if not levels:
        return []
    bound = math.log1p(margin)
    names = [
        name for name in next(iter(levels.values())) if all(name in own for own in levels.values())
    ]

    def beats(one: str, other: str) -> bool:
        gains = [
            (own[one] - own[other]) * (1 if metric is PRIMARY else -1)
            for metric, own in levels.items()
        ]
        return max(gains) > bound and min(gains) >= -bound and sum(gains) > 0

    return [name for name in names if not any(beats(other, name) for other in names)]
