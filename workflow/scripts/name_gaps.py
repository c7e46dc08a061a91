"""Say which cells of a matrix a report made now lacks, or has from an earlier definition."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shardmark.cells import Cell
from shardmark.config import Config
from shardmark.matrix.gaps import find_gaps
from shardmark.matrix.table_checksums import edited_tables
from shardmark.saved_config import read_config

NAMED = 5


def some(cells: Sequence[Cell]) -> str:
    """The first cells by name, and how many more there are."""
    names = ", ".join(cell.title for cell in cells[:NAMED])
    more = len(cells) - NAMED
    return f"{names} and {more} more" if more > 0 else names


def main() -> None:
    """Print the gaps of the matrix of the command line; exit 1 where there is no result at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    config: Config = parser.parse_args().config
    gaps = find_gaps(config)
    for _, reason in gaps.refused:
        print(f"refused: {reason}")
    if not gaps.reported:
        sys.exit(
            f"results/{config.run} has no cell to report; run the matrix first: "
            "snakemake --profile profiles/local"
        )
    print(f"{gaps.reported} of {gaps.planned} cells have a result")
    if gaps.missing:
        print(f"missing: {some(gaps.missing)}")
    if gaps.stale:
        print(f"stale: {some([cell for cell, _ in gaps.stale])}")
    for path in edited_tables(Path("results", config.run, "tables")):
        print(f"edited: {path}; it is made anew")


if __name__ == "__main__":
    main()
