"""Draw one group of the figures of a workload."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from shardmark.command import one_message
from shardmark.figures.catalogue import draw
from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import save
from shardmark.files import write_text
from shardmark.report.contents import FIGURE_KINDS, GROUPS, NOT_DRAWN
from shardmark.results.collected import read_tables
from shardmark.statistics.findings import read_findings
from shardmark.strategies import use_labels


def draw_all(
    data: Data,
    folder: Path,
    names: Iterable[str],
    kinds: Iterable[str] = FIGURE_KINDS,
) -> dict[str, str]:
    """Draw each figure that can be drawn and write it in each format.

    Returns:
        By name, why a figure could not be drawn; it has no file. Also written to the folder.
    """
    not_drawn = {}
    for name in names:
        try:
            figure = draw(name, data)
        except NothingToDraw as reason:
            not_drawn[name] = str(reason)
            continue
        for kind in kinds:
            save(figure, folder / f"{name}.{kind}")
    write_text(folder / f"{NOT_DRAWN}.json", json.dumps(not_drawn, indent=1))
    return not_drawn


@one_message
def main() -> None:
    """Draw the figures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--workload", required=True, help="name of the workload")
    parser.add_argument("--group", required=True, choices=GROUPS, help="which figures")
    parser.add_argument("--width-mm", type=float, required=True, help="width of a figure, mm")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    tables = read_tables(arguments.tables)
    findings = read_findings(arguments.tables) if arguments.group == "compared" else None
    data = Data.of(arguments.workload, tables, arguments.width_mm, findings)
    with use_labels(tables.record.labels):
        draw_all(data, arguments.output, GROUPS[arguments.group])


if __name__ == "__main__":
    main()
