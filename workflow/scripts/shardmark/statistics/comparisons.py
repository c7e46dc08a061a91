"""Every strategy against the baseline: one row a workload, regime, GPU count, strategy, metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from shardmark.statistics.eligibility import (
    GROUP,
    SameCode,
    check_table,
    count_reasons,
    test_of,
    why_confounded,
    why_mixed,
    why_not_comparable,
)
from shardmark.statistics.family import holm, pairs_for_significance
from shardmark.statistics.seeds_needed import ASSUMPTION, FEWEST, MOST, seeds_needed
from shardmark.statistics.shift import ShiftTest, equivalence_p, interval, two_sided_p

ALPHA = 0.05
MARGIN = 0.02
CANNOT = "cannot be significant at this n"
NOT_COMPARABLE = "not comparable"


class Metric(NamedTuple):
    """A column that strategies are compared by.

    Attributes:
        column: its name in the cells' table.
        below: the word for a ratio to the baseline under 1.
        above: the word for one over 1.
    """

    column: str
    below: str
    above: str


PRIMARY = Metric("images_per_s", "slower", "faster")
EXPLORATORY = tuple(
    Metric(column, "lower", "higher")
    for column in ("memory_used_peak_bytes", "energy_per_image_j", "epoch_s_mean", "total_s")
)


@dataclass(frozen=True)
class Contrast:
    """One strategy against what it is compared to, before any verdict.

    Attributes:
        workload: name of the workload.
        scaling: strong or weak.
        gpus: GPU count.
        strategy: the strategy in question.
        baseline: what it is compared to.
        metric: the metric.
        test: the test of the log-ratio; None where there is nothing to test.
        paired: whether it is of pairs.
        n: pairs, or the strategy's runs.
        n_baseline: pairs, or the baseline's runs.
        refusal: why the two may not be compared; empty where they may.
        note: which cells were left out, and why.
    """

    workload: str
    scaling: str
    gpus: int
    strategy: str
    baseline: str
    metric: Metric
    test: ShiftTest | None
    paired: bool
    n: int
    n_baseline: int
    refusal: str
    note: str


def compare(cells: pd.DataFrame, baseline: str, margin: float = MARGIN) -> pd.DataFrame:
    """Compare every strategy to the baseline within its workload, regime and GPU count.

    The primary metric is steady throughput; its comparisons of one group are one family, for which
    Holm holds the chance of a false claim at ``ALPHA``. All other metrics are exploratory: their p
    stand as they are.

    Args:
        cells: the cells' table.
        baseline: the strategy that the others are compared to.
        margin: of equivalence, as a share of the ratio.

    Returns:
        One row a comparison: workload, scaling, gpus, strategy, baseline, metric, family (primary
        or exploratory), ratio, ci_low, ci_high (95 %, unadjusted; empty where n is too small for
        one), p, p_holm, p_equivalence (after Holm too, where primary), smallest_p (the least p_holm
        that this n can give), n, n_baseline, paired, margin, verdict, seeds_needed, reason.

    Raises:
        UserError: if a cell stands in the table twice.
    """
    check_table(cells)
    same_code = SameCode(cells)
    tables = []
    for _, group in cells.groupby(GROUP, sort=True):
        for metric in (PRIMARY, *EXPLORATORY):
            contrasts = contrasts_of(group, baseline, metric, same_code)
            tables.append(judge(contrasts, metric is PRIMARY, margin))
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else judge([], True, margin)


def contrasts_of(
    group: pd.DataFrame, baseline: str, metric: Metric, same_code: SameCode
) -> list[Contrast]:
    """Every strategy of one workload, regime and GPU count against the baseline."""
    reference = group[group["strategy"] == baseline]
    return [
        contrast(
            (group[group["strategy"] == strategy], reference),
            (str(strategy), baseline),
            metric,
            same_code,
        )
        for strategy in group["strategy"].drop_duplicates()
        if strategy != baseline
    ]


def contrast(
    sides: tuple[pd.DataFrame, pd.DataFrame],
    names: tuple[str, str],
    metric: Metric,
    same_code: SameCode | None,
) -> Contrast:
    """Two sets of cells of one workload, regime and GPU count.

    Args:
        sides: the cells in question, at least one, and those they are compared to.
        names: what messages call them.
        metric: the metric.
        same_code: of the whole table; None where the sides are of two result sets, whose versions
            and devices may differ, as long as either is one thing in itself.
    """
    usable, notes, refusal = [], [], ""
    for name, side in zip(names, sides, strict=True):
        reasons = side["excluded"]
        kept = side[(reasons == "") & (side[metric.column] > 0)]
        usable.append(kept)
        if (reasons != "").any():
            notes.append(f"left out of {name}: {count_reasons(reasons)}")
        if not refusal and not len(kept):
            refusal = f"{name} has no usable cell"
            if (reasons == "").any():
                refusal = f"{metric.column} was not measured for {name}"
            elif not (reasons != "").any():
                refusal = f"{name} has no cell here"
    if not refusal and same_code is None:
        refusal = "; ".join(filter(None, map(why_mixed, usable)))
    elif not refusal and same_code is not None:
        refusal = why_not_comparable(usable, same_code)
    test, paired = (None, False) if refusal else test_of(usable[0], usable[1], metric.column)
    if test is not None and not paired and same_code is not None:
        refusal = why_confounded(usable[0], usable[1])
    first = sides[0].iloc[0]
    return Contrast(
        workload=str(first["workload"]),
        scaling=str(first["scaling"]),
        gpus=int(first["gpus"]),
        strategy=str(first["strategy"]),
        baseline=names[1],
        metric=metric,
        test=None if refusal else test,
        paired=paired,
        n=test.n if paired and test else len(usable[0]),
        n_baseline=test.n if paired and test else len(usable[1]),
        refusal=refusal,
        note="; ".join(notes),
    )


def judge(contrasts: Sequence[Contrast], primary: bool, margin: float) -> pd.DataFrame:
    """The verdicts of one family.

    Args:
        contrasts: all comparisons of the family.
        primary: whether Holm's correction applies.
        margin: of equivalence, as a share of the ratio.

    Returns:
        The rows of ``compare``.
    """
    tests = [item.test for item in contrasts if item.test is not None]
    adjust = holm if primary else list
    p = [two_sided_p(test) for test in tests]
    adjusted = adjust(p)
    equivalence = adjust([equivalence_p(test, margin) for test in tests])
    # What Holm would leave of every comparison's least p is the least that any can have.
    least = adjust([test.smallest_p for test in tests])
    results = iter(zip(p, adjusted, equivalence, least, strict=True))
    family = len(tests) if primary else 1
    rows = []
    for item in contrasts:
        found = Result(*map(float, next(results))) if item.test is not None else None
        rows.append(row_of(item, found, primary, family, margin))
    figures = dict.fromkeys(FIGURES, "float64") | {"seeds_needed": "Int64"}
    return pd.DataFrame(rows, columns=COLUMNS).astype(figures)


class Result(NamedTuple):
    """The p-values of one comparison; all but the first after Holm, where it applies."""

    p: float
    adjusted: float
    equivalence: float
    smallest: float


FIGURES = ("ratio", "ci_low", "ci_high", "p", "p_holm", "p_equivalence", "smallest_p")
COLUMNS = [
    *("workload", "scaling", "gpus", "strategy", "baseline", "metric", "family"),
    *FIGURES,
    *("n", "n_baseline", "paired", "margin", "verdict", "seeds_needed", "reason"),
]
Row = dict[str, object]


def row_of(item: Contrast, found: Result | None, primary: bool, family: int, margin: float) -> Row:
    """One row of the table."""
    row: Row = {
        "workload": item.workload,
        "scaling": item.scaling,
        "gpus": item.gpus,
        "strategy": item.strategy,
        "baseline": item.baseline,
        "metric": item.metric.column,
        "family": "primary" if primary else "exploratory",
        "n": item.n,
        "n_baseline": item.n_baseline,
        "paired": item.paired,
        "margin": margin,
        "verdict": NOT_COMPARABLE,
        "reason": "; ".join(filter(None, (item.refusal, item.note))),
    }
    if item.test is None or found is None:
        return row
    low, high = interval(item.test)
    verdict, reason = verdict_of(item, found, family)
    wanted = None
    if verdict in ("inconclusive", CANNOT):
        wanted = seeds_needed(item.test, margin, family)
        reason += f"; {outlook(item.n, wanted, all_count=not item.note)}"
    if not item.paired:
        reason += "; not paired: the runs of a seed were on different devices"
    return row | {
        "ratio": math.exp(item.test.estimate),
        "ci_low": math.exp(low) if math.isfinite(low) else None,
        "ci_high": math.exp(high) if math.isfinite(high) else None,
        "p": found.p,
        "p_holm": found.adjusted if primary else None,
        "p_equivalence": found.equivalence,
        "smallest_p": found.smallest,
        "verdict": verdict,
        "seeds_needed": wanted,
        "reason": "; ".join(filter(None, (reason, item.note))),
    }


def verdict_of(item: Contrast, found: Result, family: int) -> tuple[str, str]:
    """The verdict of one comparison and the reason for it.

    Equivalence goes before a difference that is shown and yet within the margin.
    """
    assert item.test is not None
    among = f" after Holm over {family}" if family > 1 else ""
    word = item.metric.above if item.test.estimate > 0 else item.metric.below
    differs = found.adjusted <= ALPHA
    if found.equivalence <= ALPHA:
        reason = f"within the margin, p = {found.equivalence:.2g}{among}"
        return "equivalent", reason + (f"; {word}, but by less than the margin" * differs)
    if differs:
        return word, f"p = {found.adjusted:.2g}{among}"
    if found.smallest > ALPHA:
        return CANNOT, (
            f"n = {item.n}: no p under {found.smallest:.2g} is possible{among}, "
            f"at least {_least_seeds(item, family)} seeds are needed"
        )
    return "inconclusive", f"neither a difference (p = {found.adjusted:.2g}{among}) nor equivalence"


def _least_seeds(item: Contrast, family: int) -> int:
    assert item.test is not None
    if item.paired:
        return pairs_for_significance(family)
    return next(n for n in range(2, 100) if family * item.test.smallest_p_at(n) <= ALPHA)


def outlook(n: int, wanted: int | None, all_count: bool = True) -> str:
    """How many seeds would settle an open comparison, with what that assumes.

    Args:
        n: seeds so far.
        wanted: what ``seeds_needed`` found.
        all_count: whether no cell was left out; else it takes more seeds than are wanted.
    """
    if wanted is not None:
        that_count = "" if all_count else " that count"
        return f"about {wanted} seeds{that_count} would settle it {ASSUMPTION}"
    if n < FEWEST:
        return f"fewer than {FEWEST} do not tell how many would settle it"
    return f"more than {MOST} would be needed to settle it {ASSUMPTION}"
