"""Failed and excluded cells, grouped by cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from shardmark.cells import cell_folder
from shardmark.quantities import describe_gpus
from shardmark.results.outcome import Outcome
from shardmark.strategies import label_of


@dataclass
class FailedCell:
    """One failed or excluded cell.

    Attributes:
        name: the cell in words.
        where: the phase and rank in which it failed; empty if nothing is known.
        reason: why it does not count.
        log: the last lines of its log; empty if there are none.
        log_path: the file of the whole log.
    """

    name: str
    where: str
    reason: str
    log: str
    log_path: str


@dataclass
class Cause:
    """Cells with the same outcome and, except for numbers, the same reason.

    Attributes:
        outcome: the outcome in words.
        reason: the reason of the first cell.
        cells: all cells with this cause.
    """

    outcome: str
    reason: str
    cells: list[FailedCell] = field(default_factory=list)


def group_by_cause(cells: pd.DataFrame, failures: pd.DataFrame) -> list[Cause]:
    """Group the cells that take no part in comparisons, most frequent cause first.

    Args:
        cells: cells.csv.
        failures: failures.csv.
    """
    groups: dict[tuple[str, str], Cause] = {}
    run = cells.run.iloc[0]
    device = cells.device.iloc[0]
    left_out = [
        *_failed(failures, run, device),
        *_excluded(cells, failures, run, device),
    ]
    for outcome, reason, cell in left_out:
        key = (outcome, re.sub(r"\d+([.,]\d+)*", "#", reason.partition("\n")[0]))
        groups.setdefault(key, Cause(outcome, reason)).cells.append(cell)
    return sorted(groups.values(), key=lambda cause: -len(cause.cells))


def _failed(failures: pd.DataFrame, run: str, device: str) -> Iterator[tuple[str, str, FailedCell]]:
    for row in failures.to_dict("records"):
        name, log = name_cell(row, device), _log_path(row, run)
        failed = FailedCell(name, locate(row), row["reason"], row["log"], log)
        yield Outcome(row["outcome"]).meaning, row["reason"], failed


def _log_path(row: dict[Any, Any], run: str) -> str:
    """Return where the log of a cell is; empty if the row is for all seeds."""
    if pd.isna(row["seed"]):
        return ""
    folder = cell_folder(run, row["workload"], row["strategy"], row["gpus"], int(row["seed"]))
    return str(folder / "job.log")


def _excluded(
    cells: pd.DataFrame, failures: pd.DataFrame, run: str, device: str
) -> Iterator[tuple[str, str, FailedCell]]:
    """Yield the excluded cells that have no row in failures.csv."""
    known = {_key(row) for row in failures.to_dict("records")}
    for row in cells[cells.excluded != ""].to_dict("records"):
        if _key(row) not in known and _key(row | {"seed": None}) not in known:
            name = name_cell(row, device)
            if row["outcome"] == Outcome.MISSING:
                yield Outcome.MISSING.meaning, "", FailedCell(name, "", "", "", "")
            else:
                log = _log_path(row, run)
                yield "excluded", row["excluded"], FailedCell(name, "", row["excluded"], "", log)


def _key(row: dict[Any, Any]) -> tuple[Any, ...]:
    seed = None if pd.isna(row["seed"]) else int(row["seed"])
    return row["workload"], row["strategy"], int(row["gpus"]), seed


def name_cell(row: dict[Any, Any], device: str = "cuda") -> str:
    """Return a cell in words, without a seed if the row is for all seeds."""
    seed = "" if pd.isna(row["seed"]) else f", seed {row['seed']:.0f}"
    where = describe_gpus(device, int(row["gpus"]))
    return f"{row['workload']}, {label_of(row['strategy'])}, {where}{seed}"


def locate(row: dict[Any, Any]) -> str:
    """Return the phase and the rank in which a cell failed."""
    rank = "" if pd.isna(row["rank"]) else f"rank {row['rank']:.0f}"
    return ", ".join(part for part in (row["phase"], rank) if part)
