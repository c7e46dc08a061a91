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


def join_names(names: Sequence[str], word: str = "and") -> str:
    """Return names as a list in a sentence, with semicolons if a name has a comma.

    >>> join_names(["DDP", "DDP, my buckets", "FSDP2"])
    'DDP; DDP, my buckets; and FSDP2'
    """
    *others, last = names
    if not others:
        return last
    if any(", " in name for name in names):
        return f"{'; '.join(others)}; {word} {last}"
    return f"{', '.join(others)} {word} {last}"


def ratio_text(row: pd.Series[Any]) -> str:
    """A comparison's ratio with its 95 % interval, where n is large enough for one."""
    if math.isnan(row["ci_low"]) or math.isnan(row["ci_high"]):
        return percent(row["ratio"])
    return f"{percent(row['ratio'])}, {percent(row['ci_low'])} to {percent(row['ci_high'])}"


# Reasons in comparisons.csv whose codes are not words enough.
_REASONS = {
    "no_cell": "not planned here",
    "no_usable_cell": "no result that counts",
    "few_runs": f"fewer than {FEWEST_LIKELY} runs",
    "no_device_with_two_runs": "neither ran twice on the same devices, so the spread is unknown",
    "beyond_200_runs": "more than 200 runs would be needed to settle it",
    "within_margin": "they differ, but by less than the margin",
    "devices_never_met": "they never ran on the same devices",
    "devices_unknown": "their devices are unknown",
    "no_common_seed": "no seed of both ran on the same devices",
}


def explain(row: Mapping[Any, Any]) -> str:
    """Return why a row of comparisons.csv is not comparable, open or a special case; else empty."""
    values, reason = row["reason_values"], row["reason"]
    if row["seeds_needed"] == row["seeds_needed"]:
        return f"about {row['seeds_needed']:.0f} runs of each would settle it"
    if reason.startswith("mixed_"):
        return explain_mixture(row)
    words = _REASONS.get(reason, reason.replace("_", " "))
    return f"{label_of(values)}: {words}" if values else words


def format_quantity(metric: str, value: float, unit: str) -> str:
    """A value with its unit; ``unit`` is the column of cells.csv."""
    described = QUANTITIES[metric].of(unit)
    return f"{format_number(value * described.scale, 3)} {described.unit}".strip()


def explain_mixture(row: Mapping[Any, Any]) -> str:
    """Return what differs between runs that therefore are not compared."""
    if row["reason"] == "mixed_code_sha256":  # The values are checksums.
        return "mixed code"
    name = row["reason"].removeprefix("mixed_").replace("_", " ")
    return f"mixed {name}: {row['reason_values']}"
