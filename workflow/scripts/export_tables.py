"""Write each table of the report for use elsewhere: Markdown and LaTeX."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.command import one_message
from shardmark.files import write_text
from shardmark.report.contents import EXPORTED_TABLES, exported_files
from shardmark.report.largest_batch_table import largest_batch_table
from shardmark.report.page_tables import (
    comparison_tables,
    failures_table,
    outcome_table,
    parity_table,
    scaling_table,
    settings_table,
)
from shardmark.report.table import Table, to_latex, to_markdown
from shardmark.results.collected import Tables, read_tables
from shardmark.results.table_checksums import record_checksums
from shardmark.statistics.findings import Findings, read_findings
from shardmark.strategies import use_labels


def tables_to_export(tables: Tables, findings: Findings) -> dict[str, list[Table]]:
    """The tables behind each name of ``EXPORTED_TABLES``."""
    exported: dict[str, list[Table]] = {name: [] for name in EXPORTED_TABLES}
    device = tables.record.device
    for workload in tables.record.workloads:
        cells, parity, largest, comparisons, scaling = (
            table[table.workload == workload]
            for table in (
                *(tables.cells, tables.parity, tables.largest_batches),
                *(findings.comparisons, findings.scaling),
            )
        )
        for pair in comparison_tables(comparisons, device):
            exported["comparisons"] += [table for table in pair if table.rows]
        speedups = scaling_table(scaling, tables.strategies, tables.record.device)
        exported["scaling"].append(_name(workload, speedups))
        exported["outcomes"].append(outcome_table(cells))
        exported["parity"].append(parity_table(parity))
        exported["largest_batches"].append(largest_batch_table(largest, device))
    exported["certificate"] = list(map(settings_table, tables.record.certificates))
    exported["failures"].append(failures_table(tables.failures))
    return exported


def write_exports(exported: dict[str, list[Table]], folder: Path) -> None:
    """Write all of ``exported_files``."""
    for file in exported_files():
        name, kind = file.split(".")
        tables = exported[name]
        text = to_markdown(tables) if kind == "md" else to_latex(tables)
        write_text(folder / file, text)
    record_checksums([folder / file for file in exported_files()], folder / "export.sha256")


def _name(workload: str, table: Table) -> Table:
    return Table(f"{workload}: {table.caption}", table.headings, table.rows, table.notes)


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
