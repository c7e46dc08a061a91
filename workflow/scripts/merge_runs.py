"""Join the results of several machines or runs into one run.

    python workflow/scripts/merge_runs.py --into results/joined results/monday results/tuesday

This copies the cells to results/joined/, each once, and does not change the sets. If the sets
conflict, it names the conflicts and writes nothing. A conflict is a workload, strategy or GPU count
that does not mean the same in all sets, or a cell with different results. To make one report of the
merged sets, run `snakemake report` with a configuration whose `run` is joined; this script prints
such an overlay.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from shardmark.cells import Cell
from shardmark.command import one_message
from shardmark.config.values import RunName
from shardmark.errors import UserError
from shardmark.escaping import for_terminal
from shardmark.results.merge import Merged, merge, write_merged
from shardmark.results.result_set import read_result_set
from shardmark.strategies import STRATEGIES

MOST_NAMED = 5


def summary(merged: Merged, sets: int, folder: Path) -> str:
    """Return a few lines about what was merged."""
    lines = [f"{len(merged.results)} cells of {sets} set{'' if sets == 1 else 's'} are in {folder}"]
    for title, texts in (
        ("counted once, though in several sets", merged.duplicates),
        ("conflicts", merged.conflicts),
        (
            "versions that differ; a comparison does not mix those of torch, driver or code",
            merged.notes,
        ),
    ):
        lines += [f"{title}: {len(texts)}"] * bool(texts)
        lines += [f"  {text}" for text in texts[:MOST_NAMED]]
        if len(texts) > MOST_NAMED:
            lines.append(f"  and {len(texts) - MOST_NAMED} more, in {folder / 'merged.json'}")
    cells = [result.metrics.cell for result in merged.results]
    lines += [
        "their report: snakemake report, with the sets' configuration and an overlay that says",
        textwrap.indent(_overlay(folder.name, cells), "  "),
    ]
    return "\n".join(lines)


def _overlay(run: str, cells: Sequence[Cell]) -> str:
    """Return an overlay, in YAML, that plans the workloads, strategies and seeds of the cells."""
    parts: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        parts.setdefault((cell.workload, cell.gpus), []).append(cell)
    only = [
        {
            "workloads": [workload],
            "gpus": [gpus],
            "strategies": _strategies(part),
            "seeds": sorted({cell.seed for cell in part}),
        }
        for (workload, gpus), part in sorted(parts.items())
    ]
    matrix = {
        "workloads": sorted({cell.workload for cell in cells}),
        "strategies": _strategies(cells),
        "gpus": sorted({cell.gpus for cell in cells}, reverse=True),
        "seeds": sorted({cell.seed for cell in cells}),
        "only": only,
    }
    overlay = {"run": run, "matrix": matrix}
    return yaml.safe_dump(
        overlay, sort_keys=False, default_flow_style=None, width=sys.maxsize
    ).strip()


def _strategies(cells: Iterable[Cell]) -> list[str]:
    """Return the strategies in the order of a page: those of shardmark first."""
    names = {cell.strategy for cell in cells}
    return [*(name for name in STRATEGIES if name in names), *sorted(names - STRATEGIES.keys())]


def check_run_name(name: str) -> None:
    """Check that a folder's name can be the name of a run.

    Raises:
        UserError: if it cannot.
    """
    try:
        TypeAdapter(RunName).validate_python(name)
    except ValidationError as error:
        rule = error.errors()[0]["msg"]
        raise UserError(f"--into: {name!r} cannot be the name of a run: {rule}") from None


def check_outside(folder: Path, sets: Sequence[Path]) -> None:
    """Check that the merged run does not go into one of the sets, which merging must not change.

    Raises:
        UserError: if it does.
    """
    for one in sets:
        if folder.resolve().is_relative_to(one.resolve()):
            raise UserError(f"--into: {folder} is in {one}, a set to merge; name another folder")


@one_message
def main() -> None:
    """Merge the result sets named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path, nargs="+", help="folders of runs, results/<run>")
    parser.add_argument("--into", type=Path, required=True, help="folder of the merged run")
    parser.add_argument(
        "--prefer",
        choices=["none", "first", "last"],
        default="none",
        help="which of a cell's different results to take; none, the default, refuses",
    )
    arguments = parser.parse_args()
    check_run_name(arguments.into.name)
    check_outside(arguments.into, arguments.sets)
    sets = [read_result_set(folder) for folder in arguments.sets]
    merged = merge(sets, arguments.prefer)
    write_merged(merged, arguments.into, arguments.sets)
    print(for_terminal(summary(merged, len(sets), arguments.into)))


if __name__ == "__main__":
    main()
