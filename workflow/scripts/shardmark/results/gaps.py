"""Which cells of a matrix have no result, one that does not count, or one of other code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shardmark.cells import Cell, cells_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.config import Config
from shardmark.errors import UserError
from shardmark.metrics import Metrics, read_metrics


@dataclass
class Gaps:
    """What a report made now is made without, or with reservations.

    Attributes:
        current: cells whose result is of the present configuration and code.
        missing: cells without a result.
        stale: cells whose result is of other code, and why; they are reported.
        refused: cells whose result is unreadable or of another definition, and why; they are not.
        results: the results that count, by the folder of their cell.
    """

    current: list[Cell] = field(default_factory=list)
    missing: list[Cell] = field(default_factory=list)
    stale: list[tuple[Cell, str]] = field(default_factory=list)
    refused: list[tuple[Cell, str]] = field(default_factory=list)
    results: dict[Path, Metrics] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """Cells of the matrix."""
        return self.reported + len(self.missing) + len(self.refused)

    @property
    def reported(self) -> int:
        """Cells with a result that counts."""
        return len(self.current) + len(self.stale)


def read_result(cell: Cell, root: Path = Path()) -> Metrics:
    """The result of a cell, if it is one of the cell as it is defined now.

    Raises:
        UserError: with the path and the reason, if it is not there, unreadable, or of another
            definition.
    """
    path = root / cell.folder / "metrics.json"
    metrics = read_metrics(path)
    if metrics.cell_sha256 != cell.fingerprint():
        raise UserError(
            f"{path}: its definition has changed since; run its cell again, or name another run"
        )
    return metrics


def results_of(config: Config, root: Path = Path()) -> Iterator[tuple[Cell, Metrics | UserError]]:
    """Each cell that has a result, with it or with the reason why it does not count."""
    for cell in cells_of(config):
        if not (root / cell.folder / "metrics.json").exists():
            continue
        try:
            yield cell, read_result(cell, root)
        except UserError as error:
            yield cell, error


def find_gaps(config: Config, root: Path = Path()) -> Gaps:
    """Hold every result under ``root`` against the configuration and the code as they are now."""
    gaps = Gaps()
    results = {cell.folder: result for cell, result in results_of(config, root)}
    for cell in cells_of(config):
        result = results.get(cell.folder)
        if isinstance(result, Metrics):
            gaps.results[cell.folder] = result
        if result is None:
            gaps.missing.append(cell)
        elif isinstance(result, UserError):
            gaps.refused.append((cell, str(result)))
        elif result.code_sha256 != code_sha256(code_of_cell(cell)):
            gaps.stale.append((cell, "its code has changed since"))
        else:
            gaps.current.append(cell)
    return gaps
