"""Write the report: one page that needs nothing beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shardmark.atomic import write_text
from shardmark.command import one_message
from shardmark.report.contents import PAGE_TEMPLATE
from shardmark.report.page import page_context
from shardmark.results.collected import read_tables
from shardmark.statistics.findings import read_findings


def render(template: Path, context: dict[str, object]) -> str:
    """The template filled in; every text is escaped, and an unknown name is an error."""
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
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--figures", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--margin", type=float, required=True, help="of equivalence, as a share")
    parser.add_argument("--output", type=Path, required=True, help="HTML to write")
    arguments = parser.parse_args()
    tables, findings = read_tables(arguments.tables), read_findings(arguments.tables)
    context = page_context(tables, findings, arguments.figures, arguments.margin)
    write_text(arguments.output, render(PAGE_TEMPLATE, context))


if __name__ == "__main__":
    main()
