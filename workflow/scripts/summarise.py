"""Put the runs of each strategy side by side: CSV, Markdown, LaTeX, text and HTML."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.config import Config, labels_of
from shardmark.escaping import csv_text
from shardmark.report.rendering import to_html, to_latex, to_markdown, to_text
from shardmark.report.summary import read_cells, summarise, tables_of
from shardmark.saved_config import read_config
from shardmark.statistics.eligibility import as_compared


def main() -> None:
    """Summarise the table of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True, help="cells.csv")
    parser.add_argument("--config", type=read_config, required=True, help="the saved configuration")
    parser.add_argument(
        "--output",
        type=Path,
        nargs="+",
        required=True,
        help="files to write: .csv .md .tex .txt .html",
    )
    arguments = parser.parse_args()
    config: Config = arguments.config
    cells = as_compared(read_cells(arguments.cells), config.validity.compare_suspect)
    summary = summarise(cells, config.baseline)
    labels = labels_of(config)
    tables = list(tables_of(summary, config.baseline, labels))
    medians = tables_of(summary, config.baseline, labels, ranges=False)
    texts = {
        ".csv": lambda: csv_text(summary),
        ".md": lambda: to_markdown(tables),
        ".tex": lambda: to_latex(tables),
        ".txt": lambda: to_text(medians),
        ".html": lambda: to_html(tables, f"shardmark: {config.run}"),
    }
    for path in arguments.output:
        write_text(path, texts[path.suffix]())


if __name__ == "__main__":
    main()
