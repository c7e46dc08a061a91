"""A table as readers see it, and as Markdown, LaTeX and plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from tabulate import LATEX_ESCAPE_RULES, tabulate

from shardmark.escaping import for_markdown

_TEXT_HEADING = 11


@dataclass(frozen=True)
class Table:
    """A table whose values are text.

    Attributes:
        caption: what it shows.
        headings: one per column, with units; the first column holds names.
        rows: one list of values per row.
        notes: reservations, shown below it.
    """

    caption: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def alignment(self) -> list[str]:
        """Names to the left, values to the right."""
        return ["left", *["right"] * (len(self.headings) - 1)]


def to_markdown(tables: Iterable[Table]) -> str:
    """GitHub's Markdown."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [table.headings, *table.rows]
    headings, *rows = [list(map(for_markdown, line)) for line in lines]
    blocks = [f"**{for_markdown(table.caption)}**", _grid(table, headings, rows, "pipe")]
    if table.notes:
        blocks.append("\n".join(f"- {for_markdown(note)}" for note in table.notes))
    return "\n\n".join(blocks) + "\n"


def to_text(tables: Iterable[Table]) -> str:
    """Aligned columns for a terminal; long headings take several lines."""
    return "\n".join(_text(table) for table in tables)


def _text(table: Table) -> str:
    headings = [
        "\n".join(textwrap.wrap(heading, _TEXT_HEADING, break_long_words=False))
        for heading in table.headings
    ]
    caption = "\n".join(textwrap.wrap(table.caption, 100))
    blocks = [caption, _grid(table, headings, table.rows, "simple")]
    if table.notes:
        blocks.append("\n".join(f"  {note}" for note in table.notes))
    return "\n\n".join(blocks) + "\n"


def to_latex(tables: Iterable[Table]) -> str:
    """Floating tables with booktabs' rules; needs the packages booktabs and graphicx."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_escape_latex(table.caption)}}}",
        r"  \resizebox{\linewidth}{!}{%",
        _grid(table, table.headings, table.rows, "latex_booktabs") + "}",
        *[f"  \\par\\footnotesize {_escape_latex(note)}" for note in table.notes],
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _escape_latex(text: str) -> str:
    return "".join(LATEX_ESCAPE_RULES.get(character, character) for character in text)


def _grid(table: Table, headings: list[str], rows: list[list[str]], style: str) -> str:
    text: str = tabulate(
        rows,
        headings,
        tablefmt=style,
        disable_numparse=True,
        colalign=table.alignment if rows else None,
    )
    return text
