"""Write rows to CSV files, and read them back with the types of their columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args, get_origin

import pandas as pd

from shardmark.config.values import Section
from shardmark.errors import UserError
from shardmark.escaping import for_csv


def to_csv(model: type[Section], rows: Iterable[Section]) -> str:
    """Return the rows as CSV with a header; None is empty, numbers keep all their digits."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(model.model_fields), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: for_csv(value) for name, value in row.model_dump().items()})
    return text.getvalue()


def read_csv(source: Path | io.StringIO, model: type[Section]) -> pd.DataFrame:
    """Read a table that ``to_csv`` wrote; in text columns an empty value is an empty string.

    Raises:
        UserError: if the file is missing.
        OSError: if it cannot be read.
    """
    if isinstance(source, Path) and not source.exists():
        raise UserError(f"{source} is missing; `snakemake report` makes it from the results")
    text = [name for name, field in model.model_fields.items() if _is_text(field.annotation)]
    table = pd.read_csv(source, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values="")
    table[text] = table[text].fillna("")
    return table


def to_frame(model: type[Section], rows: Iterable[Section]) -> pd.DataFrame:
    """Return the rows as ``read_csv`` would read them back."""
    return read_csv(io.StringIO(to_csv(model, rows)), model)


def _is_text(annotation: object) -> bool:
    parts = get_args(annotation) or (annotation,)
    return any(
        part is str or isinstance(part, str) or get_origin(part) is Literal for part in parts
    )
