"""The page's tables: in the order of the matrix, and with long reasons out of the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from shardmark.report.summary import read_cells
from shardmark.results.gaps import find_gaps
from shardmark.results.matrix_results import read_matrix

from built_pages import write_tables
from gpu_matrix import config_of, metrics_of, write, write_matrix, write_parity
from shardmark.cells import cell_of
from shardmark.report.exports import tables_to_export
from shardmark.report.page import reservations
from shardmark.report.page_tables import parity_table, raw_table, scaling_table


def test_speed_ups_stand_in_the_order_of_the_matrix(tmp_path: Path) -> None:
    config = config_of(strategies=["fsdp2", "dp", "ddp"], gpus=[1, 2])
    write_matrix(config, tmp_path)
    scaling = pd.read_csv(write_tables(config, tmp_path) / "scaling.csv")
    table = scaling_table(config, scaling)
    found = [(row[0], row[1]) for row in table.rows]
    names = ["FSDP2", "DataParallel", "DDP"]
    assert found == [(name, count) for name in names for count in ("1", "2")]


def found_by_rules(tables: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    comparisons, scaling = (
        pd.read_csv(tables / f"{name}.csv") for name in ("comparisons", "scaling")
    )
    return comparisons, scaling, json.loads((tables / "verdict.json").read_text())


def test_one_gpu_count_has_no_scaling(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[1])
    write_matrix(config, tmp_path)
    tables = write_tables(config, tmp_path)
    scaling = pd.read_csv(tables / "scaling.csv")
    assert len(scaling) == 2
    table = scaling_table(config, scaling)
    assert table.rows == []
    assert table.notes == ["No strategy has results at two GPU counts."]
    exported = tables_to_export(config, *found_by_rules(tables), tmp_path)
    assert exported["scaling"][0].notes == table.notes, "the page links to its files"


def test_why_a_verdict_of_the_gate_is_what_it_is_stands_below(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[2])
    write_parity(config, "ddp", 2, tmp_path, status="failed", reason="fp32: loss deviates")
    table = parity_table(config, "w", tmp_path)
    assert table.notes == [
        "DDP, ranks: 2: fp32: loss deviates.",
        "FSDP1, ranks: 2: no verdict of this definition.",
    ]
    assert max(len(row[3]) for row in table.rows) < 30


def test_what_could_not_be_told_is_said_first_and_beside_each_cell(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[2], seeds=[0, 1])
    write_matrix(config, tmp_path)
    good = metrics_of(cell_of(config, "w", "ddp", 2, 1))
    silent = [device.model_copy(update={"throttled_pct": None}) for device in good.devices]
    write(good.model_copy(update={"devices": silent}), tmp_path)
    cells = read_cells(str(write_tables(config, tmp_path) / "cells.csv"))
    metrics = read_matrix(config, tmp_path).metrics
    said = list(reservations(config, find_gaps(config, tmp_path), metrics, cells))
    words = "Could not be checked: throttled (1 cell); the column unknown of cells.csv says why."
    assert words in said
    table = raw_table(cells)
    place, name, seed = (table.headings.index(head) for head in ("unknown", "strategy", "seed"))
    unknown = {(row[name], row[seed]): row[place] for row in table.rows}
    assert unknown["ddp", "1"] == "throttled, input-bound"
    assert unknown["fsdp", "1"] == "input-bound"
