"""The rows of comparisons.csv and scaling.csv: every column is a name, a number or a short code."""

from __future__ import annotations

from typing import Literal

from shardmark.config.values import Section
from shardmark.results.cell_rows import column

Tier = Literal["established", "likely", "open"]
Method = Literal["sign-flip", "paired-t", "permutation-and-welch", "welch", "none"]
NOT_COMPARABLE = "not comparable"
_NO_RATIO = "the two are not comparable"
_FEW = "the two are not comparable, or there are fewer than 3 runs"


class ComparisonRow(Section):
    """One strategy against the baseline by one metric, at one GPU count."""

    workload: str = column("name of the workload")
    scaling: str = column("strong (fixed global batch) or weak (fixed batch per GPU)")
    gpus: int = column("replicas of the cells")
    strategy: str = column("name of the strategy or variant")
    baseline: str = column("what it is compared with")
    metric: str = column("the column of cells.csv that is compared")
    family: Literal["primary", "exploratory"] = column(
        "primary: throughput, corrected for all strategies of this workload, scaling and GPU "
        "count; exploratory: not corrected"
    )
    verdict: str = column(
        "faster or slower (other metrics: higher or lower), equivalent, open, not comparable"
    )
    tier: Tier | None = column(
        "how sure the verdict is: established (tested without a model, 6 runs or more), likely "
        "(model-based, 3 to 5 runs), open (nothing is shown)",
        empty=_NO_RATIO,
    )
    ratio: float | None = column(
        "geometric mean of the ratios to the baseline, of pairs or within the devices that both "
        "ran on",
        empty=_NO_RATIO,
    )
    ci_low: float | None = column(
        "lower end of the 95 % interval of the ratio; primary: for all strategies together",
        empty=_FEW,
    )
    ci_high: float | None = column("its upper end", empty=_FEW)
    p_adjusted: float | None = column(
        "p of no difference; primary: corrected for all strategies together", empty=_FEW
    )
    p_equivalence: float | None = column(
        "p of a ratio at or beyond the margin, corrected likewise", empty=_FEW
    )
    n: int = column("pairs, or runs of the strategy on devices that the baseline ran on too")
    n_baseline: int = column("pairs, or runs of the baseline likewise")
    paired: bool = column("whether runs of the same seed and devices are compared in pairs")
    method: Method = column(
        "the test: sign-flip, paired-t; within the devices that both ran on: permutation-and-welch "
        "(the larger p of both), welch; none"
    )
    margin: float = column("of equivalence, as a share of the ratio")
    seeds_needed: int | None = column(
        "runs of each side, those at hand included, that would settle an open comparison with a "
        "chance of 80 %",
        empty="the comparison is not open, has fewer than 3 runs, or needs more than 200",
    )
    reason: str | None = column(
        "why not comparable: no_cell, no_usable_cell, not_measured, mixed_<column of cells.csv>, "
        "no_common_seed, devices_never_met, devices_unknown; why open: few_runs, "
        "no_device_with_two_runs, beyond_200_runs; within_margin: a difference is shown, smaller "
        "than the margin",
        empty="nothing is to be explained",
    )
    reason_values: str | None = column(
        "the values that are mixed, separated by ' / '; or the strategy without a cell",
        empty="the reason says it all",
    )


class SetComparisonRow(ComparisonRow):
    """One strategy in a later result set against itself in an earlier one.

    The baseline is the earlier set. The columns below are filled only for throughput.
    """

    regression: Literal["yes", "no", "open"] | None = column(
        "whether the strategy is slower than before by more than the margin",
        empty="the metric is exploratory, or the two are not comparable",
    )
    p_regression: float | None = column(
        "one-sided p of a ratio of at least 1 / (1 + margin), corrected for all strategies "
        "together",
        empty=_FEW,
    )
    p_no_regression: float | None = column(
        "one-sided p of a ratio of at most 1 / (1 + margin), not corrected: the outcome is no "
        "regression only if all of them are small",
        empty=_FEW,
    )
    seeds_to_decide: int | None = column(
        "runs of each set that would decide an open regression with a chance of 80 %",
        empty="the regression is not open, has fewer than 3 runs, or needs more than 200",
    )


class ScalingRow(Section):
    """One strategy at one GPU count against its own smallest GPU count."""

    workload: str = column("name of the workload")
    scaling: str = column("strong (fixed global batch) or weak (fixed batch per GPU)")
    strategy: str = column("name of the strategy or variant")
    gpus: int = column("replicas of the cells")
    reference_gpus: int = column("the strategy's smallest GPU count")
    unit: str = column(
        "what throughput counts: images, tokens, or what a user's own training counts"
    )
    items_per_s: float = column("median throughput, in items/s (see the column unit)")
    speedup: float | None = column(
        "ratio of the geometric means of throughput at the two GPU counts", empty=_NO_RATIO
    )
    speedup_low: float | None = column(
        "lower end of its 95 % interval, which includes how much the devices differ",
        empty="a side has fewer than three runs, or the reference ran on one set of devices only",
    )
    speedup_high: float | None = column("its upper end", empty="the lower end is empty")
    efficiency: float | None = column(
        "speedup / (gpus / reference_gpus)", empty="there is no speedup"
    )
    efficiency_low: float | None = column(
        "lower end of its 95 % interval", empty="speedup_low is empty"
    )
    efficiency_high: float | None = column("its upper end", empty="speedup_low is empty")
    n: int = column("runs at this GPU count")
    n_reference: int = column("runs at the smallest GPU count")
    reason: str | None = column(
        "reference: this is the smallest GPU count; mixed_<column of cells.csv>: no ratio; "
        "one_reference_device, few_runs: no interval",
        empty="nothing is to be explained",
    )
    reason_values: str | None = column(
        "the values that are mixed, separated by ' / '", empty="the reason is no mixture"
    )
