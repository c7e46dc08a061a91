"""Draw figures of one workload."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from shardmark.command import one_message
from shardmark.figures.catalogue import draw
from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import save, write_words
from shardmark.files import write_text
from shardmark.report.contents import COMPARED
from shardmark.results.collected import read_tables
from shardmark.statistics.findings import read_findings


def draw_all(data: Data, paths: Iterable[Path]) -> dict[str, str]:
    """Draw each figure and write it in the requested formats.

    Returns:
        By name, why a figure could not be drawn. Its file contains the reason instead.
    """
    not_drawn = {}
    figures = {}
    for path in paths:
        name = path.stem
        if name not in figures:
            try:
                figures[name] = draw(name, data)
            except NothingToDraw as reason:
                not_drawn[name] = str(reason)
                figures[name] = write_words(f"Not drawn: {reason}", data)
        save(figures[name], path)
    return not_drawn


@one_message
def main() -> None:
    """Draw the figures named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--workload", required=True, help="name of the workload")
    parser.add_argument("--width-mm", type=float, required=True, help="width of a figure, mm")
    parser.add_argument(
        "--not-drawn", type=Path, required=True, help="JSON to write: why which figure is missing"
    )
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, help="<figure>.svg, .pdf or .png"
    )
    arguments = parser.parse_args()
    compared = any(path.stem in COMPARED for path in arguments.output)
    data = Data.of(
        arguments.workload,
        read_tables(arguments.tables),
        arguments.width_mm,
        read_findings(arguments.tables) if compared else None,
    )
    not_drawn = draw_all(data, arguments.output)
    write_text(arguments.not_drawn, json.dumps(not_drawn, indent=1))


if __name__ == "__main__":
    main()
