"""Put the runs of each strategy side by side: CSV, Markdown, LaTeX, text and HTML."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.config import Config, labels_of
from shardmark.report.rendering import to_html, to_latex, to_markdown, to_text
from shardmark.report.summary import read_cells, summarise, tables_of
from shardmark.statistics.eligibility import as_compared


@one_message
def main() -> None:
    """Summarise the table of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True, help="cells.csv")
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument(
        "--output",
        type=Path,
        nargs="+",
        required=True,
        help="files to write: .csv .md .tex .txt .html",
    )
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    cells = as_compared(read_cells(arguments.cells), config.validity.compare_suspect)
    summary = summarise(cells, config.baseline)
    labels = labels_of(config)
    tables = list(tables_of(summary, config.baseline, labels))
    medians = tables_of(summary, config.baseline, labels, ranges=False)
    texts = {
        ".csv": lambda: summary.to_csv(index=False),
        ".md": lambda: to_markdown(tables),
        ".tex": lambda: to_latex(tables),
        ".txt": lambda: to_text(medians),
        ".html": lambda: to_html(tables, f"shardmark: {config.run}"),
    }
    for path in arguments.output:
        write_text(path, texts[path.suffix]())


if __name__ == "__main__":
    main()
