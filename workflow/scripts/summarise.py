"""Put the strategies side by side: CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.escaping import csv_text
from shardmark.files import write_text
from shardmark.report.summary_table import summarise, summary_tables
from shardmark.report.table import to_latex, to_markdown, to_text
from shardmark.results.cell_rows import CellRow
from shardmark.results.csv_tables import read_csv
from shardmark.results.table_checksums import record_checksums
from shardmark.statistics.comparison_rows import ComparisonRow


@one_message
def main() -> None:
    """Summarise the table named on the command line."""
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
    texts = {
        "summary.csv": csv_text(summary),
        "summary.md": to_markdown(tables),
        "summary.tex": to_latex(tables),
        "summary.txt": to_text(medians),
    }
    for name, text in texts.items():
        write_text(arguments.tables / name, text)
    files = [arguments.tables / name for name in texts]
    record_checksums(files, arguments.tables / "summarise.sha256")


if __name__ == "__main__":
    main()
