"""Compare every strategy with the baseline, and rank the strategies."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.results.cell_rows import CellRow
from shardmark.results.csv_tables import read_csv
from shardmark.statistics.findings import write_findings


@one_message
def main() -> None:
    """Compare the cells of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of cells.csv")
    parser.add_argument("--baseline", required=True, help="strategy to compare with")
    parser.add_argument("--margin", type=float, required=True, help="of equivalence, as a share")
    arguments = parser.parse_args()
    cells = read_csv(arguments.tables / "cells.csv", CellRow)
    write_findings(cells, arguments.baseline, arguments.margin, arguments.tables)


if __name__ == "__main__":
    main()
