"""From one row a cell to one row a strategy: the runs of a strategy side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from shardmark.quantities import SUMMARY, THROUGHPUT, Quantity, label_on, written
from shardmark.statistics.eligibility import ADMITTED, GROUP, counted, why_left_out


def read_cells(path: str) -> pd.DataFrame:
    """cells.csv, its text columns as text where they are empty.

    Raises:
        OSError: if it cannot be read.
    """
    text = ["validity_reasons", "device_names", "device_uuids", "hosts", "failure"]
    cells = pd.read_csv(path, dtype=dict.fromkeys(text, str))
    cells[text] = cells[text].fillna("")
    return cells


def summarise(cells: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row for each workload, regime, GPU count and strategy.

    Args:
        cells: columns as ``result_tables.CellRow``.
        baseline: the strategy that throughputs are divided by.

    Returns:
        The group's columns and the strategy; ``cells`` of it, ``runs`` that count (the n of every
        figure, ``eligibility.counted``), ``suspect`` ones among all that are ok, ``suspects_shown``
        among the runs, ``comparable``, whether the runs take part in comparisons, ``outcomes`` in
        words, ``parity``; for each quantity its median over the runs under the column's name, and
        ``<column>_min``, ``<column>_max``; ``ratio``, the median throughput over the baseline's in
        the same group, where both are comparable.
    """
    rows = [
        dict(zip([*GROUP, "strategy"], key, strict=True)) | _strategy(part)
        for key, part in cells.groupby([*GROUP, "strategy"], sort=False)
    ]
    summary = pd.DataFrame(rows)
    if summary.empty:
        return summary
    speed = THROUGHPUT.column
    comparable = summary[speed].where(summary.comparable)
    with_it = summary.assign(comparable_speed=comparable)
    of_baseline = with_it[with_it.strategy == baseline].set_index(GROUP).comparable_speed
    keys = pd.MultiIndex.from_frame(summary[GROUP])
    summary["ratio"] = comparable.to_numpy() / of_baseline.reindex(keys).to_numpy()
    return summary


def _strategy(part: pd.DataFrame) -> dict[str, Any]:
    runs, ok = counted(part), part[part.status == "ok"]
    found: dict[str, Any] = {
        "device": part.device.iloc[0],
        "cells": len(part),
        "runs": len(runs),
        "suspect": int(ok.validity.isin(["suspect", ADMITTED]).sum()),
        "suspects_shown": int(runs.validity.isin(["suspect", ADMITTED]).sum()),
        "comparable": bool((why_left_out(runs) == "").any()),
        "outcomes": ", ".join(
            f"{count} {status}" for status, count in part.status.value_counts().items()
        ),
        "parity": part.parity.iloc[0],
    }
    for quantity in SUMMARY:
        values = runs[quantity.column].astype(float)
        found |= {
            quantity.column: values.median(),
            f"{quantity.column}_min": values.min(),
            f"{quantity.column}_max": values.max(),
        }
    return found


@dataclass(frozen=True)
class Table:
    """A table as it is shown: every value written out.

    Attributes:
        caption: what it compares, the baseline and the number of runs.
        headings: one a column, with units; the first column holds names.
        rows: one list of values a row.
        notes: reservations that belong under it.
    """

    caption: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables_of(
    summary: pd.DataFrame,
    baseline: str,
    labels: Mapping[str, str],
    *,
    ranges: bool = True,
) -> Iterator[Table]:
    """One table for each workload, regime and GPU count, GPU counts ascending.

    Args:
        summary: as ``summarise`` gives it.
        baseline: named in each caption.
        labels: what a reader calls each strategy, in the order of the rows.
        ranges: whether to write the smallest and the largest run beside the median.
    """
    place = {name: index for index, name in enumerate(labels)}
    # Workloads as the matrix has them, GPU counts ascending as everywhere else.
    workloads = summary.groupby("workload", sort=False)
    groups = (group for _, own in workloads for _, group in own.groupby(GROUP, sort=True))
    for group in groups:
        group = group.sort_values("strategy", key=lambda names: names.map(place))
        device = group.device.iloc[0]
        shown = [label_on(quantity, device) for quantity in SUMMARY]
        shown = [quantity for quantity in shown if group[quantity.column].notna().any()]
        unmeasured = [q.label.lower() for q in SUMMARY if group[q.column].isna().all()]
        runs = sorted({count for count in group.runs if count})
        yield Table(
            caption=_caption(group.iloc[0], labels[baseline], runs),
            headings=[
                "Strategy",
                "Runs",
                f"Throughput / {labels[baseline]}",
                *[quantity.heading for quantity in shown],
                "Parity",
            ],
            rows=[_row(row, shown, labels, ranges) for row in group.to_dict("records")],
            notes=_notes(group, unmeasured, labels),
        )


def _caption(first: pd.Series, baseline: str, runs: Sequence[int]) -> str:
    unit = "GPU" if first.device == "cuda" else "process"
    plural = "" if first.gpus == 1 else "s" if unit == "GPU" else "es"
    regime = {"strong": "fixed global batch", "weak": "fixed batch a replica"}[first.scaling]
    match runs:
        case []:
            spread = "no run is ok"
        case [1]:
            spread = "one run each (n = 1)"
        case [n]:
            spread = f"median [smallest, largest] of n = {n} runs"
        case [fewest, *_, most]:
            spread = f"median [smallest, largest] of n = {fewest} to {most} runs"
    return (
        f"{first.workload} on {first.gpus} {unit}{plural}, {first.scaling} scaling ({regime}); "
        f"{spread}; baseline {baseline}"
    )


def _row(
    row: Mapping[Any, Any], shown: Sequence[Quantity], labels: Mapping[str, str], ranges: bool
) -> list[str]:
    runs = str(row["runs"]) if row["runs"] == row["cells"] else f"{row['runs']} of {row['cells']}"
    ratio = "–" if pd.isna(row["ratio"]) else f"{row['ratio']:.3f}"
    values = [_value(row, quantity, ranges) for quantity in shown]
    return [labels[row["strategy"]], runs, ratio, *values, row["parity"]]


def _value(row: Mapping[Any, Any], quantity: Quantity, ranges: bool) -> str:
    middle = row[quantity.column]
    if pd.isna(middle):
        return "–"
    shown = written(middle * quantity.scale)
    if row["runs"] == 1 or not ranges:
        return shown
    low, high = (row[f"{quantity.column}_{end}"] * quantity.scale for end in ("min", "max"))
    return f"{shown} [{written(low)}, {written(high)}]"


def _of_all(row: Mapping[Any, Any], labels: Mapping[str, str]) -> str:
    return f"{row['suspect']} of {row['cells']} cells of {labels[row['strategy']]}"


def _notes(group: pd.DataFrame, unmeasured: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    notes = []
    if unmeasured:
        notes.append(f"Not measured here: {', '.join(unmeasured)}.")
    for row in group[group.outcomes != group.cells.astype(str) + " ok"].to_dict("records"):
        notes.append(f"{labels[row['strategy']]}: {row['outcomes']}.")
    suspects = group[group.suspect > 0].to_dict("records")
    for title, chosen in (
        ("and left out", [row for row in suspects if not row["suspects_shown"]]),
        (
            "and compared all the same",
            [row for row in suspects if row["suspects_shown"] and row["comparable"]],
        ),
        (
            "and shown only since no other run is ok",
            [row for row in suspects if row["suspects_shown"] and not row["comparable"]],
        ),
    ):
        if chosen:
            notes.append(f"Suspect {title}: {', '.join(_of_all(row, labels) for row in chosen)}.")
    for row in group[~group.parity.isin(["passed", "unsupported"])].to_dict("records"):
        notes.append(
            f"{labels[row['strategy']]}: parity {row['parity']}; not shown to be the same training."
        )
    return notes
