"""Draw how every planned cell of one workload ended, the missing and the stale ones included."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.config import Config
from shardmark.figures.drawing import save
from shardmark.figures.outcome_grid import outcome_figure
from shardmark.matrix.gaps import find_gaps
from shardmark.matrix.matrix_results import read_matrix
from shardmark.matrix.outcomes import status_signs
from shardmark.saved_config import read_config


def main() -> None:
    """Draw the grid of the command line's workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument("--workload", required=True, help="name of the workload")
    parser.add_argument("--output", type=Path, nargs="+", required=True, help=".svg, .pdf or .png")
    arguments = parser.parse_args()
    config: Config = arguments.config
    signs = status_signs(config, find_gaps(config), read_matrix(config).metrics)
    figure = outcome_figure(config, arguments.workload, signs)
    for path in arguments.output:
        save(figure, path)


if __name__ == "__main__":
    main()
