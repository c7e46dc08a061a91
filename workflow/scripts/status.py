"""Show the matrix as grids: which cells and searches are done, running, queued, failed or missing.

Works while the matrix runs and afterwards. It trains nothing and locks nothing. With --check its
exit status is 1 if a cell or a search for the largest batch failed or a strategy did not pass the
parity gate, else 2 if a result or a verdict of the gate is missing or stale, else 0; 3 if the
matrix cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from shardmark.config.files import load_files
from shardmark.errors import UserError
from shardmark.status.matrix_status import exit_code, status_of
from shardmark.status.view import View

# Seconds between two refreshes; more often would load Slurm's controller, which all users share.
WATCH_S = 10.0
# Sleep in short naps: Python handles an interrupt that comes just before a sleep only after it.
NAP_S = 0.2
# ANSI: go to the top left corner; erase the rest of the line; erase everything below.
HOME, REST_OF_LINE, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(overlays: list[Path]) -> None:
    """Show the matrix again and again; in a terminal, redraw in place."""
    in_place = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if in_place:
        print(f"{HOME}{BELOW}", end="")
    while True:
        lines = status_lines(overlays)
        if in_place:
            size = shutil.get_terminal_size()
            text = f"{REST_OF_LINE}\n".join(fit(lines, size.columns, size.lines))
            print(f"{HOME}{text}{BELOW}", end="", flush=True)
        else:
            print("\n".join(lines), flush=True)
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(NAP_S)


def status_lines(overlays: list[Path]) -> list[str]:
    """Return the lines of the matrix's current state."""
    config = load_files(overlays)
    return list(view().lines(config, status_of(config)))


def view() -> View:
    """Return the view that suits standard output."""
    symbols = (sys.stdout.encoding or "").lower().startswith("utf")
    terminal = sys.stdout.isatty() and symbols and not os.environ.get("NO_COLOR")
    return View(terminal=terminal, width=shutil.get_terminal_size().columns)


def fit(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """Return as many lines as the screen holds, and a last line that counts the rest."""
    # Only paths may be wider than the screen. Coloured lines always fit.
    heights = [-(-len(line) // columns) if "\x1b" not in line else 1 for line in lines]
    if sum(heights) <= rows:
        return list(lines)
    kept = 0
    while sum(heights[: kept + 1]) < rows:
        kept += 1
    return [*lines[:kept], f"... {len(lines) - kept} more lines without WATCH"]


def main() -> None:
    """Show the matrix of the configuration on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], help="overlays, as Snakemake takes them"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--watch", action="store_true", help=f"look again every {WATCH_S:.0f} s, until interrupted"
    )
    mode.add_argument(
        "--check", action="store_true", help="let the exit status say whether all is well"
    )
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(print_check(arguments.configfile))
    try:
        if arguments.watch:
            with contextlib.suppress(KeyboardInterrupt):
                watch(arguments.configfile)
            print()
        else:
            print("\n".join(status_lines(arguments.configfile)))
    except UserError as error:
        sys.exit(f"shardmark: {error}")


def print_check(overlays: list[Path]) -> int:
    """Show the matrix, print the exit code with its reason, and return it."""
    try:
        config = load_files(overlays)
        status = status_of(config)
        code, why = exit_code(status)
        lines = [*view().lines(config, status), why]
    except UserError as error:
        print(f"shardmark: {error}", file=sys.stderr)
        return 3
    except Exception:
        traceback.print_exc()
        return 3
    # If the reader of the pipe (head) has closed it, the exit code stays the same.
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(lines), flush=True)
    return code


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
