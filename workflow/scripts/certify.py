"""Print the fairness certificate of cells: what each strategy really ran with, side by side.

Exit status 1 where a difference is neither prescribed nor explained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shardmark.command import one_message
from shardmark.metrics import read_metrics
from shardmark.report.certificate import as_markdown, certificates


@one_message
def main() -> None:
    """Print one table for each workload and GPU count of the command line's cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", nargs="+", type=Path, help="metrics.json of cells")
    parser.add_argument("--baseline", help="the strategy that stands first")
    arguments = parser.parse_args()
    found = certificates(map(read_metrics, arguments.metrics), arguments.baseline)
    print("\n".join(map(as_markdown, found)))
    sys.exit(any(certificate.flagged for certificate in found))


if __name__ == "__main__":
    main()
