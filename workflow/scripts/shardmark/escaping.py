"""Text that others wrote, made harmless for what shows it: a terminal, Markdown, a spreadsheet."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

# Sequences that end with a letter (colours, cursor), titles and links, and the short ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b."
)
# All but tab and newline, what turns the direction of text round, and halves of characters.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?( ?%)?", re.IGNORECASE)


def for_terminal(text: str) -> str:
    """The text without escape sequences and control characters; it keeps tabs and newlines."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def for_markdown(text: str) -> str:
    """The text as one cell of a table, without links, images or HTML."""
    line = " ".join(for_terminal(text).split("\n"))
    line = line.replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


def for_csv(value: T) -> T | str:
    """A value of a CSV file, which a spreadsheet does not take for a formula.

    Numbers stay numbers; other text that begins like a formula gets an apostrophe.
    """
    if not isinstance(value, str):
        return value
    text = for_terminal(value)
    if text.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV with its headings, each value as ``for_csv`` has it."""
    return table.map(for_csv).to_csv(index=False)
