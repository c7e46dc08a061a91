"""Gather every result of a matrix into two tidy tables: one row a cell, one row an epoch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.cells import parity_case
from shardmark.config import Config
from shardmark.errors import UserError
from shardmark.matrix.matrix_results import read_matrix
from shardmark.matrix.result_tables import (
    CellRow,
    EpochRow,
    cell_row,
    epoch_rows,
    parity_verdict,
    to_csv,
)
from shardmark.saved_config import read_config


def collect(config: Config, root: Path = Path()) -> tuple[list[CellRow], list[EpochRow], list[str]]:
    """The rows of all results that count, and why the others do not."""
    verdicts: dict[tuple[str, str, int], str] = {}
    cells: list[CellRow] = []
    epochs: list[EpochRow] = []
    results = read_matrix(config, root)
    for result in results.metrics:
        key = (result.cell.workload, result.cell.strategy, result.cell.gpus)
        if key not in verdicts:
            verdict = parity_verdict(parity_case(config, *key), root)
            verdicts[key] = verdict.status if verdict else "missing"
        cells.append(cell_row(result, verdicts[key]))
        epochs += epoch_rows(result)
    return cells, epochs, results.refused


def main() -> None:
    """Collect the matrix of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--cells", type=Path, required=True, help="CSV to write, one row a cell")
    parser.add_argument("--epochs", type=Path, required=True, help="CSV to write, a row an epoch")
    arguments = parser.parse_args()
    try:
        cells, epochs, refused = collect(arguments.config)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    for reason in refused:
        print(f"refused: {reason}")
    write_text(arguments.cells, to_csv(CellRow, cells))
    write_text(arguments.epochs, to_csv(EpochRow, epochs))
    print(f"{len(cells)} cells, {len(epochs)} epochs")


if __name__ == "__main__":
    main()
