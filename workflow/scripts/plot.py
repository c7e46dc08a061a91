"""Draw the figures of one workload."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.config import Config, base_and_options, labels_of
from shardmark.figures.appearance import looks_of
from shardmark.figures.catalogue import draw
from shardmark.figures.drawing import Data, NothingToDraw, save, words
from shardmark.figures.side_files import DamagedFiles, steps_of, timelines_of
from shardmark.report.summary import read_cells
from shardmark.statistics.eligibility import as_compared, counted


def read_data(config: Config, workload: str, tables: Path, root: Path = Path()) -> Data:
    """What the figures of a workload are drawn from.

    Args:
        config: the matrix.
        workload: its name.
        tables: the folder with cells.csv, epochs.csv, scaling.csv and verdict.json.
        root: the project's folder, where the paths in cells.csv begin.
    """
    cells = read_cells(str(tables / "cells.csv"))
    epochs, scaling = (pd.read_csv(tables / name) for name in ("epochs.csv", "scaling.csv"))
    verdicts = json.loads((tables / "verdict.json").read_text())
    cells = as_compared(cells, config.validity.compare_suspect)
    mine, its_epochs, its_scaling = (
        table[table.workload == workload] for table in (cells, epochs, scaling)
    )
    shown = counted(mine)
    damaged: dict[str, str] = {}
    steps, timelines = pd.DataFrame(), {}
    try:
        steps = steps_of(shown, root)
    except DamagedFiles as reason:
        damaged["step_time"] = str(reason)
    try:
        timelines = timelines_of(shown, root)
    except DamagedFiles as reason:
        damaged["timeline"] = str(reason)
    labels = labels_of(config)
    name_of = {label: name for name, label in labels.items()}
    return Data(
        workload=workload,
        cells=mine,
        epochs=its_epochs,
        scaling=its_scaling,
        pareto={
            found["gpus"]: [name_of[label] for label in found["pareto"]]
            for found in verdicts
            if found["workload"] == workload
        },
        steps=steps,
        timelines=timelines,
        damaged=damaged,
        baseline=config.baseline,
        labels=labels,
        looks=looks_of(list(labels), {name: base_and_options(config, name)[0] for name in labels}),
        width_mm=config.report.figure_width_mm,
    )


def draw_all(data: Data, paths: Iterable[Path]) -> dict[str, str]:
    """Draw and write each figure in the formats asked for.

    Returns:
        Of each figure that cannot be drawn, by its name, the reason, which stands in its place.
    """
    not_drawn = {}
    figures = {}
    for path in paths:
        name = path.stem
        if name not in figures:
            try:
                if name in data.damaged:
                    raise NothingToDraw(data.damaged[name])
                figures[name] = draw(name, data)
            except NothingToDraw as reason:
                not_drawn[name] = str(reason)
                figures[name] = words(f"Not drawn: {reason}", data)
        save(figures[name], path)
    return not_drawn


@one_message
def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of cells.csv")
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--workload", required=True, help="name of the workload")
    parser.add_argument(
        "--not-drawn", type=Path, required=True, help="JSON to write: why which figure is missing"
    )
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, help="<figure>.svg, .pdf or .png"
    )
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    data = read_data(config, arguments.workload, arguments.tables)
    not_drawn = draw_all(data, arguments.output)
    write_text(arguments.not_drawn, json.dumps(not_drawn, indent=1))


if __name__ == "__main__":
    main()
