"""The table of the first screen: one row per strategy, fastest first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from shardmark.lanes import LANE_MEANINGS, LANES
from shardmark.quantities import describe_gpus, format_number, percent
from shardmark.report.sentences import explain
from shardmark.report.table import Detailed, Table
from shardmark.results.cell_rows import QUANTITIES
from shardmark.results.exclusion import describe_absence
from shardmark.statistics.eligibility import counted
from shardmark.statistics.findings import Findings
from shardmark.strategies import label_of

# The table prices a training of so many million items, at so many dollars per GPU-hour. A reader
# can edit both numbers on the page.
MILLION_ITEMS = 1000
ENERGY = QUANTITIES["energy_per_item_j"]
PRICE_PER_HOUR = 2.5
DASH = "–"
_MEDIANS = [
    "items_per_s",
    "memory_used_peak_bytes",
    "memory_capacity_bytes",
    "energy_per_item_j",
    "peak_share_pct",
    "hardware_share_pct",
    "datasheet_share_pct",
]


def overview_tables(
    cells: pd.DataFrame, findings: Findings, baseline: str
) -> list[tuple[str, Table]]:
    """Return the table of each GPU count, the largest first, with the count in words.

    A strategy without a run that counts comes last, because it cannot be ranked.

    Args:
        cells: rows of cells.csv of one workload.
        findings: results of ``find``; rows of other workloads are ignored.
        baseline: the strategy that the others are compared with.
    """
    device = cells.device.iloc[0]
    return [
        (
            describe_gpus(device, count),
            _table(cells[cells.gpus == count], findings, baseline, device),
        )
        for count in sorted(cells.gpus.unique(), reverse=True)
    ]


def _table(cells: pd.DataFrame, findings: Findings, baseline: str, device: str) -> Table:
    workload, count, unit = cells.workload.iloc[0], cells.gpus.iloc[0], cells.unit.iloc[0]
    runs = counted(cells).groupby("strategy")
    medians = runs[_MEDIANS].median()
    compared, scaling = (
        table[(table.workload == workload) & (table.gpus == count)].set_index("strategy")
        for table in (findings.comparisons, findings.scaling)
    )
    compared = compared[compared.family == "primary"]
    speeds = _speeds(medians.items_per_s, compared.ratio, baseline).sort_values(ascending=False)
    used = set(cells[cells.excluded == ""].strategy)
    fewest = scaling.reference_gpus.min()
    names = [
        *sorted(speeds.index, key=lambda name: name not in used),
        *(name for name in cells.strategy.unique() if name not in speeds),
    ]
    rows = []
    for name in names:
        runs_of_row = cells[cells.strategy == name]
        measured: Mapping[Any, Any] = (
            medians.loc[name] if name in speeds else dict.fromkeys(_MEDIANS)
        )
        row = _find_row(compared, name)
        per_gpu = None if measured["items_per_s"] is None else measured["items_per_s"] / count
        rows.append(
            {
                "Strategy": label_of(name),
                "Lane": LANES[runs_of_row.lane.iloc[0]],
                _per_gpu(device, unit): format_number(per_gpu),
                f"vs {label_of(baseline)}": "baseline" if name == baseline else _ratio(row),
                "Efficiency (%)": _efficiency(_find_row(scaling, name), fewest),
                # The probe of a CPU that other programs use is no peak.
                "MFU (%)": _mfu(measured) if device == "cuda" else DASH,
                "HFU (%)": _hfu(measured) if device == "cuda" else DASH,
                _memory_heading(device): _memory(measured),
                ENERGY.of(unit).heading: format_number(measured[ENERGY.column], 3),
                **(_price(per_gpu) if device == "cuda" else {}),
                "Verdict": _verdict(name == baseline, row, runs_of_row),
                "Runs": _runs(runs_of_row, row),
            }
        )
    headings = [
        heading
        for heading in rows[0]
        if heading == "Strategy" or {row[heading] for row in rows} - {DASH, "baseline"}
    ]
    lanes = {row["Lane"] for row in rows}
    if len(lanes) == 1:
        headings.remove("Lane")
    return Table(
        caption=_caption(cells, lanes, headings, describe_gpus(device, count)),
        headings=headings,
        rows=[[row[heading] for heading in headings] for row in rows],
    )


def _speeds(medians: pd.Series, ratios: pd.Series, baseline: str) -> pd.Series:
    """Return each strategy's ratio to the baseline, by which the rows are sorted.

    Without a comparison, it is the ratio of the medians.
    """
    return ratios.reindex(medians.index).fillna(medians / medians.get(baseline, 1.0))


def _per_gpu(device: str, unit: str) -> str:
    return f"{unit.capitalize()}/s per {'GPU' if device == 'cuda' else 'process'}"


def _memory_heading(device: str) -> str:
    return "Memory peak (GiB)" if device == "cuda" else "Memory of all processes (GiB)"


def _caption(cells: pd.DataFrame, lanes: set[str], headings: list[str], where: str) -> str:
    parts = [f"{cells.workload.iloc[0]} on {where}, medians over runs"]
    if len(lanes) == 1:
        parts.append(f"all rows: {lanes.pop()}")
    else:
        parts += [f"{lane}: {LANE_MEANINGS[lane]}" for lane in sorted(lanes, reverse=True)]
    if "MFU (%)" in headings:
        parts.append("MFU: FLOP/s as a share of the measured peak (small type: of the datasheet's)")
    if "HFU (%)" in headings:
        parts.append("HFU: with what activation checkpointing computes again")
    return "; ".join(parts)


def _find_row(table: pd.DataFrame, name: str) -> Mapping[Any, Any] | None:
    return table.loc[name].to_dict() if name in table.index else None


def _ratio(row: Mapping[Any, Any] | None) -> str:
    if row is None or pd.isna(row["ratio"]):
        return DASH
    if pd.isna(row["ci_low"]):
        return percent(row["ratio"])
    interval = f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"
    return Detailed(percent(row["ratio"]), interval)


def _efficiency(row: Mapping[Any, Any] | None, fewest: int) -> str:
    """Return the scaling efficiency, with its start unless that is ``fewest`` GPUs."""
    if row is None or row["gpus"] == row["reference_gpus"] or pd.isna(row["efficiency"]):
        return DASH
    text = f"{100 * row['efficiency']:.1f}"
    details = []
    if pd.notna(row["efficiency_low"]):
        low, high = 100 * row["efficiency_low"], 100 * row["efficiency_high"]
        details.append(f"{low:.1f} to {high:.1f}")
    if row["reference_gpus"] != fewest:
        details.append(f"from {row['reference_gpus']}")
    return Detailed(text, ", ".join(details)) if details else text


def _mfu(measured: Mapping[Any, Any]) -> str:
    shares = [measured[f"{peak}_share_pct"] for peak in ("peak", "datasheet")]
    if pd.isna(shares[0]):
        return DASH
    first, second = (f"{share:.1f}" for share in shares)
    return first if pd.isna(shares[1]) else Detailed(first, second)


def _hfu(measured: Mapping[Any, Any]) -> str:
    """The share with recomputation, where there is any."""
    share = measured["hardware_share_pct"]
    if pd.isna(share) or math.isclose(share, measured["peak_share_pct"]):
        return DASH
    return f"{share:.1f}"


def _memory(measured: Mapping[Any, Any]) -> str:
    used, capacity = measured["memory_used_peak_bytes"], measured["memory_capacity_bytes"]
    if pd.isna(used):
        return DASH
    text = f"{used / 2**30:.1f}"
    return text if pd.isna(capacity) else Detailed(text, f"of {capacity / 2**30:.0f}")


def _price(items_per_s: float | None) -> dict[str, str]:
    """Return GPU-hours and cost of the priced training, by heading."""
    if items_per_s is None or pd.isna(items_per_s):
        return {"GPU-hours": DASH, "Cost ($)": DASH}
    hours = MILLION_ITEMS * 1e6 / items_per_s / 3600
    return {
        "GPU-hours": format_number(hours, 3),
        "Cost ($)": format_number(hours * PRICE_PER_HOUR, 3),
    }


def _verdict(is_baseline: bool, row: Mapping[Any, Any] | None, runs_of_row: pd.DataFrame) -> str:
    if (runs_of_row.excluded != "").all():
        return describe_absence(runs_of_row)
    if is_baseline:
        return "baseline"
    if row is None:
        return DASH
    why = explain(row)
    if row["verdict"] in ("open", "not comparable"):
        return Detailed(row["verdict"], why) if why else row["verdict"]
    return Detailed(row["verdict"], row["tier"])


def _runs(runs_of_row: pd.DataFrame, row: Mapping[Any, Any] | None) -> str:
    """Return the number of compared runs, with that of their pairs if it is smaller."""
    used = len(runs_of_row[runs_of_row.excluded == ""])
    text = str(used) if used == len(runs_of_row) else f"{used} of {len(runs_of_row)}"
    if row is None or not row["paired"] or row["n"] >= used:
        return text
    return Detailed(text, f"({row['n']:.0f} pair{'' if row['n'] == 1 else 's'})")
