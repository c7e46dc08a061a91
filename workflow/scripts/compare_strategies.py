"""Compare every strategy with the baseline, and rank the strategies."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardmark.errors import UserError
from shardmark.results.cell_rows import CellRow
from shardmark.results.csv_tables import read_csv
from shardmark.statistics.findings import find, write_findings


def main() -> None:
    """Compare the cells of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of cells.csv")
    parser.add_argument("--baseline", required=True, help="strategy to compare with")
    parser.add_argument("--margin", type=float, required=True, help="of equivalence, as a share")
    arguments = parser.parse_args()
    cells = read_csv(arguments.tables / "cells.csv", CellRow)
    try:
        findings = find(cells, arguments.baseline, arguments.margin)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    write_findings(findings, arguments.tables)


if __name__ == "__main__":
    main()
