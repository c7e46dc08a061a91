"""Escape untrusted text for a terminal, Markdown or a spreadsheet."""

from __future__ import annotations

import re
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
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?( ?%)?", re.IGNORECASE)


def for_terminal(text: str) -> str:
    """Return the text without escape sequences and control characters; keep tabs and newlines."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def for_markdown(text: str) -> str:
    """Return the text as one table cell, without links, images or HTML."""
    line = " ".join(for_terminal(text).split("\n"))
    line = line.replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


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
