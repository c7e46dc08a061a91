"""Draw the figures of one workload."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from shardmark.appearance import looks_of
from shardmark.config import Config, base_and_options, labels_of
from shardmark.figures import Data, draw, save
from shardmark.summary import read_cells


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True, help="cells.csv")
    parser.add_argument("--epochs", required=True, help="epochs.csv")
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--workload", required=True, help="name of the workload")
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, help="<figure>.svg, .pdf or .png"
    )
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    cells, epochs = read_cells(arguments.cells), pd.read_csv(arguments.epochs)
    labels = labels_of(config)
    data = Data(
        workload=arguments.workload,
        cells=cells[cells.workload == arguments.workload],
        epochs=epochs[epochs.workload == arguments.workload],
        baseline=config.baseline,
        labels=labels,
        looks=looks_of(list(labels), {name: base_and_options(config, name)[0] for name in labels}),
        width_mm=config.report.figure_width_mm,
    )
    figures = {}
    for path in arguments.output:
        if path.stem not in figures:
            figures[path.stem] = draw(path.stem, data)
        save(figures[path.stem], path)


if __name__ == "__main__":
    main()
