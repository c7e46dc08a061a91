"""Write each table of the report for use elsewhere: CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.config import Config
from shardmark.report.exports import tables_to_export, tidy
from shardmark.report.rendering import to_html, to_latex, to_markdown


@one_message
def main() -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", required=True, help="comparisons.csv")
    parser.add_argument("--scaling", required=True, help="scaling.csv")
    parser.add_argument("--verdict", type=Path, required=True, help="verdict.json")
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument(
        "--output", type=Path, nargs="+", required=True, help="<table>.csv, .md, .tex or .html"
    )
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    found = tables_to_export(
        config,
        pd.read_csv(arguments.comparisons),
        pd.read_csv(arguments.scaling),
        json.loads(arguments.verdict.read_text()),
    )
    for path in arguments.output:
        tables = found[path.stem]
        texts = {
            ".csv": lambda tables: tidy(tables).to_csv(index=False),
            ".md": to_markdown,
            ".tex": to_latex,
            ".html": lambda tables: to_html(tables, f"shardmark: {config.run}"),
        }
        write_text(path, texts[path.suffix](tables))


if __name__ == "__main__":
    main()
