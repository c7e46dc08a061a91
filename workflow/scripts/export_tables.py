"""Write each table of the report for use elsewhere: Markdown and LaTeX."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.report.exports import tables_to_export, write_exports
from shardmark.results.collected import read_tables
from shardmark.statistics.findings import read_findings
from shardmark.strategies import use_labels


@one_message
def main() -> None:
    """Write the tables of the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    folder = parser.parse_args().tables
    tables, findings = read_tables(folder), read_findings(folder)
    with use_labels(tables.record.labels):
        write_exports(tables_to_export(tables, findings), folder)


if __name__ == "__main__":
    main()
