"""Escape untrusted text for a terminal, Markdown, LaTeX or a spreadsheet."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

# Escape sequences: those that end with a letter (colours, cursor), titles and links, short ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b."
)
# Control characters except tab and newline, changes of text direction, and lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# pdflatex knows few characters outside ASCII. These commands need no package.
_LATEX = {
    **{one: f"\\{one}" for one in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "°": r"$^\circ$",
    "²": "$^2$",
    "³": "$^3$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "←": r"$\leftarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
    "↓": r"$\downarrow$",
    "●": r"$\bullet$",
    "◐": r"$\odot$",
    "○": r"$\circ$",
    "…": r"\ldots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
}
# Commands for Unicode's combining marks.
_LATEX_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?( ?%)?", re.IGNORECASE)


def for_terminal(text: str) -> str:
    """Return the text without escape sequences and control characters; keep tabs and newlines."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def for_markdown(text: str) -> str:
    """Return the text as one table cell, without links, images or HTML."""
    line = " ".join(for_terminal(text).split("\n"))
    line = line.replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


def for_latex(text: str) -> str:
    """Return the text as one line of LaTeX in ASCII.

    A character that LaTeX cannot set without further packages becomes its number, such as U+540D.
    """
    line = "".join(map(_latex_character, " ".join(for_terminal(text).split())))
    # LaTeX would join two hyphens, those of an option, to a dash.
    return re.sub(r"-(?=-)", "-{}", line)


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    simpler = unicodedata.normalize("NFKD", character)
    if simpler.isascii():
        return "".join(_LATEX.get(one, one) for one in simpler)
    letter, mark = simpler[0], simpler[1:]
    if letter.isascii() and mark in _LATEX_ACCENTS:
        return f"\\{_LATEX_ACCENTS[mark]}{{{letter}}}"
    return f"U+{ord(character):04X}"


def for_csv(value: T) -> T | str:
    """Return a value for a CSV file that a spreadsheet will not read as a formula.

    Numbers stay numbers. Other text that begins like a formula gets an apostrophe in front.
    """
    if not isinstance(value, str):
        return value
    text = for_terminal(value)
    if text.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV with its headings, each value escaped by ``for_csv``."""
    return table.map(for_csv).to_csv(index=False)
