"""The report's table of the largest batches. Nothing of it enters another table or a comparison."""

from __future__ import annotations

from typing import Any

import pandas as pd

from shardmark.lanes import LANES
from shardmark.quantities import format_number, replicas_heading, replicas_noun
from shardmark.report.table import Detailed, Table
from shardmark.strategies import label_of

_CAPTION = (
    " batch that fits: strategies at equal memory, each at its own batch; not comparable with the "
    "rows at equal batch"
)
_WORDS = {
    "does_not_fit": "does not fit",
    "unsupported": "unsupported",
    "failed": "failed",
    "refused": "no result",
    "missing": "no result",
}


def largest_batch_table(rows: pd.DataFrame, device: str) -> Table:
    """Return the largest batch of each strategy, the throughput there, and the memory.

    Args:
        rows: rows of largest_batches.csv of one workload; none if it was not searched.
        device: cuda or cpu.
    """
    unit = next(filter(None, rows.unit), "items")
    replica = replicas_noun(device)
    title = f"{rows.workload.iloc[0]}: largest" if len(rows) else "Largest"
    return Table(
        caption=f"{title}{_CAPTION}",
        headings=[
            *("Strategy", "Lane", replicas_heading(device), f"Batch per {replica} (samples)"),
            f"{unit.capitalize()}/s per {replica} there",
            *("Reserved by torch (GiB)", "of the GPU's memory (%)"),
        ],
        rows=[_row(row) for row in rows.to_dict("records")],
        notes=[
            f"{label_of(row['strategy'])}, {replicas_heading(device)}: {row['gpus']}: {note}."
            for row in rows.to_dict("records")
            if (note := _note(row))
        ],
    )


def _note(row: dict[Any, Any]) -> str:
    """Why there is no largest batch, or what makes it slow."""
    if row["reason"]:
        return str(row["reason"].splitlines()[0].rstrip("."))
    if row["allocation_retries"] > 0:
        return (
            f"in the window, an allocation failed {row['allocation_retries']:.0f} times, and torch "
            "freed its cached memory and tried again; a smaller batch may be faster"
        )
    return ""


def _row(row: dict[Any, Any]) -> list[str]:
    reserved, total = row["torch_reserved_bytes"], row["gpu_memory_bytes"]
    return [
        label_of(row["strategy"]),
        LANES[row["lane"]],
        str(row["gpus"]),
        _batch(row),
        format_number(row["items_per_s_per_gpu"]),
        format_number(reserved * 2**-30, 3),
        format_number(100 * reserved / total, 3),
    ]


def _batch(row: dict[Any, Any]) -> str:
    if row["status"] in _WORDS:
        return _WORDS[row["status"]]
    batch, micro = int(row["per_gpu_batch"]), int(row["micro_batch"])
    more = " or more" if row["status"] == "reached_most" else ""
    text = f"{batch:,}{more}"
    return Detailed(text, f"{batch // micro} x {micro:,}") if batch > micro else text
