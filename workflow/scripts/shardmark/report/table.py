"""A table as readers see it, and as Markdown, LaTeX and plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from shardmark.escaping import for_latex, for_markdown

_TEXT_HEADING = 11
TEXT_WIDTH = 100
# A longer value takes several lines in LaTeX.
_LATEX_WIDTH = 60
# Spaces between columns, and those that tabulate adds to a heading.
_GAP, _PADDING = 2, 2


class Detailed(str):
    """A value with a detail: "value [detail]" as text; the page shows the detail in small type."""

    value: str
    detail: str

    def __new__(cls, value: str, detail: str) -> Detailed:
        """Make the text of both."""
        text = super().__new__(cls, f"{value} [{detail}]")
        text.value, text.detail = value, detail
        return text


@dataclass(frozen=True)
class Table:
    """A table whose values are text.

    Attributes:
        caption: what it shows.
        headings: one per column, with units; the first column holds names.
        rows: one list of values per row.
        notes: sentences below it.
    """

    caption: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def to_markdown(tables: Iterable[Table]) -> str:
    """GitHub's Markdown."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [table.headings, *table.rows]
    headings, *rows = [list(map(for_markdown, line)) for line in lines]
    blocks = [f"**{for_markdown(table.caption)}**", _grid(headings, rows, "pipe")]
    if table.notes:
        blocks.append("\n".join(f"- {for_markdown(note)}" for note in table.notes))
    return "\n\n".join(blocks) + "\n"


def to_text(tables: Iterable[Table]) -> str:
    """Aligned columns for a terminal, at most ``TEXT_WIDTH`` wide.

    Long headings take several lines. The columns of a wide table come in several blocks, each with
    the names.
    """
    return "\n".join(_text(table) for table in tables)


def _text(table: Table) -> str:
    headings = [
        "\n".join(textwrap.wrap(heading, _TEXT_HEADING, break_long_words=False))
        for heading in table.headings
    ]
    blocks = ["\n".join(textwrap.wrap(table.caption, TEXT_WIDTH))]
    for columns in _columns_that_fit(headings, table.rows):
        rows = [[row[column] for column in columns] for row in table.rows]
        blocks.append(_grid([headings[column] for column in columns], rows, "simple"))
    if table.notes:
        blocks.append("\n".join(map(_note, table.notes)))
    return "\n\n".join(blocks) + "\n"


def _columns_that_fit(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Split the columns into blocks of at most ``TEXT_WIDTH``, each with the first column."""
    widths = [
        max(
            *(len(line) + _PADDING for line in heading.split("\n")),
            *(len(row[column]) for row in rows),
            0,
        )
        for column, heading in enumerate(headings)
    ]
    blocks = [[0]]
    for column in range(1, len(headings)):
        if sum(widths[place] + _GAP for place in (*blocks[-1], column)) > TEXT_WIDTH + _GAP:
            blocks.append([0])
        blocks[-1].append(column)
    return blocks


def _note(text: str) -> str:
    indent = "  "
    return "\n".join(
        textwrap.wrap(text, TEXT_WIDTH, initial_indent=indent, subsequent_indent=2 * indent)
    )


def to_latex(tables: Iterable[Table]) -> str:
    """Floating tables with booktabs' rules; needs the packages booktabs and graphicx."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{for_latex(table.caption)}}}",
        r"  \resizebox{\linewidth}{!}{%",
        f"  \\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
        r"    \toprule",
        _latex_row(table.headings),
        r"    \midrule",
        *map(_latex_row, table.rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        *[f"  \\par\\footnotesize {for_latex(note)}" for note in table.notes],
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(values: Sequence[str]) -> str:
    # At the start of a row, a bracket or star would be an option of the rule or row above it.
    start = "{}" if values[0].startswith(("[", "*")) else ""
    return f"    {start}{' & '.join(map(_latex_value, values))} \\\\"


def _latex_value(value: str) -> str:
    text = for_latex(value)
    if len(value) <= _LATEX_WIDTH:
        return text
    return f"\\parbox[t]{{{_LATEX_WIDTH / 2:g}em}}{{\\raggedright {text}}}"


def _grid(headings: list[str], rows: list[list[str]], style: str) -> str:
    """Return the grid, names to the left and values to the right."""
    text: str = tabulate(
        rows,
        headings,
        tablefmt=style,
        disable_numparse=True,
        colalign=["left", *["right"] * (len(headings) - 1)] if rows else None,
    )
    return text
