"""Show the matrix as a grid: which cells are done, running, queued, failed, stale or missing.

While it runs and after. It trains nothing and locks nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

from shardmark.config_files import load_files
from shardmark.errors import UserError
from shardmark.matrix.status import status_of
from shardmark.matrix.status_view import View

# Slurm's controller serves everybody.
WATCH_S = 10.0
# Python sees an interrupt that comes just before a sleep only after it.
NAP_S = 0.2
CLEAR = "\x1b[H\x1b[2J"


def show(view: View, overlays: list[Path], *, clear: bool) -> None:
    """Look once, and print what there is to see."""
    config = load_files(overlays)
    text = "\n".join(view.lines(config, status_of(config)))
    print(f"{CLEAR if clear else ''}{text}", flush=True)


def main() -> None:
    """Show the matrix of the command line's configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], help="overlays, as Snakemake takes them"
    )
    parser.add_argument(
        "--watch", action="store_true", help=f"look again every {WATCH_S:.0f} s, until interrupted"
    )
    arguments = parser.parse_args()
    symbols = (sys.stdout.encoding or "").lower().startswith("utf")
    terminal = sys.stdout.isatty() and symbols and not os.environ.get("NO_COLOR")
    try:
        while True:
            view = View(terminal=terminal, width=shutil.get_terminal_size().columns)
            show(view, arguments.configfile, clear=terminal and arguments.watch)
            if not arguments.watch:
                return
            until = time.monotonic() + WATCH_S
            while time.monotonic() < until:
                time.sleep(NAP_S)
    except UserError as error:
        sys.exit(f"shardmark: {error}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
