"""The doctor on a cluster: its own job, of the largest cell's size, over two nodes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from accounting import jobs, options, tres
from slurm_project import CONFIG, SCRIPTS, SlurmProject


def doctor(project: SlurmProject) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"{SCRIPTS}/doctor.py", "--slurm", "--configfile", CONFIG]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_the_doctor_runs_as_a_job_over_the_nodes_of_the_largest_cell(
    project: SlurmProject,
) -> None:
    project.matrix("ddp", "4, 1")
    done = doctor(project)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("ok    partition", "ok    request", "on n", "over 4 ranks, gloo"):
        assert words in done.stdout, done.stdout
    (job,) = jobs(project)
    assert job["State"] == "COMPLETED"
    assert tres(job["AllocTRES"])["node"] == "2"
    assert options(job)["-t"] == "5"


@pytest.mark.parametrize(
    ("cpus_per_gpu", "edit", "words"),
    [
        (9, None, "2-GPU cells, 2-rank parity (--nodes=1 --cpus-per-task=18 --gpus=2)"),
        (2, ("slurm_partition: gpu", "slurm_partition: gpus"), "there is no gpus"),
        (
            2,
            ("slurm_account: lab", "slurm_account: labs"),
            "The given account labs appears",
        ),
    ],
)
def test_what_slurm_would_refuse_is_told_without_a_job(
    cpus_per_gpu: int, edit: tuple[str, str] | None, words: str, project: SlurmProject
) -> None:
    project.matrix("ddp", "2", device="cuda", cpus_per_gpu=cpus_per_gpu)
    if edit is not None:
        profile = project.folder / "profiles/slurm/config.yaml"
        assert edit[0] in profile.read_text()
        profile.write_text(profile.read_text().replace(*edit))
    done = doctor(project)
    assert done.returncode == 1
    assert words in done.stdout, done.stdout
    assert jobs(project) == []
