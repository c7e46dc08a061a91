"""A table as Markdown, LaTeX (booktabs), HTML and aligned text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from html import escape

from shardmark.escaping import for_markdown
from shardmark.report.summary import Table

_TEXT_HEADING = 11
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
}


def to_markdown(tables: Iterable[Table]) -> str:
    """GitHub's Markdown, numbers to the right."""
    parts = []
    for table in tables:
        rule = ["---", *["---:"] * (len(table.headings) - 1)]
        lines = [table.headings, rule, *table.rows]
        rows = "\n".join(f"| {' | '.join(map(for_markdown, line))} |" for line in lines)
        blocks = [f"**{for_markdown(table.caption)}**", rows]
        if table.notes:
            blocks.append("\n".join(f"- {for_markdown(note)}" for note in table.notes))
        parts.append("\n\n".join(blocks) + "\n")
    return "\n".join(parts)


def to_text(tables: Iterable[Table]) -> str:
    """Aligned columns for a terminal, their headings in several lines where they are long."""
    return "\n".join(_text_table(table) for table in tables)


def _text_table(table: Table) -> str:
    stacks = [textwrap.wrap(name, _TEXT_HEADING, break_long_words=False) for name in table.headings]
    height = max(map(len, stacks))
    head = zip(*([""] * (height - len(stack)) + stack for stack in stacks), strict=True)
    lines = [*map(list, head), *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    caption = textwrap.wrap(table.caption, 100)
    notes = [f"  {note}" for note in table.notes]
    return "\n".join([*caption, "", *rows, "", *notes, *([""] if notes else [])])


def to_latex(tables: Iterable[Table]) -> str:
    """Floating tables with booktabs' rules; needs the packages booktabs and graphicx."""
    return "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    def line(values: Iterable[str]) -> str:
        return "    " + " & ".join(map(_latex_text, values)) + r" \\"

    notes = [f"  \\par\\footnotesize {_latex_text(note)}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{_latex_text(table.caption)}}}",
            r"  \resizebox{\linewidth}{!}{%",
            f"  \\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            r"    \toprule",
            line(table.headings),
            r"    \midrule",
            *[line(row) for row in table.rows],
            r"    \bottomrule",
            r"  \end{tabular}}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def to_html(tables: Iterable[Table], title: str) -> str:
    """A page of its own with nothing but the tables."""
    body = "\n".join(_html_table(table) for table in tables)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


_STYLE = """\
body { font: 14px/1.4 system-ui, sans-serif; color: #1a1a1a; margin: 1.5rem; }
table { border-collapse: collapse; margin: 0 0 .5rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #555; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
ul { margin: 0 0 2rem; padding-left: 1.2rem; color: #444; }
"""


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.headings)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<table>\n<caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n{f'<ul>{notes}</ul>' if notes else ''}"
    )
