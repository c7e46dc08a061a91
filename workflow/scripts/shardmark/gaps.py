"""Which cells of a matrix have no result, or one of another definition or of other code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shardmark.cells import Cell, cells_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.config import Config
from shardmark.errors import UserError
from shardmark.metrics import read_metrics


@dataclass
class Gaps:
    """What a report made now is made without, or with reservations.

    Attributes:
        current: cells whose result is of the present configuration and code.
        missing: cells without a result.
        stale: cells with one that is not, and why.
    """

    current: list[Cell] = field(default_factory=list)
    missing: list[Cell] = field(default_factory=list)
    stale: list[tuple[Cell, str]] = field(default_factory=list)

    @property
    def planned(self) -> int:
        """Cells of the matrix."""
        return len(self.current) + len(self.missing) + len(self.stale)


def find_gaps(config: Config, root: Path = Path()) -> Gaps:
    """Hold every result under ``root`` against the configuration and the code as they are now."""
    gaps = Gaps()
    for cell in cells_of(config):
        path = root / cell.folder / "metrics.json"
        if not path.exists():
            gaps.missing.append(cell)
        elif reason := _why_stale(cell, path):
            gaps.stale.append((cell, reason))
        else:
            gaps.current.append(cell)
    return gaps


def _why_stale(cell: Cell, path: Path) -> str:
    try:
        metrics = read_metrics(path)
    except UserError as error:
        return str(error)
    if metrics.cell_sha256 != cell.fingerprint():
        return "its definition has changed since"
    if metrics.code_sha256 != code_sha256(code_of_cell(cell)):
        return "its code has changed since"
    return ""
