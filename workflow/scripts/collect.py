"""Collect every result of a matrix into tables, which all later steps read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shardmark.cells import key_title, search_title
from shardmark.command import one_message
from shardmark.config.saved import read_config
from shardmark.errors import UserError
from shardmark.results.cell_rows import CellRow
from shardmark.results.collected import collect, write_tables
from shardmark.results.largest_batch_rows import WITHOUT_RESULT, LargestBatchRow
from shardmark.results.outcome import Outcome

NAMED = 5


def describe_gaps(cells: Sequence[CellRow]) -> list[str]:
    """Say how many cells have a result, and which have none or one made by earlier code.

    Raises:
        UserError: if no cell has a result.
    """
    unsupported = [cell for cell in cells if cell.outcome == Outcome.UNSUPPORTED]
    reported = [cell for cell in cells if cell.status and cell not in unsupported]
    if not reported:
        run = cells[0].run
        others = [tables.parent.name for tables in sorted(Path("results").glob("*/tables"))]
        advice = (
            "run the matrix first, with the same --configfile: snakemake --profile profiles/local"
        )
        if there := [name for name in others if name != run]:
            advice = f"there are results of {', '.join(there)}: add the --configfile that made them"
        raise UserError(f"results/{run} has no cell to report; {advice}")
    possible = len(cells) - len(unsupported)
    lines = [f"{len(reported)} of {possible} cells have a result"]
    if unsupported:
        lines.append(f"unsupported: {len(unsupported)} more cannot run here")
    for title, chosen in (
        ("missing", [cell for cell in cells if cell.outcome == Outcome.MISSING]),
        ("stale", [cell for cell in cells if cell.stale]),
    ):
        names = [key_title(c.workload, c.strategy, c.gpus, c.seed) for c in chosen]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines += [f"{title}: {', '.join(names[:NAMED])}{more}"] if names else []
    return lines


def describe_searches(rows: Sequence[LargestBatchRow]) -> list[str]:
    """Say how many searches for the largest batch have a result, and why others have none."""
    possible = [row for row in rows if row.status != "unsupported"]
    if not possible:
        return []
    lacking = [row for row in possible if row.status in WITHOUT_RESULT]
    counts = f"{len(possible) - len(lacking)} of {len(possible)}"
    return [f"{counts} searches for the largest batch have a result"] + [
        f"{row.status}: {search_title(row.workload, row.strategy, row.gpus)}: {row.reason}"
        for row in lacking
    ]


@one_message
def main() -> None:
    """Collect the matrix named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--tables", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    collected = collect(arguments.config)
    for row in collected.failures:
        if row.outcome == Outcome.REFUSED:
            print(f"refused: {row.reason}")
    gaps = [*describe_gaps(collected.cells), *describe_searches(collected.largest_batches)]
    print(*gaps, sep="\n")
    write_tables(collected, arguments.tables)


if __name__ == "__main__":
    main()
