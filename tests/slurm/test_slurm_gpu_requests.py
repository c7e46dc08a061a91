"""Clusters that are set up otherwise: how cells run there, and what the doctor says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from accounting import jobs, options
from cluster import Cluster
from slurm_project import SCRIPTS, STAND_INS, SlurmProject
from test_slurm_doctor import doctor

# What the CPU cells ask for as cells on GPUs would.
GRES = ("gpu=None", "gres=f'gpu:{min(2, int(wildcards.gpus))}'")


@pytest.fixture(scope="module")
def bare(cluster: Cluster) -> Iterator[None]:
    """No accounting, GPUs by --gres alone, and jobs are accepted that no partition would start."""
    with cluster.configured(
        ("SelectType=select/cons_tres", "SelectType=select/cons_res"),
        ("AccountingStorageType=accounting_storage/slurmdbd", ""),
        ("AccountingStorageTRES=gres/gpu", ""),
        ("AccountingStorageEnforce=limits", ""),
        ("AccountingStoreFlags=job_comment", ""),
        ("EnforcePartLimits=ALL", "EnforcePartLimits=NO"),
    ):
        yield


@pytest.fixture(scope="module")
def without_gres(cluster: Cluster) -> Iterator[None]:
    with cluster.configured(gres=False):
        yield


def edit_profile(project: SlurmProject, *edits: tuple[str, str]) -> None:
    profile = project.folder / "profiles/slurm/config.yaml"
    for before, after in edits:
        assert before in profile.read_text()
        profile.write_text(profile.read_text().replace(before, after))


BY_SQUEUE = ("jobs: 100", "jobs: 100\nslurm-status-command: squeue")


def test_cells_run_where_there_is_no_accounting_and_gpus_are_gres_alone(
    project: SlurmProject, bare: None
) -> None:
    edit_profile(project, BY_SQUEUE)
    project.matrix("ddp", "4, 1")
    over_nodes = project.run(
        project.path("ddp", 4), "--set-resources", *(f"train:{each}" for each in GRES)
    )
    assert over_nodes.returncode == 0, over_nodes.stdout
    job = project.metrics("ddp", 4).slurm
    assert job is not None
    assert job.partition == "gpu"
    assert job.nodes == ["n1", "n2"]
    project.stand_in()
    project.matrix("ddp", "2, 1", device="cuda", gpu_request="gres")
    on_one = project.run(project.path("ddp", 2), project.path("ddp", 1))
    assert on_one.returncode == 0, on_one.stdout


def test_the_doctor_gives_each_mistake_a_line_of_its_own(project: SlurmProject, bare: None) -> None:
    project.matrix("ddp", "4, 1", device="cuda", time_limit_minutes=50)
    edit_profile(project, ("slurm_partition: gpu", "slurm_partition: brief"))
    failed = [line for line in doctor(project).stdout.splitlines() if line.startswith("FAIL")]
    states, cells, parity, gpus = failed
    assert "Slurm accounting storage is disabled -> set slurm-status-command: squeue" in states
    assert "the time limit of 55 min is above the partition's 1 min: 4-GPU cells" in cells
    assert "above the partition's 1 min: 4-rank parity" in parity
    assert "Requested GRES option unsupported by configured SelectType plugin" in gpus
    assert "1-GPU cells, 1-rank parity, the oracle (--nodes=1 --cpus-per-task=2 --gpus=1)" in gpus
    assert "gpu_request" in gpus


def test_a_cluster_without_gres_starts_cells_with_their_nodes_to_themselves(
    project: SlurmProject, without_gres: None
) -> None:
    project.matrix("ddp", "4, 1", device="cuda", gpu_request="none", slurm_extra="--exclusive")
    over_nodes = project.run(project.path("ddp", 4), "--retries", "0")
    # srun started both nodes, which have no GPU.
    assert "Invalid generic resource" not in over_nodes.stdout
    assert "no NVIDIA driver answers" in over_nodes.stdout
    project.stand_in()
    for script in ("make_oracle", "run_parity"):
        shutil.copy(STAND_INS / "write_outputs.py", project.folder / SCRIPTS / f"{script}.py")
    gate = "results/t/parity/small/ddp/ranks1.json"
    result = project.run(project.path("ddp", 1), gate)
    assert result.returncode == 0, result.stdout
    for job in jobs(project):
        asked = options(job)
        assert "--exclusive" in asked, job["Comment"]
        assert not {"--gpus", "--gres"} & asked.keys()
