"""What the statistics allow to say of one workload and GPU count, and no more.

Being the fastest is more than being faster than the baseline: the strategy of the highest
throughput is held against every other one, under Holm. What is cheapest in memory or energy, and
which strategies none is better than, are exploratory: their tests are not corrected, and say so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from shardmark.statistics.comparisons import (
    ALPHA,
    CANNOT,
    EXPLORATORY,
    MARGIN,
    NOT_COMPARABLE,
    PRIMARY,
    Metric,
    Result,
    contrast,
    contrasts_of,
    judge,
    verdict_of,
)
from shardmark.statistics.eligibility import (
    GROUP,
    SameCode,
    check_table,
    usable_cells,
)
from shardmark.statistics.shift import equivalence_p, two_sided_p
from shardmark.statistics.standing import Standing, Verdict

MEMORY, ENERGY = EXPLORATORY[:2]
OBJECTIVES = (PRIMARY, MEMORY, ENERGY)


def verdicts(
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    baseline: str,
    margin: float = MARGIN,
) -> list[Verdict]:
    """The verdict of every workload, regime and GPU count.

    Args:
        cells: the cells' table.
        comparisons: what ``comparisons.compare`` made of it, with the same baseline and margin.
        baseline: the strategy that the others are compared to.
        margin: of equivalence, as a share of the ratio.

    Raises:
        UserError: if a cell stands in the table twice.
    """
    check_table(cells)
    same_code = SameCode(cells)
    found = []
    for key, group in cells.groupby(GROUP, sort=True):
        rows = comparisons[(comparisons[GROUP] == list(key)).all(axis=1)]
        rows = rows[rows["metric"] == PRIMARY.column]
        found.append(_verdict(group, rows, baseline, same_code, margin))
    return found


def _verdict(
    group: pd.DataFrame,
    rows: pd.DataFrame,
    baseline: str,
    same_code: SameCode,
    margin: float,
) -> Verdict:
    usable = usable_cells(group, PRIMARY.column)
    strategies = list(group["strategy"].drop_duplicates())
    measured = [metric for metric in OBJECTIVES if _all_measured(usable, metric)]
    standings = {
        metric: standing_of(usable, metric, same_code, margin) for metric in {PRIMARY, *measured}
    }
    tested = rows[rows["verdict"] != NOT_COMPARABLE]
    return Verdict(
        workload=str(group["workload"].iloc[0]),
        scaling=str(group["scaling"].iloc[0]),
        gpus=int(group["gpus"].iloc[0]),
        baseline=baseline,
        margin=margin,
        runs={name: int((usable["strategy"] == name).sum()) for name in strategies},
        excluded=_excluded(group, strategies),
        cannot=bool(len(tested)) and bool((tested["smallest_p"] > ALPHA).all()),
        fastest=standings[PRIMARY],
        memory=standings.get(MEMORY),
        energy=standings.get(ENERGY),
        objectives=[metric.column for metric in measured],
        medians=_medians(usable, measured),
        pareto=pareto_set(usable, measured, same_code, margin),
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


def _excluded(group: pd.DataFrame, strategies: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each strategy with excluded cells, how many each reason excludes."""
    out = group[group["excluded"] != ""]
    counts = {name: out[out["strategy"] == name]["excluded"].value_counts() for name in strategies}
    return {
        name: {str(reason): int(number) for reason, number in reasons.items()}
        for name, reasons in counts.items()
        if len(reasons)
    }


def standing_of(
    usable: pd.DataFrame, metric: Metric, same_code: SameCode, margin: float
) -> Standing:
    """The best strategy by a metric, held against every other.

    Args:
        usable: usable cells of one workload, regime and GPU count.
        metric: throughput, of which more is better, or another, of which less is.
        same_code: of the whole table.
        margin: of equivalence, as a share of the ratio.
    """
    medians = usable.groupby("strategy", sort=False)[metric.column].median().dropna()
    if medians.empty:
        return Standing(metric=metric.column)
    best = str(medians.idxmax() if metric is PRIMARY else medians.idxmin())
    contrasts = contrasts_of(usable, best, metric, same_code)
    table = judge(contrasts, metric is PRIMARY, margin)
    worse_word, better_word = metric.above, metric.below
    if metric is PRIMARY:
        worse_word, better_word = better_word, worse_word
    worse = _named(table, worse_word)
    not_compared = _named(table, NOT_COMPARABLE)
    return Standing(
        metric=metric.column,
        best=best,
        value=float(medians[best]),
        shown=0 < len(worse) == len(table) - len(not_compared),
        equivalent=_named(table, "equivalent"),
        # The best median may have the worse estimate: then nothing is shown, either.
        open=_named(table, "inconclusive", CANNOT, better_word),
        worse=worse,
        not_compared=not_compared,
    )


def _named(table: pd.DataFrame, *verdict: str) -> list[str]:
    return [str(name) for name in table[table["verdict"].isin(verdict)]["strategy"]]


def pareto_set(
    usable: pd.DataFrame,
    objectives: Sequence[Metric],
    same_code: SameCode,
    margin: float,
) -> list[str]:
    """The strategies that none is shown to beat.

    One strategy beats another if it is shown to be better by one objective at least, and better or
    equivalent by each of them. What is open beats nothing and loses to nothing, so with few seeds
    the set is large: it holds all that cannot be ruled out. The tests are not corrected for their
    number.

    Args:
        usable: usable cells of one workload, regime and GPU count.
        objectives: the metrics.
        same_code: of the whole table.
        margin: of equivalence, as a share of the ratio.
    """
    sides = {str(name): side for name, side in usable.groupby("strategy", sort=False)}
    beaten: set[str] = set()
    for one, other in itertools.combinations(sides, 2):
        relations = [
            _relation(sides[one], sides[other], metric, same_code, margin) for metric in objectives
        ]
        if "open" not in relations:
            if "worse" not in relations and "better" in relations:
                beaten.add(other)
            if "better" not in relations and "worse" in relations:
                beaten.add(one)
    return [name for name in sides if name not in beaten]


def _relation(
    one: pd.DataFrame,
    other: pd.DataFrame,
    metric: Metric,
    same_code: SameCode,
    margin: float,
) -> str:
    item = contrast((one, other), ("one", "other"), metric, same_code)
    if item.test is None:
        return "open"
    p = two_sided_p(item.test)
    found = Result(p, p, equivalence_p(item.test, margin), item.test.smallest_p)
    verdict, _ = verdict_of(item, found, 1)
    words: Mapping[str, str] = {
        metric.below: "worse" if metric is PRIMARY else "better",
        metric.above: "better" if metric is PRIMARY else "worse",
        "equivalent": "equivalent",
    }
    return words.get(verdict, "open")
