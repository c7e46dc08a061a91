"""Record the checksums of tables, so that an edit of one is noticed."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.matrix.table_checksums import record_checksums


def main() -> None:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="+", help="files in one folder")
    parser.add_argument("--output", type=Path, required=True, help="<rule>.sha256 beside them")
    arguments = parser.parse_args()
    record_checksums(arguments.tables, arguments.output)


if __name__ == "__main__":
    main()
