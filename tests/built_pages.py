"""Report pages for tests, made of results on disk by the code that the workflow calls."""

from __future__ import annotations

from pathlib import Path

from plot import draw_all
from report_page import render
from shardmark.config.schema import Config
from shardmark.figures.data import Data
from shardmark.report.contents import GROUPS, PAGE_TEMPLATE
from shardmark.report.page import page_context
from shardmark.results.collected import Tables, collect, read_tables, write_tables
from shardmark.statistics.findings import (
    WITH_EXCLUDED,
    Findings,
    read_findings,
    write_findings,
)


def make_tables(config: Config, root: Path) -> Path:
    """The tables of the results under ``root``; returns their folder."""
    folder = root / f"results/{config.run}/tables"
    write_tables(collect(config, root), folder)
    cells = read_tables(folder).cells
    write_findings(cells, config.baseline, config.report.margin, folder)
    return folder


def read_all(config: Config, root: Path) -> tuple[Tables, Findings]:
    """The tables of the results under ``root``, read back."""
    folder = make_tables(config, root)
    return read_tables(folder), read_findings(folder)


def data_of(config: Config, root: Path, workload: str = "w") -> Data:
    """What the figures of a workload are drawn from."""
    tables, findings = read_all(config, root)
    return Data.of(workload, tables, config.report.figure_width_mm, findings, root)


def draw_figures(config: Config, root: Path, kind: str = "svg") -> None:
    """Draw all figures of the results under ``root``."""
    for workload in config.matrix.workloads:
        figures = root / f"results/{config.run}/figures" / workload
        data = data_of(config, root, workload)
        for group, names in GROUPS.items():
            draw_all(data, figures / group, names, [kind])


def write_page(config: Config, root: Path) -> Path:
    """Write the page of the results under ``root``, with the figures that are there."""
    run = root / f"results/{config.run}"
    page = run / "report.html"
    tables, findings = read_all(config, root)
    command = "snakemake --profile profiles/local"
    with_excluded = read_findings(run / "tables" / WITH_EXCLUDED)
    margin = config.report.margin
    context = page_context(tables, findings, with_excluded, run / "figures", margin, command)
    page.write_text(render(PAGE_TEMPLATE, context))
    return page


def build(config: Config, root: Path, kind: str = "svg") -> Path:
    """Draw all figures, and write the page."""
    draw_figures(config, root, kind)
    return write_page(config, root)
