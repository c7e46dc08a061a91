"""The tables that ``compare`` writes: comparisons.csv, scaling.csv and verdict.json, twice."""

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
from shardmark.statistics.eligibility import include_excluded_runs
from shardmark.statistics.scaling import scaling_of
from shardmark.statistics.standing import VERDICTS, Verdict
from shardmark.statistics.verdict import verdicts

FILES = ("comparisons.csv", "scaling.csv", "verdict.json")
# The folder of the findings that count excluded runs, too.
WITH_EXCLUDED = "with_excluded"


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


def write_findings(cells: pd.DataFrame, baseline: str, margin: float, folder: Path) -> None:
    """Write two sets of findings: one without excluded runs, and one with them.

    The second is in the folder ``with_excluded`` inside the first's.

    Args:
        cells: columns as ``cell_rows.CellRow``.
        baseline: the strategy that the others are compared with.
        margin: the margin of equivalence, as a share of the ratio.
        folder: where the files are written.

    Raises:
        UserError: if a cell is in the table twice.
    """
    findings = find(cells, baseline, margin)
    _write(findings, folder)
    all_cells = include_excluded_runs(cells)
    if not all_cells.excluded.equals(cells.excluded):
        findings = find(all_cells, baseline, margin)
    _write(findings, folder / WITH_EXCLUDED)


def _write(findings: Findings, folder: Path) -> None:
    texts = (
        csv_text(findings.comparisons),
        csv_text(findings.scaling),
        VERDICTS.dump_json(findings.verdicts, indent=1).decode(),
    )
    files = [folder / name for name in FILES]
    for file, text in zip(files, texts, strict=True):
        write_text(file, text)
    record_checksums(files, folder / "compare.sha256")


def read_findings(folder: Path) -> Findings:
    """Read what ``write_findings`` wrote into a folder.

    Raises:
        OSError: if a file cannot be read.
    """
    comparisons = read_csv(folder / "comparisons.csv", ComparisonRow)
    scaling = read_csv(folder / "scaling.csv", ScalingRow)
    verdicts = VERDICTS.validate_json((folder / "verdict.json").read_bytes())
    return Findings(comparisons, scaling, verdicts)
