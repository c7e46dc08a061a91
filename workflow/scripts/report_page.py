"""Write the report as one self-contained page."""

from __future__ import annotations

import argparse
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shardmark.command import one_message
from shardmark.files import write_text
from shardmark.report.contents import PAGE_TEMPLATE
from shardmark.report.page import page_context
from shardmark.results.collected import read_tables
from shardmark.statistics.findings import WITH_EXCLUDED, read_findings
from shardmark.strategies import use_labels


def render(template: Path, context: dict[str, object]) -> str:
    """Fill in the template; all text is escaped, and an unknown name is an error."""
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
    """Write the page named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of the run")
    parser.add_argument("--margin", type=float, required=True, help="of equivalence, as a share")
    parser.add_argument("--command", required=True, help="what runs this matrix, to show")
    parser.add_argument("--output", type=Path, required=True, help="HTML to write")
    arguments = parser.parse_args()
    folder = arguments.results / "tables"
    tables = read_tables(folder)
    with use_labels(tables.record.labels):
        context = page_context(
            tables,
            read_findings(folder),
            read_findings(folder / WITH_EXCLUDED),
            arguments.results / "figures",
            arguments.margin,
            arguments.command,
        )
    write_text(arguments.output, render(PAGE_TEMPLATE, context))


if __name__ == "__main__":
    main()
