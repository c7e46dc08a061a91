"""Print the fairness certificate of cells: what each strategy really ran with, side by side.

Exit status 1 where a difference is neither prescribed nor explained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardmark.errors import UserError
from shardmark.metrics import read_metrics
from shardmark.results.certificate import as_markdown, certificates


def main() -> None:
    """Print one table for each workload and GPU count of the command line's cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", nargs="+", type=Path, help="metrics.json of cells")
    parser.add_argument("--baseline", help="the strategy that stands first")
    arguments = parser.parse_args()
    try:
        found = certificates(map(read_metrics, arguments.metrics), arguments.baseline)
    except UserError as error:
        sys.exit(f"shardmark: {error}")
    print("\n".join(map(as_markdown, found)))
    sys.exit(any(certificate.flagged for certificate in found))


if __name__ == "__main__":
    main()
