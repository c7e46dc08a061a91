"""The records of the nodes that blocks are pinned to, in a real Snakemake without Slurm."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardmark.metrics import Metrics, SlurmJob
from shardmark.slurm.pinned_nodes import read_nodes, restore_record
from small_matrix import cell_at
from test_workflow import CONFIG, DDP_CELL, MATRIX, Project, copy_project

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


@pytest.mark.parametrize(
    "text",
    ["", '{"nod', "[]", '{"nodes": "n1"}', '{"nodes": []}', '{"nodes": ["n1 $(date)"]}', "\0"],
)
def test_a_damaged_record_is_restored_from_a_result(text: str, tmp_path: Path) -> None:
    record = tmp_path / "seed1.json"
    record.write_text(text)
    with pytest.raises(FileNotFoundError):
        read_nodes(record)
    cell = cell_at()
    slurm = SlurmJob(job_id="7", partition=None, nodes=["n3", "n4"])
    metrics = Metrics(
        cell=cell, cell_sha256=cell.fingerprint(), code_sha256="0", status="ok", slurm=slurm
    )
    result = tmp_path / "metrics.json"
    result.write_text(metrics.model_dump_json(by_alias=True))
    message = restore_record(record, [tmp_path / "none.json", result])
    assert message == f"{record}: was damaged; {result} says that the nodes are n3, n4"
    assert read_nodes(record) == ["n3", "n4"]
    assert restore_record(record, [result]) == ""


def test_nodes_are_chosen_again_and_the_cell_runs_where_no_result_says_them(
    project: Project,
) -> None:
    record = project.folder / RECORD
    record.write_text('{"nod')
    (project.folder / DDP_CELL).unlink()
    project.ran()
    result = project.matrix(DDP_CELL)
    assert result.returncode == 0, result.stdout
    assert f"{RECORD}: was damaged; the nodes of its block are chosen again" in result.stdout
    assert len(project.ran()) == 1
    assert read_nodes(record)
    assert project.planned(DDP_CELL) == {}


def test_a_finished_cell_is_not_trained_again_when_its_record_is_damaged(
    project: Project,
) -> None:
    (project.folder / RECORD).write_text("{}")
    assert project.planned(DDP_CELL) == {}
    assert read_nodes(project.folder / RECORD)
