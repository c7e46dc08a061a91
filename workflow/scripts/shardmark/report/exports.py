"""What stands in each exported table of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from shardmark.config import Config, labels_of
from shardmark.matrix.failures import failures
from shardmark.matrix.gaps import find_gaps
from shardmark.matrix.matrix_results import read_matrix
from shardmark.matrix.outcomes import status_signs
from shardmark.report.decisions import decisions
from shardmark.report.export_names import TABLES
from shardmark.report.page_tables import (
    Settings,
    comparison_tables,
    grid,
    parity_table,
    scaling_table,
    settings_of,
)
from shardmark.report.summary import Table


def tables_to_export(
    config: Config,
    comparisons: pd.DataFrame,
    scaling: pd.DataFrame,
    verdicts: list[dict[str, Any]],
    root: Path = Path(),
) -> Mapping[str, list[Table]]:
    """The tables behind each name of ``TABLES`` but the summary.

    Args:
        config: the matrix.
        comparisons: comparisons.csv.
        scaling: scaling.csv.
        verdicts: verdict.json.
        root: the project's folder, where results/ stands.
    """
    gaps, metrics = find_gaps(config, root), read_matrix(config, root).metrics
    signs = status_signs(config, gaps, metrics)
    found: dict[str, list[Table]] = {name: [] for name in TABLES if name != "summary"}
    for name in config.matrix.workloads:
        own = [result for result in metrics if result.cell.workload == name]
        mine = [verdict for verdict in verdicts if verdict["workload"] == name]
        speedups = scaling_table(config, scaling[scaling.workload == name])
        compared = comparison_tables(config, comparisons[comparisons.workload == name])
        found["verdict"] += [_of(name, decisions(config, mine))] if mine else []
        found["comparisons"] += [table for both in compared for table in both if table.rows]
        found["scaling"].append(_of(name, speedups))
        found["outcomes"].append(grid(config, name, signs))
        found["parity"].append(parity_table(config, name, root))
        certified = settings_of(own, labels_of(config), config.baseline)
        found["certificate"] += [_of(name, settings_table(one)) for one in certified]
    found["failures"].append(failures_table(failures(metrics, gaps)))
    return found


def settings_table(settings: Settings) -> Table:
    """A certificate: what differs and why, what nothing explains first; then what is the same."""
    return Table(
        caption=f"{settings.where}, read back from the live objects, and recorded around them",
        headings=["Setting", *settings.labels, "Why"],
        rows=[
            [
                row.setting,
                *[row.values[name] for name in settings.names],
                "; ".join(f"not explained: {why}" for why in row.flagged.values())
                or row.reason
                or ("the same for all" if row.verdict == "same" else ""),
            ]
            for row in [*settings.different, *settings.same]
        ],
        notes=[],
    )


def failures_table(rows: list[dict[str, str]]) -> Table:
    """Every cell without a good result, and why."""
    return Table(
        caption="Cells that did not end well, or that a rule of validity marks",
        headings=["Cell", "Outcome", "Where", "Reason"],
        rows=[[row["cell"], row["status"], row["where"], row["reason"]] for row in rows],
        notes=[],
    )


def tidy(tables: list[Table]) -> pd.DataFrame:
    """The rows of several tables as one, each with the caption of its own; no rows leave a head."""
    headings = dict.fromkeys(heading for table in tables for heading in table.headings)
    rows = [
        {"table": table.caption} | dict(zip(table.headings, row, strict=True))
        for table in tables
        for row in table.rows
    ]
    return pd.DataFrame(rows, columns=["table", *headings])


def _of(workload: str, table: Table) -> Table:
    return replace(table, caption=f"{workload}: {table.caption}")
