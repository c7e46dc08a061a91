"""docs/data_dictionary.md: the meaning of every column and field, from the models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from shardmark.launching.cell_result import STEP_COLUMNS
from shardmark.measurement.telemetry import SAMPLE_COLUMNS
from shardmark.metrics import (
    Accuracy,
    Device,
    Efficiency,
    Failure,
    HeldOutLoss,
    HostUse,
    Loss,
    Memory,
    Metrics,
    ModelState,
    Probe,
    Roofs,
    StepSplit,
    Throughput,
    Times,
    Windows,
)
from shardmark.report.summary_table import SUMMARY_COLUMNS
from shardmark.results.cell_rows import CellRow, EpochRow, extra
from shardmark.results.failure_rows import FailureRow
from shardmark.results.largest_batch_rows import LargestBatchRow
from shardmark.results.parity_rows import ParityRow
from shardmark.statistics.comparison_rows import ComparisonRow, ScalingRow, SetComparisonRow

SECTIONS: tuple[type[BaseModel], ...] = (
    Metrics,
    Failure,
    Loss,
    Accuracy,
    HeldOutLoss,
    Times,
    Windows,
    Throughput,
    Probe,
    Roofs,
    StepSplit,
    HostUse,
    Memory,
    ModelState,
    Device,
    Efficiency,
)
# The longest matching suffix gives the unit.
UNITS = {
    "gb_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "per_s": "1/s",
    "items_per_s": "items/s",
    "items_per_s_per_gpu": "items/s",
    "bytes_per_item": "bytes",
    "flops_per_item": "FLOP",
    "hardware_flops_per_item": "FLOP",
    "bytes": "bytes",
    "mhz": "MHz",
    "pct": "%",
    "ms": "ms",
    "s": "s",
    "w": "W",
    "j": "J",
    "c": "°C",
}
HEAD = """\
# Data dictionary

The meaning of every column of the tables and every field of metrics.json. `make schemas` writes it
from the models in the code; a test fails where it is out of date. Units are in the names. An empty
value in a table, or null in a file, means that the quantity was not measured; it is never zero.
"""


def dictionary() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD]
    for model, title, what in (
        (CellRow, "cells.csv", "One row per planned cell."),
        (EpochRow, "epochs.csv", "One row per epoch of a cell."),
        (FailureRow, "failures.csv", "One row per cell without a good result."),
        (ParityRow, "parity.csv", "One row per check of the parity gate."),
        (LargestBatchRow, "largest_batches.csv", "One row per search for the largest batch."),
        (ComparisonRow, "comparisons.csv", "One row per strategy, metric and GPU count."),
        (ScalingRow, "scaling.csv", "One row per strategy and GPU count."),
        (
            SetComparisonRow,
            "comparison.csv",
            "What `compare_runs.py` writes: the columns of comparisons.csv, and four more.",
        ),
    ):
        columns = _fields(model, "column", "empty when")
        parts.append(f"## {title}\n\n{what}\n\n{columns}")
    for table, title, what in (
        (SUMMARY_COLUMNS, "summary.csv", "One row per strategy, workload and GPU count."),
        (STEP_COLUMNS, "steps.csv", "Beside each metrics.json: every timed step on every rank."),
        (
            SAMPLE_COLUMNS,
            "telemetry.csv",
            "Beside each metrics.json: one row per sample of a device. A value is empty where the "
            "device does not have it, or where it was not due yet.",
        ),
    ):
        rows = [[f"`{name}`", unit_of(name), text] for name, text in table.items()]
        parts.append(f"## {title}\n\n{what}\n")
        parts.append(_table(["column", "unit", "meaning"], rows))
    parts.append(
        "## metrics.json\n\nBy section; its JSON Schema is "
        "[metrics.schema.json](../workflow/schemas/metrics.schema.json), and `cell`, "
        "`effective_config`, `environment` and `provenance` are described there.\n"
    )
    for section in SECTIONS:
        fields = _fields(section, "field", "null where")
        parts.append(f"### {section.__name__}\n\n{_prose(section)}\n\n{fields}")
    return "\n".join(parts)


def unit_of(name: str) -> str:
    """The unit that a name carries; empty for a plain number or a text."""
    name = re.sub(r"_(mean|min|max|p\d+)$", "", name)
    fits = [suffix for suffix in UNITS if name == suffix or name.endswith(f"_{suffix}")]
    return UNITS[max(fits, key=len)] if fits else ""


def _fields(model: type[BaseModel], name_heading: str, empty_heading: str) -> str:
    return _table(
        [name_heading, "type", "unit", "meaning", empty_heading],
        [
            [
                f"`{field.alias or name}`",
                _type(field.annotation),
                unit_of(name),
                field.description or "",
                extra(model, name, "empty") or "not measured" if _nullable(field) else "never",
            ]
            for name, field in model.model_fields.items()
        ],
    )


def _prose(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _nullable(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _type(kind: Any) -> str:
    """An annotation in words."""
    parts = [part for part in get_args(kind) if part is not type(None)]
    origin = get_origin(kind)
    if origin is Annotated:
        return _type(parts[0])
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} x {_type(parts[0])}"
    if origin is dict or is_typeddict(kind):
        return "mapping"
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(map(_type, parts))
    words = {"str": "text", "float": "number", "int": "integer", "bool": "true, false"}
    return words.get(kind.__name__, str(kind.__name__))


def _table(headings: list[str], rows: list[list[str]]) -> str:
    return "\n".join(_lines(headings, rows)) + "\n"


def _lines(headings: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield f"| {' | '.join(value.replace('|', '/') for value in row)} |"
