"""A result set: the cells under results/<run>/, and the parity of their strategies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from shardmark.cells import Cell
from shardmark.errors import UserError
from shardmark.largest_batch import LargestBatch
from shardmark.measurement.rules import Peers
from shardmark.measurement.validity import judge
from shardmark.metrics import Metrics, read_metrics
from shardmark.parity_result import Parity, read_parity
from shardmark.result_files import read_record
from shardmark.results.cell_rows import CellRow, cell_row
from shardmark.results.csv_tables import to_frame
from shardmark.results.exclusion import why_excluded
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome

Key = tuple[str, str, int, int]
# Pattern of the cells' folders in the folder of a run.
CELLS = "*/*/gpus*/seed*"
VERDICTS = "parity/*/*/ranks*.json"
LARGEST_BATCHES = "largest_batch/*/*/gpus*.json"


@dataclass(frozen=True)
class Result:
    """One cell's result, its path, and the folder of its set."""

    path: Path
    folder: Path
    metrics: Metrics

    @property
    def cell(self) -> Cell:
        """The cell."""
        return self.metrics.cell

    @property
    def key(self) -> Key:
        """Identifies a cell within a run."""
        cell = self.cell
        return (cell.workload, cell.strategy, cell.gpus, cell.seed)


@dataclass(frozen=True)
class Verification:
    """One result of the parity gate, and its path."""

    path: Path
    parity: Parity

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies a result of the gate within a run."""
        return (self.parity.workload, self.parity.strategy, self.parity.ranks)


@dataclass(frozen=True)
class LargestBatchResult:
    """One result of a search for the largest batch, and its path."""

    path: Path
    largest: LargestBatch

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies a search within a run."""
        return (self.largest.workload, self.largest.strategy, self.largest.gpus)


@dataclass(frozen=True)
class ResultSet:
    """All results of one run.

    Attributes:
        folder: the set's folder, usually results/<run>.
        results: the cells' results, sorted by path.
        verifications: the parity gate's results, sorted by path.
        batches: the results of the searches for the largest batch, sorted by path.
    """

    folder: Path
    results: list[Result]
    verifications: list[Verification]
    batches: list[LargestBatchResult] = field(default_factory=list)

    def workloads(self) -> dict[str, dict[str, Any]]:
        """The definition of each workload, as plain types.

        Raises:
            UserError: if cells of one workload were defined differently.
        """
        definitions: dict[str, tuple[Result, dict[str, Any]]] = {}
        for result in self.results:
            definition = result.cell.definition.model_dump(mode="json", by_alias=True)
            first, same = definitions.setdefault(result.cell.workload, (result, definition))
            if same != definition:
                changes = "; ".join(differences(same, definition))
                raise UserError(
                    f"{self.folder}: workload {result.cell.workload} is defined in two ways, in "
                    f"{first.path} and {result.path}: {changes}; leave the cells of one out"
                )
        return {name: definition for name, (_, definition) in definitions.items()}


def read_result_set(folder: Path) -> ResultSet:
    """Read every result under a folder: of cells, of its parity gate, of searches.

    Raises:
        UserError: if there is none, one is unreadable, a cell occurs twice, or there is a symbolic
            link, which could lead to other users' files.
    """
    refuse_links(folder)
    paths = sorted(folder.glob(f"{CELLS}/metrics.json"))
    if not paths:
        raise UserError(
            f"{folder}: has no <workload>/<strategy>/gpus<N>/seed<N>/metrics.json; name the folder "
            "of a run, results/<run>"
        )
    results = [Result(path, folder, read_metrics(path)) for path in paths]
    seen: dict[Key, Result] = {}
    for result in results:
        first = seen.setdefault(result.key, result)
        if first is not result:
            raise UserError(
                f"{result.cell.title}: stands in {first.path} and in {result.path}; "
                "delete or move one of them"
            )
    return ResultSet(
        folder,
        results,
        [Verification(path, read_parity(path)) for path in sorted(folder.glob(VERDICTS))],
        [
            LargestBatchResult(path, read_record(path, LargestBatch))
            for path in sorted(folder.glob(LARGEST_BATCHES))
        ],
    )


def refuse_links(folder: Path) -> None:
    """Check that a folder of results contains only files and folders.

    Raises:
        UserError: naming a symbolic link, device or pipe.
    """
    for path in itertools.chain(
        *(folder.glob(pattern) for pattern in (f"{CELLS}/*", VERDICTS, LARGEST_BATCHES))
    ):
        inside = path.relative_to(folder).parts
        for part in itertools.accumulate(inside, Path.joinpath, initial=folder):
            if part != folder and part.is_symlink():
                raise UserError(f"{part}: is a symbolic link; put what it points to in its place")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is neither a file nor a folder; delete it")


def cells_of_set(result_set: ResultSet) -> pd.DataFrame:
    """Return the rows of cells.csv of a result set, with the paths of its results.

    Unlike in a matrix, the gate's verdict is taken as it is: there is no configuration to tell
    whether it applies to the cells' own case.
    """
    parity = {item.key: str(item.parity.status) for item in result_set.verifications}
    peers = Peers(result.metrics for result in result_set.results)
    return to_frame(CellRow, [_row(result, parity, peers) for result in result_set.results])


def _row(result: Result, parity: Mapping[tuple[str, str, int], str], peers: Peers) -> CellRow:
    cell, metrics = result.cell, judge(result.metrics, peers)
    outcome = Outcome.DEVICE_FAULT if metrics.device_faults else Outcome(metrics.status)
    planned = PlannedCell(cell, outcome, metrics)
    verdict = parity.get((cell.workload, cell.strategy, cell.gpus), "missing")
    excluded = why_excluded(planned, verdict)
    row = cell_row(planned, verdict, excluded)
    return row.model_copy(update={"path": str(result.path)})


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested mappings with its dotted path; a list is a leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(one: Any, other: Any) -> list[str]:
    """Return the differences between two nested mappings, each as ``path: one -> other``."""
    first, second = dict(flatten(one)), dict(flatten(other))
    return [
        f"{path}: {first.get(path, 'absent')} -> {second.get(path, 'absent')}"
        for path in [*first, *(path for path in second if path not in first)]
        if first.get(path, _ABSENT) != second.get(path, _ABSENT)
    ]


_ABSENT = object()
