"""Show the matrix as a grid: which cells are done, running, queued, failed, stale or missing.

While it runs and after. It trains nothing and locks nothing. With --check its exit status is 1 if a
cell failed or a strategy did not pass the parity gate, else 2 if a cell has no result yet, else 0;
3 if the matrix cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

from shardmark.config_files import load_files
from shardmark.errors import UserError
from shardmark.matrix.status import MatrixStatus, check, status_of
from shardmark.matrix.status_view import View

# Slurm's controller serves everybody.
WATCH_S = 10.0
# Python sees an interrupt that comes just before a sleep only after it.
NAP_S = 0.2
CLEAR = "\x1b[H\x1b[2J"


def show(view: View, overlays: list[Path], *, clear: bool) -> MatrixStatus:
    """Look once, and print what there is to see."""
    config = load_files(overlays)
    status = status_of(config)
    text = "\n".join(view.lines(config, status))
    print(f"{CLEAR if clear else ''}{text}", flush=True)
    return status


def main() -> None:
    """Show the matrix of the command line's configuration."""
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
    symbols = (sys.stdout.encoding or "").lower().startswith("utf")
    terminal = sys.stdout.isatty() and symbols and not os.environ.get("NO_COLOR")
    try:
        while True:
            view = View(terminal=terminal, width=shutil.get_terminal_size().columns)
            status = show(view, arguments.configfile, clear=terminal and arguments.watch)
            if arguments.check:
                code, why = check(status)
                print(why)
                sys.exit(code)
            if not arguments.watch:
                return
            until = time.monotonic() + WATCH_S
            while time.monotonic() < until:
                time.sleep(NAP_S)
    except UserError as error:
        print(f"shardmark: {error}", file=sys.stderr)
        sys.exit(3 if arguments.check else 1)
    except Exception:
        if not arguments.check:
            raise
        traceback.print_exc()
        sys.exit(3)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
