"""Estimate what the rest of a matrix costs. Starts nothing and writes nothing."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from shardmark.config.files import load_files
from shardmark.errors import UserError
from shardmark.status.costs import estimate_costs
from shardmark.status.costs_view import cost_lines


def main() -> None:
    """Print the costs of the configuration on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configfile", type=Path, nargs="+", default=[], help="overlays, as Snakemake takes them"
    )
    arguments = parser.parse_args()
    try:
        config = load_files(arguments.configfile)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    width = shutil.get_terminal_size().columns
    print("\n".join(cost_lines(config, estimate_costs(config), width)), flush=True)


if __name__ == "__main__":
    # A reader of the pipe (head) may close it early.
    with contextlib.suppress(BrokenPipeError):
        main()
