"""Run a cell again from its metrics.json alone, and compare the new result with the old one.

The new result is written to results/<run>/reruns/. The exit status is 1 if the outcome differs.

A metrics.json may name a set-up script, environment variables and a container image, and each of
them can run code. The program prints them and runs nothing until you agree with --yes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from run_cell import publish, run_cell
from shardmark.cells import Cell
from shardmark.command import one_message
from shardmark.config.schema import Cluster
from shardmark.errors import UserError
from shardmark.escaping import for_terminal
from shardmark.launching.scratch import scratch_folder
from shardmark.metrics import Metrics, read_metrics

# Fields of the result that may explain a difference.
CIRCUMSTANCES = (
    ("provenance", "git_commit"),
    ("provenance", "git_diff_sha256"),
    ("environment", "host"),
    ("environment", "driver"),
    ("environment", "versions"),
    ("environment", "variables"),
)


def figures_to_compare(metrics: Metrics) -> dict[str, float | None]:
    """The figures to compare; each name includes the unit."""
    throughput, efficiency = metrics.throughput, metrics.efficiency
    losses = metrics.loss.per_epoch if metrics.loss else []
    return {f"loss of epoch {index + 1}": loss for index, loss in enumerate(losses)} | {
        "final accuracy": metrics.accuracy.final if metrics.accuracy else None,
        "final test loss": metrics.test_loss.final if metrics.test_loss else None,
        f"{metrics.cell.definition.unit}/s": throughput.items_per_s if throughput else None,
        "step p50, ms": throughput.step_ms_p50 if throughput else None,
        "energy per item, J": efficiency.energy_per_item_j if efficiency else None,
        "memory, bytes": efficiency.memory_peak_bytes if efficiency else None,
    }


def compare(old: Metrics, new: Metrics) -> Iterator[str]:
    """Yield a comparison of the two results, line by line."""
    yield f"{'':24}{'then':>16}{'now':>16}{'change':>10}"
    yield f"{'status':24}{old.status:>16}{new.status:>16}"
    now = figures_to_compare(new)
    for name, before in figures_to_compare(old).items():
        after = now.get(name)
        change = f"{100 * (after / before - 1):+.2f} %" if before and after is not None else ""
        yield f"{name:24}{_number(before):>16}{_number(after):>16}{change:>10}"
    same_code = old.code_sha256 == new.code_sha256
    yield f"code: {'the same' if same_code else 'another'}"
    for section, key in CIRCUMSTANCES:
        before, after = (getattr(one, section).get(key) for one in (old, new))
        if before != after:
            yield f"{key}: {_difference(before, after)}"


def foreign_lines(cell: Cell) -> str:
    """What the file alone makes this machine run or use, as lines of text; empty if nothing."""
    site = cell.site
    lines = ["site.setup:", *site.setup.rstrip().split("\n")] if site.setup else []
    if site.environment:
        lines += ["site.environment:", *(f"{key}={val}" for key, val in site.environment.items())]
    if site.container is not None:
        lines += ["site.container:", site.container]
    if cell.own_code:
        lines += ["the code in:", *cell.own_code]
    return for_terminal("\n".join(f"  {line}" for line in lines))


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        changed = sorted(
            key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
        )
        return ", ".join(f"{key} {before.get(key)} -> {after.get(key)}" for key in changed)
    return f"{before} -> {after}"


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}; give a number of minutes above 0")
    return minutes


@one_message
def main() -> None:
    """Run the cell of the given metrics.json again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path, help="metrics.json of a cell")
    parser.add_argument(
        "--yes", action="store_true", help="run the file's set-up, variables, image and code"
    )
    parser.add_argument(
        "--stall-limit-minutes",
        type=_minutes,
        # A result does not contain its configuration's limits.
        default=Cluster.model_fields["stall_limit_minutes"].default,
        help="end the cell after this time without progress (default: %(default)g)",
    )
    arguments = parser.parse_args()
    try:
        old = read_metrics(arguments.metrics)
        cell = old.cell
        if foreign := foreign_lines(cell):
            print(f"{cell.title} runs on this machine with\n{foreign}", flush=True)
            if not arguments.yes:
                raise UserError(
                    "nothing was run; if you trust all of the above, repeat the command with "
                    "YES=1 (make) or --yes"
                )
        run = Path("results", cell.run)
        result = run / "reruns" / cell.folder.relative_to(run) / "metrics.json"
        with scratch_folder(result) as scratch:
            new = run_cell(cell, scratch, stall_s=60 * arguments.stall_limit_minutes)
            publish(scratch, result, new)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    print(f"{cell.title}, again: {result}")
    print("\n".join(compare(old, new)))
    sys.exit(old.status != new.status)


if __name__ == "__main__":
    main()
