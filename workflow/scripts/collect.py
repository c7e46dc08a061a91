"""Gather every result of a matrix into two tidy tables: one row a cell, one row an epoch."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.cells import parity_case
from shardmark.command import one_message
from shardmark.config import Config
from shardmark.matrix.matrix_results import read_matrix
from shardmark.matrix.result_tables import (
    CellRow,
    EpochRow,
    cell_row,
    epoch_rows,
    parity_verdict,
    to_csv,
)


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


@one_message
def main() -> None:
    """Collect the matrix of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--cells", type=Path, required=True, help="CSV to write, one row a cell")
    parser.add_argument("--epochs", type=Path, required=True, help="CSV to write, a row an epoch")
    arguments = parser.parse_args()
    cells, epochs, refused = collect(Config.model_validate_json(arguments.config))
    for reason in refused:
        print(f"refused: {reason}")
    write_text(arguments.cells, to_csv(CellRow, cells))
    write_text(arguments.epochs, to_csv(EpochRow, epochs))
    print(f"{len(cells)} cells, {len(epochs)} epochs")


if __name__ == "__main__":
    main()
