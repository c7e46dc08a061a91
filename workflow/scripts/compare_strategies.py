"""Compare every strategy to the baseline, and say what the comparisons allow to be said."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.config import Config, labels_of
from shardmark.report.summary import read_cells
from shardmark.statistics.comparisons import compare
from shardmark.statistics.eligibility import as_compared
from shardmark.statistics.scaling import scaling_of
from shardmark.statistics.standing import Verdict
from shardmark.statistics.verdict import verdicts


def compare_all(
    cells: pd.DataFrame, config: Config
) -> tuple[pd.DataFrame, pd.DataFrame, list[Verdict]]:
    """The comparisons, the scaling and the verdicts of a matrix.

    Args:
        cells: columns as ``result_tables.CellRow``.
        config: the matrix.

    Raises:
        UserError: if a cell stands in the table twice.
    """
    margin, baseline = config.report.margin, config.baseline
    cells = as_compared(cells, config.validity.compare_suspect)
    labels = labels_of(config)
    # In sentences and reasons a strategy goes by the name that the tables and figures give it.
    named = cells.assign(strategy=cells.strategy.map(labels))
    compared = compare(named, labels[baseline], margin)
    words = verdicts(named, compared, labels[baseline], margin)
    name_of = {label: name for name, label in labels.items()}
    columns = ["strategy", "baseline"]
    compared[columns] = compared[columns].replace(name_of)
    return compared, scaling_of(cells), words


@one_message
def main() -> None:
    """Compare the cells of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True, help="cells.csv")
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--comparisons", type=Path, required=True, help="CSV to write")
    parser.add_argument("--scaling", type=Path, required=True, help="CSV to write")
    parser.add_argument("--verdict", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    comparisons, scaling, words = compare_all(read_cells(arguments.cells), config)
    write_text(arguments.comparisons, comparisons.to_csv(index=False))
    write_text(arguments.scaling, scaling.to_csv(index=False))
    write_text(arguments.verdict, json.dumps([found.as_dict() for found in words], indent=1))


if __name__ == "__main__":
    main()
