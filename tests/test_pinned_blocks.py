"""The records of the nodes that blocks are pinned to, in a real Snakemake without Slurm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardmark.measurement.telemetry import node_name
from shardmark.metrics import Metrics, SlurmJob
from shardmark.slurm.pinned_nodes import read_nodes, restore_record
from small_matrix import cell_at
from test_workflow import CELL, CONFIG, DDP_CELL, MATRIX, Project, copy_project

RECORD = "results/t/blocks/small/gpus2/seed1.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = copy_project(tmp_path_factory.mktemp("whole"))
    (project.folder / CONFIG).write_text(
        MATRIX.replace("device: cpu", "device: cpu, block: pinned")
    )
    result = project.matrix(DDP_CELL)
    assert result.returncode == 0, result.stdout
    return project.folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(whole, tmp_path / "project")))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """The result of a cell that ran on two nodes of Slurm."""
    return write_result(tmp_path / "metrics.json", ["n3", "n4"])


def write_result(path: Path, nodes: list[str] | None) -> Path:
    cell = cell_at()
    slurm = SlurmJob(job_id="7", partition=None, nodes=nodes) if nodes else None
    metrics = Metrics(
        cell=cell, cell_sha256=cell.fingerprint(), code_sha256="0", status="ok", slurm=slurm
    )
    path.write_text(metrics.model_dump_json(by_alias=True))
    return path


@pytest.mark.parametrize(
    "text",
    ["", '{"nod', "[]", '{"nodes": "n1"}', '{"nodes": []}', '{"nodes": ["n1 $(date)"]}', "\0"],
)
def test_a_damaged_record_is_restored_from_a_result(
    text: str, result: Path, tmp_path: Path
) -> None:
    record = tmp_path / "seed1.json"
    record.write_text(text)
    with pytest.raises(FileNotFoundError):
        read_nodes(record)
    message = restore_record(record, [tmp_path / "none.json", result], [])
    assert message == f"{record}: was damaged; {result} says that the nodes are n3, n4"
    assert read_nodes(record) == ["n3", "n4"]
    assert restore_record(record, [result], []) == ""


def test_a_missing_record_is_restored_from_a_result(result: Path, tmp_path: Path) -> None:
    record = tmp_path / "seed1.json"
    assert restore_record(record, [tmp_path / "none.json"], ["here"]) == ""
    assert not record.exists(), "nothing ran yet"
    assert restore_record(record, [result], []).startswith(f"{record}: was missing; {result}")
    assert read_nodes(record) == ["n3", "n4"]


def test_on_slurm_a_result_of_another_machine_names_no_nodes(result: Path, tmp_path: Path) -> None:
    record = tmp_path / "seed1.json"
    record.write_text("{}")
    elsewhere = write_result(tmp_path / "elsewhere.json", None)
    assert "n3, n4" in restore_record(record, [elsewhere, result], [])
    record.write_text("{}")
    assert "are chosen again" in restore_record(record, [elsewhere], [])
    assert not record.exists()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [True, False])
def test_a_lost_record_repeats_no_cell(damaged: bool, project: Project) -> None:
    record = project.folder / RECORD
    record.write_text("{}") if damaged else record.unlink()
    other = CELL.format("small", "fsdp", 2, 1)
    assert project.planned(DDP_CELL) == {}
    assert project.planned(DDP_CELL, other)["train"] == {other}
    assert record.exists() == damaged, "a dry run writes nothing"
    project.ran()
    result = project.matrix(DDP_CELL, other)
    assert result.returncode == 0, result.stdout
    assert project.ran() == ["small fsdp gpus2 seed1"]
    assert read_nodes(record) == [node_name()]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--dry-run", "--touch", "--summary"])
def test_what_runs_no_job_leaves_a_damaged_record(option: str, project: Project) -> None:
    record = project.folder / RECORD
    record.write_text("{}")
    result = project.matrix(option, DDP_CELL)
    assert result.returncode == 0, result.stdout
    assert record.read_text() == "{}"


@pytest.mark.slow
def test_nodes_are_chosen_again_and_the_cell_runs_where_no_result_says_them(
    project: Project,
) -> None:
    record = project.folder / RECORD
    record.write_text('{"nod')
    (project.folder / DDP_CELL).unlink()
    assert project.planned(DDP_CELL)["train"] == {DDP_CELL}
    project.ran()
    result = project.matrix(DDP_CELL)
    assert result.returncode == 0, result.stdout
    assert f"{RECORD}: was damaged; the nodes of its block are chosen again" in result.stdout
    assert len(project.ran()) == 1
    assert read_nodes(record)
    assert project.planned(DDP_CELL) == {}
