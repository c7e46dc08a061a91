"""The page's tables: in the order of the matrix, and with long reasons out of the way."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from jinja2 import Environment, StrictUndefined

from built_pages import build, read_all
from export_tables import tables_to_export
from gpu_matrix import ROOT, WORKLOAD, config_of, metrics_of, write, write_matrix, write_parity
from result_tables import GPU, cells_table
from shardmark.cells import cell_of
from shardmark.config.loading import load
from shardmark.errors import UserError
from shardmark.report.captions import HeadlineData, headline
from shardmark.report.caveats import caveats
from shardmark.report.contents import FIGURES, PAGE_TEMPLATE, caption
from shardmark.report.memory_bars import memory_bars
from shardmark.report.overview import overview_tables
from shardmark.report.page_tables import (
    comparison_tables,
    parity_table,
    raw_table,
    scaling_table,
    step_table,
    strategies_by_value,
)
from shardmark.report.sentences import join_names
from shardmark.report.summary_table import summarise, summary_tables
from shardmark.report.table import Detailed, Table
from shardmark.results.certificate import Row
from shardmark.results.collected import read_tables
from shardmark.results.outcome import Outcome
from shardmark.statistics.comparisons import compare
from shardmark.statistics.scaling import scaling_of


def test_speed_ups_stand_in_the_order_of_the_matrix(tmp_path: Path) -> None:
    config = config_of(strategies=["fsdp2", "dp", "ddp"], gpus=[1, 2])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    table = scaling_table(findings.scaling, tables.strategies, tables.record.device)
    names = ["FSDP2", "DataParallel", "DDP"]
    assert [(row[0], row[1]) for row in table.rows] == [
        (name, count) for name in names for count in ("1", "2")
    ]


def test_one_gpu_count_has_no_scaling(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[1])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    assert len(findings.scaling) == 2
    table = scaling_table(findings.scaling, tables.strategies, tables.record.device)
    assert table.rows == []
    assert table.notes == ["No strategy has results at more than one GPU count."]
    exported = tables_to_export(tables, findings)
    assert exported["scaling"][0].notes == table.notes, "the page links to its files"
    on_cpus = scaling_table(findings.scaling, tables.strategies, "cpu")
    assert on_cpus.notes == ["No strategy has results at more than one process count."]


def test_a_speed_up_without_an_interval_says_why(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[1, 2], seeds=[0, 1, 2])
    write_matrix(config, tmp_path)
    tables, _ = read_all(config, tmp_path)
    fsdp, two = tables.cells.strategy == "fsdp", tables.cells.gpus == 2

    def notes(**changes: object) -> list[str]:
        cells = tables.cells.assign(**changes)
        return scaling_table(scaling_of(cells), tables.strategies, "cuda").notes

    assert notes(device_uuids="GPU-0") == [
        "No interval, because no two runs at the smaller count are known to have used different "
        "GPUs, so the spread between GPUs is unknown: DDP and FSDP1."
    ]
    two_devices = [f"GPU-{place % 2}" for place in range(len(tables.cells))]
    assert notes(device_uuids=two_devices) == [
        "No interval, because at one of the two counts there are fewer than 3 runs, or fewer than "
        "3 sets of devices: DDP and FSDP1."
    ]
    mixed = tables.cells.driver.mask(fsdp & two, "571")
    assert notes(device_uuids="GPU-0", driver=mixed)[1].startswith(
        "No speed-up, because the runs are not alike (mixed driver: "
    )
    code = tables.cells.code_sha256.mask(two, "edited " + tables.cells.strategy)
    commits = tables.cells.git_commit.mask(two, "b" * 40)
    assert notes(device_uuids="GPU-0", code_sha256=code, git_commit=commits) == [
        "No speed-up, because the runs are not alike (mixed code): DDP and FSDP1."
    ]


def test_scaling_over_other_gpus_is_a_caveat(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[1, 2, 4], seeds=[0])
    write_matrix(config, tmp_path)
    tables, _ = read_all(config, tmp_path)
    cells = tables.cells
    whole = {1: "GPU-a", 2: "GPU-a;GPU-b", 4: "GPU-a;GPU-b;GPU-c;GPU-d"}
    apart = whole | {4: "GPU-e;GPU-f;GPU-g;GPU-h"}

    def said(devices: dict[int, str], **changes: pd.Series) -> list[str]:
        changed = cells.assign(device_uuids=cells.gpus.map(devices)).assign(**changes)
        found = caveats(replace(tables, cells=changed))
        return [one.text for one in found if one.section == "scaling"]

    assert said(whole) == []
    words = "The scaling of at least one strategy also compares GPUs: none ran both GPU counts"
    caveat = f"{words} (1 and 4)."
    assert said(apart) == [caveat]
    assert said({count: f"GPU-{count}" for count in (1, 2, 4)}) == [f"{words} (1 and 2; 1 and 4)."]
    assert said(apart | {1: ""}) == [], "unknown devices prove nothing"
    assert said(apart, excluded=cells.excluded.mask(cells.gpus < 4, "throttled")) == []
    # That another strategy met its GPUs again does not help this one.
    met = cells.gpus.map(apart).where(cells.strategy == "fsdp", cells.gpus.map(whole))
    assert said(apart, device_uuids=met) == [caveat]


def test_a_list_of_names_is_clear_although_a_name_has_a_comma() -> None:
    assert join_names(["DDP", "FSDP2"]) == "DDP and FSDP2"
    assert join_names(["DDP", "DDP, mine", "FSDP2"]) == "DDP; DDP, mine; and FSDP2"
    assert join_names(["DDP 34,100", "FSDP2 9,000"]) == "DDP 34,100 and FSDP2 9,000"


def test_equal_factors_of_scaling_have_no_most_and_least(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[1, 2])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    findings.scaling["speedup"] = [1.0, 2.001] * 2
    data = HeadlineData.of(tables.cells, findings)
    words = "2.00 with every strategy that ran on both."
    assert headline("scaling", data).endswith(words)
    findings.scaling["speedup"] = [1.0, 2.001, 1.0, 1.9]
    words = "2.00 with DDP (most) and 1.90 with DataParallel (least)."
    assert headline("scaling", HeadlineData.of(tables.cells, findings)).endswith(words)


def test_headlines_are_of_what_is_compared(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[1, 2, 4])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    tables.cells.loc[tables.cells.gpus == 4, "excluded"] = "parity missing"
    findings.scaling.drop(findings.scaling.index[findings.scaling.gpus == 4], inplace=True)
    data = HeadlineData.of(tables.cells, findings)
    assert headline("throughput", data).startswith("Throughput on 2 GPUs: ")
    assert headline("scaling", data).startswith("From 1 to 2 GPUs, ")
    assert headline("efficiency", data).startswith("From 1 to 2 GPUs, the scaling efficiency is ")
    tables.cells.loc[tables.cells.strategy == "dp", "excluded"] = "parity failed"
    assert "DataParallel" not in headline("throughput", HeadlineData.of(tables.cells, findings))
    bars = memory_bars(tables.cells[tables.cells.gpus == 2])
    assert bars is not None
    assert len(bars.bars) == 2
    assert "DataParallel" not in bars.headline


def test_efficiencies_are_compared_only_from_the_same_gpu_count(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp", "fsdp"], gpus=[1, 2, 4])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    changed = findings.scaling.strategy == "dp"
    findings.scaling.loc[changed, ["reference_gpus", "efficiency"]] = [2, 0.5]
    table = dict(overview_tables(tables.cells, findings, "ddp"))["4 GPUs"]
    starts = {row[0]: row[table.headings.index("Efficiency (%)")] for row in table.rows}
    assert "from 2" in starts["DataParallel"]
    assert "from" not in starts["DDP"]
    findings.scaling.loc[findings.scaling.strategy == "fsdp", "efficiency"] = 0.9
    said = headline("efficiency", HeadlineData.of(tables.cells, findings))
    assert said.startswith(
        "From 1 to 4 GPUs, of the 2 strategies measured on both, the scaling efficiency is "
    )
    assert "DataParallel" not in said
    findings.scaling.loc[~changed, "efficiency"] = 0.95
    said = headline("efficiency", HeadlineData.of(tables.cells, findings))
    assert said.endswith("the scaling efficiency is 95 % with every strategy that ran on both.")


def test_a_short_window_has_no_hundredth_step(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[2])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)

    def said(steps: int, slowest: float) -> str:
        tables.cells["steps"] = steps
        tables.cells["step_ms_p99"] = tables.cells.step_ms_p50 * 1.1
        tables.cells.loc[tables.cells.strategy == "ddp", "step_ms_p99"] *= slowest
        return headline("step_time", HeadlineData.of(tables.cells, findings))

    assert "DDP is the most uneven: in its median run, the slowest step takes 1.32" in said(29, 1.2)
    assert "one step in a hundred takes at least 1.32" in said(100, 1.2)
    assert "in the median run of every strategy, the slowest step takes 1.10" in said(29, 1.0)


def test_the_headline_of_the_steps_has_the_shares_of_the_table(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[2])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    shares = ["host_wait_pct", "exposed_communication_pct"]
    tables.cells.loc[tables.cells.strategy == "ddp", shares] = [30.0, 10.0]
    tables.cells.loc[tables.cells.strategy == "dp", shares] = [5.0, 25.0]
    assert headline("step_split", HeadlineData.of(tables.cells, findings)) == (
        "On 2 GPUs DDP waits longest for its host (30 % of a step) and DataParallel spends the "
        "largest part of its step on communication alone (25 % of a step)."
    )


def test_the_training_time_says_that_compilation_is_no_part_of_it(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[2])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)

    def said(compilation_s: float) -> str:
        cells = tables.cells.assign(compilation_s=compilation_s)
        return headline("training_time", HeadlineData.of(cells, findings))

    assert said(20.0).startswith("Training time on 2 GPUs, without compilation: ")
    assert said(float("nan")).startswith("Training time on 2 GPUs: ")


def test_a_setting_names_the_strategies_of_each_value() -> None:
    values = {"dp": "0", "ddp": "0", "fsdp": "3", "fsdp2": "3"}
    row = Row(setting="stage", values=values, verdict="flagged", flagged={"fsdp2": "not 3"})
    assert list(strategies_by_value(row, {name: name.upper() for name in values})) == [
        ("0", "DP and DDP", False),
        ("3", "FSDP", False),
        ("3", "FSDP2", True),
    ]


def test_figures_of_one_run_are_not_said_of_all_that_have_the_label(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[2], seeds=[0, 1])
    write_matrix(config, tmp_path)
    cells = read_all(config, tmp_path)[0].cells
    cells["label_reasons"] = "drift: 3 % slower"
    two = ["drift: 24 % slower", "drift: 19 % faster"]
    cells.loc[cells.strategy == "ddp", "label_reasons"] = two
    rows = {row[0]: row[-1] for row in step_table(cells).rows}
    assert rows["DDP"] == "drift (2 of 2), for example: 24 % slower"
    assert rows["FSDP1"] == "drift: 3 % slower (2 of 2)"


def test_a_short_window_is_said_to_be_short(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp"], gpus=[2], seeds=[0, 1])
    short = config.measure.model_copy(update={"steady_min_s": 4.0, "steady_max_s": 4.0})
    config = config.model_copy(update={"measure": short})
    write_matrix(config, tmp_path)
    tables, _ = read_all(config, tmp_path)

    def said(*windows_s: float) -> list[str]:
        tables.cells["window_s"] = windows_s
        return [one.text for one in caveats(tables) if "timed window" in one.text]

    assert said(10.0, 12.0) == []
    assert said(4.2, 12.0) == [
        "1 run had a timed window of less than 10 s, the shortest of 4.2 s, so energy and drift "
        "are uncertain."
    ]


def test_why_a_verdict_of_the_gate_is_what_it_is_stands_below(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[2])
    write_parity(config, "ddp", 2, tmp_path, status="failed", reason="fp32: loss deviates")
    table = parity_table(read_all(config, tmp_path)[0].parity)
    assert table.notes == [
        "DDP, ranks: 2: fp32: loss deviates.",
        "FSDP1, ranks: 2: there is no verdict on this definition.",
    ]
    assert max(len(row[3]) for row in table.rows) < 30


def test_what_could_not_be_told_is_said_first_and_beside_each_cell(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp", "fsdp"], gpus=[2], seeds=[0, 1])
    write_matrix(config, tmp_path)
    good = metrics_of(cell_of(config, "w", "ddp", 2, 1))
    silent = [device.model_copy(update={"throttled_pct": None}) for device in good.devices]
    write(good.model_copy(update={"devices": silent}), tmp_path)
    tables, _ = read_all(config, tmp_path)
    (said,) = (one for one in caveats(tables) if one.text.startswith("Could not be checked: "))
    assert "throttled (1 run)" in said.text
    table = raw_table(tables.cells)
    place, name, seed = (table.headings.index(head) for head in ("unknown", "strategy", "seed"))
    unknown = {(row[name], row[seed]): row[place] for row in table.rows}
    assert "throttled" in unknown["ddp [DDP]", "1"].split(", ")
    assert "throttled" not in unknown["fsdp [FSDP1]", "1"].split(", ")


def test_comparisons_without_pairs_say_so() -> None:
    cells = cells_table({"ddp": 1.0, "fsdp": 0.97})
    cells["device_uuids"] = [GPU.format((7 * index) % 5) for index in range(len(cells))]
    ((primary, _),) = comparison_tables(compare(cells, "ddp"), "cuda")
    assert primary.notes == [
        "Not compared in pairs, because most seeds used different devices: FSDP1."
    ]


GPT = {
    "model": {"name": "gpt", "preset": "gpt_0b12"},
    "dataset": {"name": "synthetic_tokens"},
    "batch": {"per_gpu": 8},
    "optimizer": {"learning_rate": 0.1},
    "precision": "bf16",
    "epochs": 3,
}


@pytest.mark.slow
def test_each_workload_has_its_own_unit(tmp_path: Path) -> None:
    raw = {
        "run": "t",
        "matrix": {
            "workloads": ["photos", "texts"],
            "strategies": ["ddp", "fsdp"],
            "gpus": [1, 2],
            "seeds": [0, 1],
        },
        "workloads": {"photos": WORKLOAD, "texts": GPT},
        "cluster": {"device": "cuda", "gpus_per_node": 4},
    }
    config = load(raw, ROOT)
    write_matrix(config, tmp_path)
    page = build(config, tmp_path).read_text()
    for name, one, other in (("photos", "image", "token"), ("texts", "token", "image")):
        tables = [table for table in page.split("<table")[1:] if f">{name} on " in table]
        heads = [table.partition("</thead>")[0] for table in tables]
        overviews = [head for head in heads if f"{one.capitalize()}s/s per GPU" in head]
        assert len(overviews) == 2, "one per GPU count"
        assert all(f"J/{one}" in head for head in overviews)
        assert not any(other in head.lower() for head in heads)
    assert re.findall(r"million (\w+)</label>", page) == ["images", "tokens"]
    assert re.findall(r"Throughput \((\w+/s)\)", page) == ["images/s", "tokens/s"]
    tables, findings = read_all(config, tmp_path)
    summary = summarise(tables.cells, findings.comparisons, "ddp")
    units = [
        ("texts on" in table.caption, "Energy (J/token)" in table.headings)
        for table in summary_tables(summary, "ddp")
    ]
    assert units == [(False, False), (False, False), (True, True), (True, True)]


def test_captions_name_both_units_or_none() -> None:
    for name in FIGURES:
        text = caption(name)
        assert ("image" in text.lower()) == ("token" in text.lower()), text


def test_cells_that_the_matrix_leaves_out_are_not_missing(tmp_path: Path) -> None:
    parts = [{"gpus": [2]}, {"gpus": [1], "strategies": ["ddp"], "seeds": [0, 1]}]
    config = config_of(strategies=["ddp", "fsdp2"], only=parts)
    write_matrix(config, tmp_path)
    (table,) = [
        table
        for table in tables_to_export(*read_all(config, tmp_path))["outcomes"]
        if "one sign per seed" in table.caption
    ]
    assert table.caption.endswith("(0, 1, 2); / is not in the matrix")
    ok = Outcome.OK.sign
    assert table.rows == [
        ["DDP", f"{ok} {ok} /", f"{ok} {ok} {ok}"],
        ["FSDP2", "/ / /", f"{ok} {ok} {ok}"],
    ]
    assert "no result" not in build(config, tmp_path).read_text()


def test_a_share_of_a_step_that_is_almost_nothing_is_0(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp"], gpus=[1])
    write_matrix(config, tmp_path, side_files=False)
    cells = read_all(config, tmp_path)[0].cells.assign(host_wait_pct=0.00219, half_width_pct=1.234)
    table = step_table(cells)
    shown = dict(zip(table.headings, table.rows[0], strict=True))
    assert shown["Waits for its host (% of a step)"] == "0"
    assert shown["Precision of the mean (± %)"] == "1.23"


def test_brackets_in_a_value_are_no_detail() -> None:
    macros = PAGE_TEMPLATE.read_text().partition("<!doctype html>")[0]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        macros + "{{ show(table, 'id') }}"
    )
    rows = [["mine [1]", "node [2]"], ["ddp", Detailed("+1 %", "0 to 2 %")]]
    text = page.render(table=Table("caption", ["Strategy", "Value"], rows))
    assert "<td>node [2]</td>" in text
    assert "<td>+1 % <small>0 to 2 %</small></td>" in text


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cells\.csv is missing; `snakemake report` makes it"):
        read_tables(tmp_path)
