"""Put the strategies side by side: CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.report.summary_table import summarise, summary_tables
from shardmark.report.table import to_latex, to_markdown, to_text
from shardmark.results.cell_rows import CellRow
from shardmark.results.csv_tables import read_csv
from shardmark.statistics.comparison_rows import ComparisonRow


def main() -> None:
    """Summarise the table of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tables", type=Path, required=True, help="folder of cells.csv and comparisons.csv"
    )
    parser.add_argument("--baseline", required=True, help="strategy to compare with")
    arguments = parser.parse_args()
    cells = read_csv(arguments.tables / "cells.csv", CellRow)
    comparisons = read_csv(arguments.tables / "comparisons.csv", ComparisonRow)
    summary = summarise(cells, comparisons, arguments.baseline)
    tables = list(summary_tables(summary, arguments.baseline))
    medians = list(summary_tables(summary, arguments.baseline, ranges=False))
    for name, text in (
        ("summary.csv", summary.to_csv(index=False)),
        ("summary.md", to_markdown(tables)),
        ("summary.tex", to_latex(tables)),
        ("summary.txt", to_text(medians)),
    ):
        write_text(arguments.tables / name, text)


if __name__ == "__main__":
    main()
