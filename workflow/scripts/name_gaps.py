"""Say which cells of a matrix a report made now lacks, or has from an earlier definition."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shardmark.cells import Cell
from shardmark.command import one_message
from shardmark.config import Config
from shardmark.matrix.gaps import find_gaps

NAMED = 5


def some(cells: Sequence[Cell]) -> str:
    """The first cells by name, and how many more there are."""
    names = ", ".join(cell.title for cell in cells[:NAMED])
    more = len(cells) - NAMED
    return f"{names} and {more} more" if more > 0 else names


@one_message
def main() -> None:
    """Print the gaps of the matrix of the command line; exit 1 where there is no result at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    config = Config.model_validate_json(parser.parse_args().config)
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


if __name__ == "__main__":
    main()
