"""The summary: from a row per cell to a row per strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shardmark.quantities import Quantity, describe_gpus, describe_scaling, format_number
from shardmark.report.table import Detailed, Table
from shardmark.results.cell_rows import QUANTITIES
from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.eligibility import GROUP, counted
from shardmark.strategies import label_of

Row = Mapping[Any, Any]
# What each column of summary.csv means.
SUMMARY_COLUMNS: dict[str, str] = {
    "workload": "name of the workload",
    "scaling": "strong (fixed global batch) or weak (fixed batch per GPU)",
    "gpus": "replicas of the cells",
    "strategy": "name of the strategy or variant",
    "device": "cuda or cpu",
    "unit": "what throughput and energy count",
    "cells": "planned cells",
    "runs": "cells in the medians",
    "faulty": "cells excluded for a device fault",
    "faulty_shown": "faulty cells that are in the medians, because no other run is ok",
    "comparable": "whether the runs take part in comparisons",
    "parity": "the parity gate's verdict",
    **{
        name + suffix: f"{what} of the column {name} of cells.csv over the runs"
        for name in QUANTITIES
        for suffix, what in (("", "median"), ("_min", "minimum"), ("_max", "maximum"))
    },
    "ratio": "of throughput to the baseline, from comparisons.csv; 1 for the baseline",
}


def summarise(cells: pd.DataFrame, comparisons: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return one row per workload, scaling, GPU count and strategy, in the order of the cells.

    Args:
        cells: columns as ``cell_rows.CellRow``.
        comparisons: columns as ``comparison_rows.ComparisonRow``.
        baseline: the strategy that the others are compared with.

    Returns:
        ``SUMMARY_COLUMNS``, and ``outcomes`` in words.
    """
    rows = [
        dict(zip([*GROUP, "strategy"], key, strict=True)) | _strategy(part)
        for key, part in cells.groupby([*GROUP, "strategy"], sort=False)
    ]
    summary = pd.DataFrame(rows)
    primary = comparisons[comparisons.metric == PRIMARY.column]
    keys = [*GROUP, "strategy"]
    ratios = primary.set_index(keys).ratio.reindex(pd.MultiIndex.from_frame(summary[keys]))
    is_baseline = (summary.strategy == baseline) & summary.comparable
    summary["ratio"] = np.where(is_baseline, 1.0, ratios.to_numpy(float))
    return summary


def _strategy(part: pd.DataFrame) -> dict[str, Any]:
    runs = counted(part)
    statuses = part.status.where(part.status != "", part.outcome)
    row: dict[str, Any] = {
        "device": part.device.iloc[0],
        "unit": part.unit.iloc[0],
        "cells": len(part),
        "runs": len(runs),
        "faulty": int((part.device_faults != "").sum()),
        "faulty_shown": int((runs.device_faults != "").sum()),
        "comparable": bool((runs.excluded == "").any()),
        "outcomes": ", ".join(f"{n} {status}" for status, n in statuses.value_counts().items()),
        "parity": part.parity.iloc[0],
    }
    for column in QUANTITIES:
        values = runs[column].astype(float)
        row |= {
            column: values.median(),
            f"{column}_min": values.min(),
            f"{column}_max": values.max(),
        }
    return row


def summary_tables(summary: pd.DataFrame, baseline: str, *, ranges: bool = True) -> Iterator[Table]:
    """One table for each workload, scaling and GPU count, GPU counts ascending.

    Args:
        summary: as ``summarise`` gives it.
        baseline: named in each caption.
        ranges: whether to write the smallest and the largest run beside the median.
    """
    for _, own in summary.groupby("workload", sort=False):
        for _, group in own.groupby(GROUP, sort=True):
            yield _table(group, label_of(baseline), ranges)


def _table(group: pd.DataFrame, baseline: str, ranges: bool) -> Table:
    device, unit = group.device.iloc[0], group.unit.iloc[0]
    measured = {name for name in QUANTITIES if group[name].notna().any()}
    quantities = [
        quantity.on(device).of(unit) for name, quantity in QUANTITIES.items() if name in measured
    ]
    lacking = [
        item.label.lower()
        for name, item in QUANTITIES.items()
        if name not in measured and not item.optional
    ]
    runs = sorted({count for count in group.runs if count})
    return Table(
        caption=_caption(group.iloc[0], baseline, runs, ranges),
        headings=[
            "Strategy",
            "Runs",
            f"Throughput / {baseline}",
            *[quantity.heading for quantity in quantities],
            "Parity",
        ],
        rows=[_row(row, quantities, ranges) for row in group.to_dict("records")],
        notes=_notes(group, lacking),
    )


def _caption(first: pd.Series, baseline: str, runs: Sequence[int], ranges: bool) -> str:
    median = "median [smallest, largest]" if ranges else "median"
    match runs:
        case []:
            spread = "no run is ok"
        case [1]:
            spread = "one run each (n = 1)"
        case [n]:
            spread = f"{median} of n = {n} runs"
        case [fewest, *_, most]:
            spread = f"{median} of n = {fewest} to {most} runs"
    where = describe_gpus(first.device, first.gpus)
    what = "throughput and power" if first.device == "cuda" else "throughput"
    together = "" if first.gpus == 1 else f"; {what} of {where} together"
    return (
        f"{first.workload} on {where}, "
        f"{describe_scaling(first.scaling)}; {spread}; baseline {baseline}{together}"
    )


def _row(row: Row, quantities: Sequence[Quantity], ranges: bool) -> list[str]:
    runs = str(row["runs"]) if row["runs"] == row["cells"] else f"{row['runs']} of {row['cells']}"
    ratio: str = "–" if pd.isna(row["ratio"]) else format(row["ratio"], ".3f")
    values = [_value(row, quantity, ranges) for quantity in quantities]
    return [label_of(row["strategy"]), runs, ratio, *values, row["parity"]]


def _value(row: Row, quantity: Quantity, ranges: bool) -> str:
    median = format_number(row[quantity.column] * quantity.scale)
    if pd.isna(row[quantity.column]) or row["runs"] == 1 or not ranges:
        return median
    low, high = (row[f"{quantity.column}_{end}"] * quantity.scale for end in ("min", "max"))
    return Detailed(median, f"{format_number(low)}, {format_number(high)}")


def _notes(group: pd.DataFrame, lacking: Sequence[str]) -> list[str]:
    notes = [f"Not measured here: {', '.join(lacking)}."] if lacking else []
    for row in group[group.outcomes != group.cells.astype(str) + " ok"].to_dict("records"):
        notes.append(f"{label_of(row['strategy'])}: {row['outcomes']}.")
    faulty = group[group.faulty > 0].to_dict("records")
    for title, chosen in (
        ("Excluded for a device fault", [row for row in faulty if not row["faulty_shown"]]),
        (
            "Included in spite of a device fault, because no other run is ok",
            [row for row in faulty if row["faulty_shown"]],
        ),
    ):
        if chosen:
            cells = ", ".join(
                f"{row['faulty']} of {row['cells']} cells of {label_of(row['strategy'])}"
                for row in chosen
            )
            notes.append(f"{title}: {cells}.")
    for row in group[~group.parity.isin(["passed", "unsupported"])].to_dict("records"):
        verdict = "not checked yet" if row["parity"] == "missing" else row["parity"]
        notes.append(
            f"{label_of(row['strategy'])}: parity {verdict}; not proven to be the same training."
        )
    return notes
