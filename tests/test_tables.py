"""From the cells' files to the tables: what counts, what does not, and how it is written."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from built_pages import make_tables
from gpu_matrix import (
    ROOT,
    STRATEGIES,
    config_of,
    edit_json,
    failed,
    metrics_of,
    write,
    write_matrix,
    write_parity,
)
from shardmark.cells import cell_of
from shardmark.config.schema import Config
from shardmark.metrics import Metrics, SlurmJob
from shardmark.quantities import format_number
from shardmark.report.contents import CSV_TABLES, EXPORTED_TABLES, KINDS, exported_files
from shardmark.report.data_dictionary import dictionary
from shardmark.report.summary_table import summarise, summary_tables
from shardmark.report.table import Table, to_latex, to_markdown, to_text
from shardmark.results.cell_rows import CellRow, EpochRow
from shardmark.results.collected import collect
from shardmark.results.csv_tables import to_csv, to_frame
from shardmark.statistics.comparisons import compare
from shardmark.strategies import label_of


@pytest.fixture
def config() -> Config:
    return config_of()


def summary_of(config: Config, root: Path) -> list[Table]:
    cells = to_frame(CellRow, collect(config, root).cells)
    return list(summary_tables(summarise(cells, compare(cells, "ddp"), "ddp"), "ddp"))


def test_there_is_a_row_per_cell_and_a_row_per_epoch(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    collected = collect(config, tmp_path)
    assert len(collected.cells) == 8 * 2 * 3
    assert len(collected.epochs) == 8 * 2 * 3 * 3
    assert collected.failures == []
    key = ("fsdp2", 2, 1)
    row = next(row for row in collected.cells if (row.strategy, row.gpus, row.seed) == key)
    metrics = metrics_of(cell_of(config, "w", "fsdp2", 2, 1))
    assert metrics.throughput is not None
    assert row.items_per_s == metrics.throughput.items_per_s
    assert row.parity == "passed"
    assert row.power_w == 1200
    assert row.memory_used_peak_bytes == 17 * 2**30 + 1, "of the fullest device"
    assert row.device_uuids == "GPU-0;GPU-1"
    assert row.energy_per_epoch_j == pytest.approx(0.04 * 49_152)


def test_what_was_not_measured_is_empty_and_never_zero(config: Config, tmp_path: Path) -> None:
    cell = cell_of(config, "w", "ddp", 1, 0)
    write(failed(cell, "oom", "OutOfMemoryError: tried to allocate 2 GiB"), tmp_path)
    collected = collect(config, tmp_path)
    assert collected.epochs == []
    rows = csv.DictReader(io.StringIO(to_csv(CellRow, collected.cells)))
    [row] = [row for row in rows if row["outcome"] != "missing"]
    measured = ("items_per_s", "final_loss", "power_w", "energy_per_item_j", "training_s")
    assert [row[name] for name in (*measured, "slurm_job", "slurm_nodes")] == [""] * 7
    assert row["status"] == "oom"
    assert row["failure_phase"] == "training"


def test_a_failed_cell_names_its_slurm_job_too(config: Config, tmp_path: Path) -> None:
    metrics = failed(cell_of(config, "w", "ddp", 2, 0), "oom", "OutOfMemoryError")
    job = SlurmJob(job_id="4711", partition="gpu", nodes=["n1", "n2"])
    write(metrics.model_copy(update={"slurm": job}), tmp_path)
    [row] = [row for row in collect(config, tmp_path).cells if row.slurm_job]
    assert (row.slurm_job, row.slurm_partition, row.slurm_nodes) == ("4711", "gpu", "n1;n2")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_text("{"), "not readable as JSON"),
        (lambda path: edit_json(path, schema_version=99), "schema version 99"),
        (lambda path: edit_json(path, cell_sha256="0" * 64), "cell_sha256 is not the checksum"),
        (lambda path: edit_json(path, status="fine"), "status"),
    ],
)
def test_a_result_that_does_not_count_is_refused_with_its_path(
    spoil, reason: str, config: Config, tmp_path: Path
) -> None:
    paths = write_matrix(config, tmp_path)
    spoil(paths[5])
    collected = collect(config, tmp_path)
    assert len(collected.cells) == len(paths)
    [row] = [row for row in collected.cells if row.outcome == "refused"]
    assert row.items_per_s is None
    assert row.excluded == "refused"
    [failure] = collected.failures
    assert str(paths[5]) in failure.reason
    assert reason in failure.reason


def test_a_cell_without_a_result_has_a_row_that_says_so(config: Config, tmp_path: Path) -> None:
    paths = write_matrix(config, tmp_path)
    paths[5].unlink()
    cells = collect(config, tmp_path).cells
    assert [row.path for row in cells if row.outcome == "missing"] == [
        str(paths[5].relative_to(tmp_path))
    ]
    assert len({row.place for row in cells}) == len(paths), "the missing one has its place too"


def test_a_verdict_on_another_definition_does_not_count(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    write_parity(config, "fsdp", 2, tmp_path, case_sha256="0")
    write_parity(config, "dp", 1, tmp_path, status="failed", reason="fp32: loss deviates")
    cells = collect(config, tmp_path).cells
    verdicts = {(row.strategy, row.gpus): row.parity for row in cells}
    assert verdicts["fsdp", 2] == "missing"
    assert verdicts["dp", 1] == "failed"
    notes = [note for table in summary_of(config, tmp_path) for note in table.notes]
    assert any(note.startswith("FSDP1: parity not checked yet") for note in notes)


def test_the_summary_gives_medians_with_the_range_and_the_ratio(
    config: Config, tmp_path: Path
) -> None:
    write_matrix(config, tmp_path)
    one, two = summary_of(config, tmp_path)
    assert "1 GPU, weak scaling" in one.caption
    assert "2 GPUs" in two.caption
    assert "n = 3" in two.caption
    assert [row[0] for row in two.rows] == list(map(label_of, config.matrix.strategies))
    ddp = dict(zip(two.headings, two.rows[1], strict=True))
    assert ddp["Throughput / DDP"] == "1.000"
    speeds = sorted(
        metrics_of(cell_of(config, "w", "ddp", 2, seed)).throughput.items_per_s  # type: ignore[union-attr]
        for seed in range(3)
    )
    low, middle, high = (format_number(speed) for speed in speeds)
    assert ddp["Throughput (images/s)"] == f"{middle} [{low}, {high}]"
    assert ddp["Memory peak (GiB)"].startswith("19.00 ")


def test_gpu_counts_ascend_whatever_their_order_in_the_matrix(tmp_path: Path) -> None:
    config = config_of(strategies=["ddp"], gpus=[2, 1])
    write_matrix(config, tmp_path)
    one, two = summary_of(config, tmp_path)
    assert "on 1 GPU," in one.caption
    assert "on 2 GPUs," in two.caption


def test_failures_are_counted_and_named_and_left_out(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    write(failed(cell_of(config, "w", "ddp", 1, 2), "oom", "OutOfMemoryError"), tmp_path)
    one = summary_of(config, tmp_path)[0]
    assert one.rows[1][1] == "2 of 3"
    assert "DDP: 2 ok, 1 oom." in one.notes


def faulty(config: Config, strategy: str, seed: int) -> Metrics:
    """A cell ten times as fast as its like, on GPUs that it shared."""
    good = metrics_of(cell_of(config, "w", strategy, 1, seed))
    assert good.throughput is not None
    speed = good.throughput.model_copy(update={"items_per_s": 150_000.0})
    shared = [device.model_copy(update={"foreign_processes": 2}) for device in good.devices]
    return good.model_copy(update={"devices": shared, "throughput": speed})


def by_heading(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.headings, table.rows[row], strict=True))


def test_medians_are_of_the_runs_that_are_compared(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    write(faulty(config, "ddp", 0), tmp_path)
    one = summary_of(config, tmp_path)[0]
    ddp = by_heading(one, 1)
    assert ddp["Runs"] == "2 of 3"
    assert "150,000" not in ddp["Throughput (images/s)"]
    assert ddp["Throughput / DDP"] == "1.000"
    assert "n = 2 to 3 runs" in one.caption
    assert "Excluded for a device fault: 1 of 3 cells of DDP." in one.notes


def test_a_strategy_of_excluded_runs_alone_is_shown_and_compared_to_nothing(
    config: Config, tmp_path: Path
) -> None:
    write_matrix(config, tmp_path)
    for seed in range(3):
        write(faulty(config, "fsdp", seed), tmp_path)
    one = summary_of(config, tmp_path)[0]
    fsdp = by_heading(one, 2)
    assert fsdp["Runs"] == "3"
    assert fsdp["Throughput (images/s)"].startswith("150,000")
    assert fsdp["Throughput / DDP"] == "–"
    said = "Included in spite of a device fault, because no other run is ok: 3 of 3 cells of FSDP1."
    assert said in one.notes


def test_faulty_cells_of_an_unproven_strategy_are_not_shown_beside_its_other_runs(
    config: Config, tmp_path: Path
) -> None:
    write_matrix(config, tmp_path)
    write(faulty(config, "fsdp", 0), tmp_path)
    write_parity(config, "fsdp", 1, tmp_path, status="failed", reason="fp32: loss deviates")
    one = summary_of(config, tmp_path)[0]
    fsdp = by_heading(one, 2)
    assert fsdp["Runs"] == "2 of 3"
    assert "150,000" not in fsdp["Throughput (images/s)"]
    assert fsdp["Throughput / DDP"] == "–"
    assert "Excluded for a device fault: 1 of 3 cells of FSDP1." in one.notes


def test_each_table_of_the_report_is_exported_in_every_kind(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    write(failed(cell_of(config, "w", "ddp", 1, 2), "oom", "OutOfMemoryError: 2_GiB"), tmp_path)
    tables = make_tables(config, tmp_path)
    command = [sys.executable, str(ROOT / "workflow/scripts/export_tables.py")]
    subprocess.run([*command, "--tables", str(tables)], cwd=tmp_path, check=True)
    assert all((tables / name).exists() for name in exported_files())
    for name in EXPORTED_TABLES:
        kinds = {kind: (tables / f"{name}.{kind}").read_text() for kind in KINDS}
        assert kinds["md"].startswith("**")
        assert r"\toprule" in kinds["tex"]
    assert "OutOfMemoryError: 2\\_GiB" in (tables / "failures.tex").read_text()
    [row] = csv.DictReader((tables / "failures.csv").open())
    assert (row["strategy"], row["seed"], row["outcome"]) == ("ddp", "2", "oom")
    assert "M" in (tables / "outcomes.md").read_text()
    certified = (tables / "certificate.md").read_text()
    assert "w: 1 replica, read back" in certified
    assert "w: 2 replicas, read back" in certified


def test_csv_keeps_every_digit(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    collected = collect(config, tmp_path)
    cells = to_frame(CellRow, collected.cells)
    assert list(cells.items_per_s) == [row.items_per_s for row in collected.cells]
    epochs = collected.epochs
    assert to_csv(EpochRow, epochs).count("\n") == len(epochs) + 1


def summarised(config: Config, root: Path) -> Path:
    """The folder of all tables, the summary with them."""
    tables = make_tables(config, root)
    command = [sys.executable, str(ROOT / "workflow/scripts/summarise.py")]
    subprocess.run([*command, "--tables", str(tables), "--baseline", "ddp"], cwd=root, check=True)
    return tables


def test_the_data_dictionary_has_every_column_of_every_csv(config: Config, tmp_path: Path) -> None:
    write_matrix(config, tmp_path)
    files = list(summarised(config, tmp_path).glob("*.csv"))
    assert {file.stem for file in files} == set(CSV_TABLES)
    for file in files:
        section = dictionary().partition(f"## {file.name}\n")[2].partition("\n## ")[0]
        columns = next(csv.reader(file.open()))
        assert [name for name in columns if f"| `{name}` |" not in section] == [], file.name


def test_the_summary_for_terminals_begins_with_the_answer_and_is_not_wide(
    config: Config, tmp_path: Path
) -> None:
    write_matrix(config, tmp_path)
    lines = (summarised(config, tmp_path) / "summary.txt").read_text().splitlines()
    assert lines[0].startswith("w: ")
    assert "Measured on 2 GPUs" in " ".join(lines[:6]) or "Use " in lines[0]
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("DeepSpeed ZeRO-3 ") for line in lines) > 2, "several blocks"


TABLE = Table("50 % of a_b & c", ["Name", "A (%)"], [["x_1", "–"], ["y|z", "1,234"]], ["a < b"])


def test_markdown_latex_and_text_escape_what_they_must() -> None:
    markdown = to_markdown([TABLE])
    assert "| y\\|z   |   1,234 |" in markdown
    latex = to_latex([TABLE])
    assert r"\caption{50 \% of a\_b \& c}" in latex
    assert r"    x\_1 & \textendash{} \\" in latex
    assert r"\toprule" in latex
    lines = to_text([TABLE]).splitlines()
    assert len({len(line) for line in lines[2:5]}) == 1, "columns are aligned"


@pytest.mark.parametrize(
    ("value", "text"),
    [(14823.4, "14,823"), (0.0123456, "0.01235"), (None, "–"), (float("nan"), "–"), (0, "0")],
)
def test_numbers_are_written_with_four_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_every_column_has_a_meaning() -> None:
    for model in (CellRow, EpochRow):
        assert all(field.description for field in model.model_fields.values())
    assert set(STRATEGIES) == set(config_of().matrix.strategies)
    assert (ROOT / "workflow/report/summary.rst").exists()
