"""The tables that ``collect`` writes. All later steps read them instead of metrics.json files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shardmark.cells import start_order
from shardmark.config.schema import Config
from shardmark.config.values import Section
from shardmark.files import write_text
from shardmark.results.cell_rows import CellRow, EpochRow, cell_row, epoch_rows
from shardmark.results.csv_tables import read_csv, to_csv
from shardmark.results.exclusion import why_excluded
from shardmark.results.failure_rows import FailureRow, failure_rows
from shardmark.results.largest_batch_rows import LargestBatchRow, largest_batch_rows
from shardmark.results.matrix import read_matrix
from shardmark.results.parity_rows import ParityRow, parity_rows, read_verdicts
from shardmark.results.run_record import RunRecord, run_record
from shardmark.results.table_checksums import record_checksums

MODELS: dict[str, type[Section]] = {
    "cells": CellRow,
    "epochs": EpochRow,
    "failures": FailureRow,
    "parity": ParityRow,
    "largest_batches": LargestBatchRow,
}
RECORD = "settings.json"


@dataclass(frozen=True)
class Collected:
    """Everything that is known about a matrix.

    Attributes:
        cells: one row per planned cell.
        epochs: one row per epoch of a cell.
        failures: one row per cell without a good result.
        parity: one row per check of the parity gate.
        largest_batches: one row per search for the largest batch.
        record: everything that is not a row of a table.
    """

    cells: list[CellRow]
    epochs: list[EpochRow]
    failures: list[FailureRow]
    parity: list[ParityRow]
    largest_batches: list[LargestBatchRow]
    record: RunRecord


@dataclass(frozen=True)
class Tables:
    """What ``collect`` wrote, read back.

    Attributes:
        cells: one row per planned cell; columns as ``CellRow``.
        epochs: one row per epoch of a cell; columns as ``EpochRow``.
        failures: one row per cell without a good result; columns as ``FailureRow``.
        parity: one row per check of the parity gate; columns as ``ParityRow``.
        largest_batches: one row per search for the largest batch; columns as ``LargestBatchRow``.
        record: everything that is not a row of a table.
    """

    cells: pd.DataFrame
    epochs: pd.DataFrame
    failures: pd.DataFrame
    parity: pd.DataFrame
    largest_batches: pd.DataFrame
    record: RunRecord

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order of the configuration."""
        return list(self.cells["strategy"].unique())


def collect(config: Config, root: Path = Path()) -> Collected:
    """Read every result of a matrix under ``root`` and apply the validity rules."""
    matrix = read_matrix(config, root)
    verdicts = read_verdicts(config, root)
    status = {key: parity.status if parity else "missing" for key, parity in verdicts.items()}
    places = start_order(config)
    cells = []
    for planned in matrix:
        cell = planned.cell
        parity = status[cell.workload, cell.strategy, cell.gpus]
        excluded = why_excluded(planned, parity)
        place = places[cell.workload, cell.strategy, cell.gpus, cell.seed]
        cells.append(cell_row(planned, parity, excluded, place))
    results = [planned.metrics for planned in matrix if planned.metrics]
    return Collected(
        cells=cells,
        epochs=[row for metrics in results for row in epoch_rows(metrics)],
        failures=failure_rows(matrix),
        parity=[row for key, one in verdicts.items() for row in parity_rows(key, one)],
        largest_batches=largest_batch_rows(config, root),
        record=run_record(config, results),
    )


def write_tables(collected: Collected, folder: Path) -> None:
    """Write one CSV file for each of ``MODELS``, and the record."""
    for name, model in MODELS.items():
        write_text(folder / f"{name}.csv", to_csv(model, getattr(collected, name)))
    write_text(folder / RECORD, collected.record.model_dump_json(indent=1))
    files = [*(folder / f"{name}.csv" for name in MODELS), folder / RECORD]
    record_checksums(files, folder / "collect.sha256")


def read_tables(folder: Path) -> Tables:
    """Read what ``write_tables`` wrote.

    Raises:
        OSError: if a file cannot be read.
    """
    frames = {name: read_csv(folder / f"{name}.csv", model) for name, model in MODELS.items()}
    return Tables(**frames, record=RunRecord.model_validate_json((folder / RECORD).read_text()))
