"""The labels and colours that a configuration chooses for its own strategies and variants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_matrix import config_of, write_matrix
from shardmark.cells import batch_search, cell_of, parity_case
from shardmark.config.schema import Config
from shardmark.figures.data import Data
from shardmark.files import write_text
from shardmark.report.contents import GROUPS, OUTCOMES
from shardmark.results.collected import read_tables
from shardmark.strategies import STRATEGIES
from small_matrix import matrix
from test_latex import run_script
from test_tables import summarised

LABEL = "DDP, $5_b$ <b>& [2"
LOOK = {"label": LABEL, "color": "#AA0000"}


def own(**look: str) -> Config:
    mine = {"file": "docs/examples/one_all_reduce.py"} | look
    return matrix(strategies={"mine": mine}, matrix__strategies=["ddp", "mine"])


def variant(**look: str) -> Config:
    return matrix(variants__slim={"base": "ddp", "bucket_cap_mb": 5} | look)


def test_a_label_and_a_colour_are_no_part_of_what_defines_a_result() -> None:
    for name, make in {"mine": own, "slim": variant}.items():
        plain, presented = (
            [
                cell_of(config, "small", name, 2, 0).fingerprint(),
                parity_case(config, "small", name, 2).fingerprint(),
                batch_search(config, "small", name, 2).fingerprint(),
            ]
            for config in (make(), make(**LOOK))
        )
        assert plain == presented


@pytest.mark.slow
def test_a_label_is_in_page_figures_and_tables_and_the_name_in_csv_files(tmp_path: Path) -> None:
    config = config_of({"slim": {"base": "ddp"} | LOOK}, strategies=["ddp", "slim"])
    write_matrix(config, tmp_path)
    tables, figures = summarised(config, tmp_path), tmp_path / "results/t/figures/w"
    run_script("export_tables.py", "--tables", tables)
    missing = {name: "not wanted here" for name in GROUPS["measured"] if name != OUTCOMES}
    write_text(figures / "measured/not_drawn.json", json.dumps(missing))
    compared = ("--group", "compared", "--width-mm", "180", "--output", figures / "compared")
    run_script("plot.py", "--tables", tables, "--workload", "w", *compared)
    page = tmp_path / "report.html"
    shown = ("--margin", "0.02", "--command", "snakemake", "--output", page)
    run_script("report_page.py", "--results", tmp_path / "results/t", *shown)

    html = "DDP, $5_b$ &lt;b&gt;&amp; [2"
    assert f"<th scope=row>{html}</th>" in page.read_text()
    assert "<td>slim</td>" not in page.read_text()
    # Matplotlib draws letters as paths, and notes the text beside them.
    assert f"<!-- {html} -->" in (figures / "compared/answer.svg").read_text()
    for name in ("comparisons", "outcomes", "certificate", "summary"):
        assert r"DDP, \$5\_b\$ $<$b$>$\& [2" in (tables / f"{name}.tex").read_text()
    assert LABEL in (tables / "summary.txt").read_text()
    for name in ("cells", "comparisons", "summary"):
        text = (tables / f"{name}.csv").read_text()
        assert "slim" in text
        assert LABEL not in text
    looks = Data.of("w", read_tables(tables), 180.0).looks
    assert looks["slim"].colour == "#AA0000"
    assert looks["ddp"].colour == STRATEGIES["ddp"].colour
