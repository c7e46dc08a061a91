"""Write the report: one page that needs nothing beside it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.config import Config
from shardmark.report.captions import PAGE_TEMPLATE
from shardmark.report.page import Findings, page_context
from shardmark.report.summary import read_cells


def render(template: Path, context: dict[str, object]) -> str:
    """The template filled in; every text is escaped, a name it does not know is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(context)


@one_message
def main() -> None:
    """Write the page of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", required=True, help="cells.csv")
    parser.add_argument("--figures", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--comparisons", required=True, help="comparisons.csv")
    parser.add_argument("--scaling", required=True, help="scaling.csv")
    parser.add_argument("--verdict", type=Path, required=True, help="verdict.json")
    parser.add_argument("--config", required=True, help="the configuration as JSON")
    parser.add_argument("--output", type=Path, required=True, help="HTML to write")
    arguments = parser.parse_args()
    config = Config.model_validate_json(arguments.config)
    findings = Findings(
        cells=read_cells(arguments.cells),
        comparisons=pd.read_csv(arguments.comparisons),
        scaling=pd.read_csv(arguments.scaling),
        verdicts=json.loads(arguments.verdict.read_text()),
    )
    context = page_context(config, findings, arguments.figures, Path())
    write_text(arguments.output, render(PAGE_TEMPLATE, context))


if __name__ == "__main__":
    main()
