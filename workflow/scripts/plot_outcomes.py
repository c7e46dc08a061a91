"""Draw how every planned cell of one workload ended, the missing and the stale ones included."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.config import Config
from shardmark.figures.drawing import save
from shardmark.figures.outcome_grid import outcome_figure
from shardmark.matrix.gaps import find_gaps
from shardmark.matrix.matrix_results import read_matrix
from shardmark.matrix.outcomes import status_signs


@one_message
def main() -> None:
    """Draw the grid of the command line's workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--workload", required=True, help="name of the workload")
    parser.add_argument("--output", type=Path, nargs="+", required=True, help=".svg, .pdf or .png")
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    signs = status_signs(config, find_gaps(config), read_matrix(config).metrics)
    figure = outcome_figure(config, arguments.workload, signs)
    for path in arguments.output:
        save(figure, path)


if __name__ == "__main__":
    main()
