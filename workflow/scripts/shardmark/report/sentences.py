"""Words and numbers that several sentences share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from shardmark.quantities import format_number, percent
from shardmark.results.cell_rows import QUANTITIES
from shardmark.statistics.family import FEWEST_LIKELY
from shardmark.strategies import label_of


def listed(names: Sequence[str], word: str = "and") -> str:
    """Names as a person lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def ratio_text(row: pd.Series[Any]) -> str:
    """A comparison's ratio with its 95 % interval, where n is large enough for one."""
    if math.isnan(row["ci_low"]) or math.isnan(row["ci_high"]):
        return percent(row["ratio"])
    return f"{percent(row['ratio'])}, {percent(row['ci_low'])} to {percent(row['ci_high'])}"


# Of the reasons in comparisons.csv, those that need more than their own words.
_REASONS = {
    "few_runs": f"fewer than {FEWEST_LIKELY} runs",
    "no_device_with_two_runs": "no devices have two runs of either, so the spread is unknown",
    "beyond_200_runs": "more than 200 runs would be needed to settle it",
    "within_margin": "a difference is shown, smaller than the margin",
    "devices_never_met": "they never ran on the same devices",
    "devices_unknown": "it is not known which devices they ran on",
    "no_common_seed": "they have no seed in common",
}


def explain(row: Mapping[Any, Any]) -> str:
    """Why a row of comparisons.csv is not comparable, open or a special case; empty if it says."""
    values, reason = row["reason_values"], row["reason"]
    if row["seeds_needed"] == row["seeds_needed"]:
        return f"about {row['seeds_needed']:.0f} runs of each would settle it"
    if reason.startswith("mixed_"):
        return f"mixed {reason.removeprefix('mixed_').replace('_', ' ')}: {values}"
    words = _REASONS.get(reason, reason.replace("_", " "))
    return f"{label_of(values)}: {words}" if values else words


def quantity(metric: str, value: float, unit: str) -> str:
    """A value with its unit; ``unit`` is the column of cells.csv."""
    shown = QUANTITIES[metric].of(unit)
    return f"{format_number(value * shown.scale, 3)} {shown.unit}".strip()
