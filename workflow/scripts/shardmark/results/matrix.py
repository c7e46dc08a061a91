"""Every planned cell of a matrix with its result, judged together with the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shardmark.cells import Cell, cells_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.config.schema import Config
from shardmark.errors import UserError
from shardmark.measurement.rules import Peers
from shardmark.measurement.validity import judge
from shardmark.metrics import Metrics, read_metrics
from shardmark.results.outcome import Outcome


@dataclass(frozen=True)
class PlannedCell:
    """One cell of the matrix.

    Attributes:
        cell: as the configuration defines it now.
        outcome: how it ended.
        metrics: its result, judged by all rules of validity; None if it is missing or refused.
        stale: whether other code than today's made the result; it still counts.
        refusal: why its file does not count; empty if it does.
    """

    cell: Cell
    outcome: Outcome
    metrics: Metrics | None = None
    stale: bool = False
    refusal: str = ""


def read_result(cell: Cell, root: Path = Path()) -> Metrics:
    """Read the result of a cell, if it belongs to the cell as it is defined now.

    Raises:
        UserError: with the path and the reason, if the file is missing, unreadable, or belongs to
            another definition of the cell.
    """
    path = root / cell.folder / "metrics.json"
    metrics = read_metrics(path)
    if metrics.cell_sha256 != cell.fingerprint():
        raise UserError(
            f"{path}: its definition has changed since; run its cell again, or name another run"
        )
    return metrics


def read_matrix(config: Config, root: Path = Path()) -> list[PlannedCell]:
    """Return all planned cells in the configuration's order, with their results under ``root``."""
    planned = [_read_cell(cell, root) for cell in cells_of(config)]
    peers = Peers(one.metrics for one in planned if one.metrics)
    return [_judge(one, peers) for one in planned]


def _read_cell(cell: Cell, root: Path) -> PlannedCell:
    if not (root / cell.folder / "metrics.json").exists():
        return PlannedCell(cell, Outcome.MISSING)
    try:
        metrics = read_result(cell, root)
    except UserError as error:
        return PlannedCell(cell, Outcome.REFUSED, refusal=str(error))
    return PlannedCell(cell, Outcome(metrics.status), metrics)


def _judge(planned: PlannedCell, peers: Peers) -> PlannedCell:
    """Apply the rules that need the other results too, and compare the code with today's."""
    if planned.metrics is None:
        return planned
    metrics = judge(planned.metrics, peers)
    stale = metrics.code_sha256 != code_sha256(code_of_cell(planned.cell))
    outcome = planned.outcome
    if outcome is Outcome.OK and metrics.device_faults:
        outcome = Outcome.DEVICE_FAULT
    elif outcome is Outcome.OK and stale:
        outcome = Outcome.STALE
    return replace(planned, outcome=outcome, metrics=metrics, stale=stale)
