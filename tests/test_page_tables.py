"""The page's tables: in the order of the matrix, and with long reasons out of the way."""

from __future__ import annotations

from pathlib import Path

from built_pages import read_all
from gpu_matrix import config_of, metrics_of, write, write_matrix, write_parity
from result_tables import GPU, cells_table
from shardmark.cells import cell_of
from shardmark.report.caveats import caveats
from shardmark.report.exports import tables_to_export
from shardmark.report.page_tables import comparison_tables, parity_table, raw_table, scaling_table
from shardmark.statistics.comparisons import compare


def test_speed_ups_stand_in_the_order_of_the_matrix(tmp_path: Path) -> None:
    config = config_of(strategies=["fsdp2", "dp", "ddp"], gpus=[1, 2])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    table = scaling_table(findings.scaling, tables.strategies)
    names = ["FSDP2", "DataParallel", "DDP"]
    assert [(row[0], row[1]) for row in table.rows] == [
        (name, count) for name in names for count in ("1", "2")
    ]


def test_one_gpu_count_has_no_scaling(tmp_path: Path) -> None:
    config = config_of(strategies=["dp", "ddp"], gpus=[1])
    write_matrix(config, tmp_path)
    tables, findings = read_all(config, tmp_path)
    assert len(findings.scaling) == 2
    table = scaling_table(findings.scaling, tables.strategies)
    assert table.rows == []
    assert table.notes == ["No strategy has results at two GPU counts."]
    exported = tables_to_export(tables, findings)
    assert exported["scaling"][0].notes == table.notes, "the page links to its files"


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
        "Ran on other devices than the baseline, so not paired with it: FSDP1."
    ]
