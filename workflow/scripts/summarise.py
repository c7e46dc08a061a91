"""Put the strategies side by side: CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path

from shardmark.command import one_message
from shardmark.escaping import csv_text
from shardmark.files import write_text
from shardmark.report.answer import make_answer
from shardmark.report.largest_batch_table import largest_batch_table
from shardmark.report.summary_table import SUMMARY_COLUMNS, summarise, summary_tables
from shardmark.report.table import TEXT_WIDTH, Table, to_latex, to_markdown, to_text
from shardmark.results.collected import Tables, read_tables
from shardmark.results.table_checksums import record_checksums
from shardmark.statistics.findings import Findings, read_findings
from shardmark.strategies import use_labels


def _answers(results: Tables, findings: Findings) -> str:
    """Return the answer for each workload, as the report page gives it."""
    paragraphs = []
    for workload in results.record.workloads:
        cells, scaling, largest = (
            table[table.workload == workload]
            for table in (results.cells, findings.scaling, results.largest_batches)
        )
        verdicts = [verdict for verdict in findings.verdicts if verdict.workload == workload]
        text = make_answer(workload, cells, results.record, verdicts, scaling, largest).text
        paragraphs.append("\n".join(textwrap.wrap(f"{workload}: {text}", TEXT_WIDTH)))
    return "\n\n".join(paragraphs)


def _largest_batches(results: Tables) -> Iterator[Table]:
    """Yield the largest batches of each workload of which they were searched."""
    for _, rows in results.largest_batches.groupby("workload", sort=False):
        yield largest_batch_table(rows, results.record.device)


@one_message
def main() -> None:
    """Summarise the table named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--baseline", required=True, help="strategy to compare with")
    arguments = parser.parse_args()
    results, findings = read_tables(arguments.tables), read_findings(arguments.tables)
    summary = summarise(results.cells, findings.comparisons, arguments.baseline)
    with use_labels(results.record.labels):
        tables = list(summary_tables(summary, arguments.baseline))
        medians = list(summary_tables(summary, arguments.baseline, ranges=False))
        answers = _answers(results, findings)
        batches = list(_largest_batches(results))
    texts = {
        "summary.csv": csv_text(summary[list(SUMMARY_COLUMNS)]),
        "summary.md": to_markdown(tables),
        "summary.tex": to_latex(tables),
        "summary.txt": f"{answers}\n\n{to_text([*medians, *batches])}",
    }
    for name, text in texts.items():
        write_text(arguments.tables / name, text)
    files = [arguments.tables / name for name in texts]
    record_checksums(files, arguments.tables / "summarise.sha256")


if __name__ == "__main__":
    main()
