"""The tables that ``compare`` writes: comparisons.csv, scaling.csv and verdict.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shardmark.escaping import csv_text
from shardmark.files import write_text
from shardmark.results.csv_tables import read_csv
from shardmark.results.table_checksums import record_checksums
from shardmark.statistics.comparison_rows import ComparisonRow, ScalingRow
from shardmark.statistics.comparisons import compare
from shardmark.statistics.scaling import scaling_of
from shardmark.statistics.standing import VERDICTS, Verdict
from shardmark.statistics.verdict import verdicts


@dataclass(frozen=True)
class Findings:
    """What the statistics say about a matrix.

    Attributes:
        comparisons: columns as ``ComparisonRow``.
        scaling: columns as ``ScalingRow``.
        verdicts: one per workload, scaling and GPU count.
    """

    comparisons: pd.DataFrame
    scaling: pd.DataFrame
    verdicts: list[Verdict]


def find(cells: pd.DataFrame, baseline: str, margin: float) -> Findings:
    """Compare all strategies with the baseline, and rank them.

    Args:
        cells: columns as ``cell_rows.CellRow``.
        baseline: the strategy that the others are compared with.
        margin: the margin of equivalence, as a share of the ratio.

    Raises:
        UserError: if a cell is in the table twice.
    """
    comparisons = compare(cells, baseline, margin)
    return Findings(
        comparisons=comparisons,
        scaling=scaling_of(cells),
        verdicts=verdicts(cells, comparisons, baseline, margin),
    )


def write_findings(findings: Findings, folder: Path) -> None:
    """Write the three files."""
    write_text(folder / "comparisons.csv", csv_text(findings.comparisons))
    write_text(folder / "scaling.csv", csv_text(findings.scaling))
    write_text(folder / "verdict.json", VERDICTS.dump_json(findings.verdicts, indent=1).decode())
    files = ("comparisons.csv", "scaling.csv", "verdict.json")
    record_checksums([folder / file for file in files], folder / "compare.sha256")


def read_findings(folder: Path) -> Findings:
    """Read what ``write_findings`` wrote.

    Raises:
        OSError: if a file cannot be read.
    """
    comparisons = read_csv(folder / "comparisons.csv", ComparisonRow)
    scaling = read_csv(folder / "scaling.csv", ScalingRow)
    verdicts = VERDICTS.validate_json((folder / "verdict.json").read_bytes())
    return Findings(comparisons, scaling, verdicts)
