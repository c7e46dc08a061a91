"""Report pages for tests, made of results on disk by the code that the workflow calls."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from collect import collect
from compare_strategies import compare_all
from plot import draw_all, read_data
from report_page import render
from shardmark.config import Config
from shardmark.figures.drawing import save
from shardmark.figures.outcome_grid import outcome_figure
from shardmark.report.captions import FIGURES, NOT_DRAWN, OUTCOMES, PAGE_TEMPLATE
from shardmark.report.page import Findings, page_context
from shardmark.report.summary import read_cells
from shardmark.results.gaps import find_gaps
from shardmark.results.matrix_results import read_matrix
from shardmark.results.outcomes import status_signs
from shardmark.results.result_tables import CellRow, EpochRow, to_csv


def write_tables(config: Config, root: Path) -> Path:
    """The tables of the results under ``root``; returns their folder."""
    tables = root / f"results/{config.run}/tables"
    tables.mkdir(parents=True, exist_ok=True)
    cells, epochs, _ = collect(config, root)
    (tables / "cells.csv").write_text(to_csv(CellRow, cells))
    (tables / "epochs.csv").write_text(to_csv(EpochRow, epochs))
    comparisons, scaling, verdicts = compare_all(read_cells(str(tables / "cells.csv")), config)
    comparisons.to_csv(tables / "comparisons.csv", index=False)
    scaling.to_csv(tables / "scaling.csv", index=False)
    (tables / "verdict.json").write_text(json.dumps([one.as_dict() for one in verdicts]))
    return tables


def build(config: Config, root: Path, kind: str = "svg") -> Path:
    """The page of the results under ``root``."""
    tables = write_tables(config, root)
    run = tables.parent
    for workload in config.matrix.workloads:
        figures = run / "figures" / workload
        paths = [figures / f"{name}.{kind}" for name in FIGURES]
        not_drawn = draw_all(read_data(config, workload, tables, root), paths)
        (figures / NOT_DRAWN).write_text(json.dumps(not_drawn))
        signs = status_signs(config, find_gaps(config, root), read_matrix(config, root).metrics)
        save(outcome_figure(config, workload, signs), figures / f"{OUTCOMES}.{kind}")
    page = run / "report.html"
    findings = Findings(
        cells=read_cells(str(tables / "cells.csv")),
        comparisons=pd.read_csv(tables / "comparisons.csv"),
        scaling=pd.read_csv(tables / "scaling.csv"),
        verdicts=json.loads((tables / "verdict.json").read_text()),
    )
    context = page_context(config, findings, run / "figures", root)
    page.write_text(render(PAGE_TEMPLATE, context))
    return page
