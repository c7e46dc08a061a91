"""What each cell asks of Slurm, and what Slurm gives it."""

from __future__ import annotations

import re

import pytest

from accounting import assert_asked_and_given, comment, last_jobs, options, tres
from cluster import Cluster
from slurm_project import SlurmProject


def test_every_cell_asks_for_its_gpus_nodes_cpus_memory_and_time_in_the_planned_order(
    project: SlurmProject,
) -> None:
    project.stand_in()
    project.matrix("ddp, dp", "4, 2, 1", device="cuda")
    targets = [project.path(s, n) for s in ("ddp", "dp") for n in (4, 2, 1)]
    result = project.run(*targets)
    assert result.returncode == 0, result.stdout
    jobs = last_jobs(project)
    ran = [("ddp", 4), ("ddp", 2), ("ddp", 1), ("dp", 2), ("dp", 1)]
    for strategy, gpus in ran:
        assert_asked_and_given(jobs[comment(strategy, gpus)], gpus)
    logs = project.folder / ".snakemake/slurm_logs/rule_train"
    for strategy, gpus in ran:
        job = jobs[comment(strategy, gpus)]
        assert job["JobName"].startswith("shardmark_")
        assert (logs / f"t_small_{strategy}_{gpus}_0/{job['JobIDRaw']}.log").exists()
    assert project.metrics("dp", 4).status == "unsupported"
    assert comment("dp", 4) not in jobs
    places = {project.metrics(*cell).provenance["planned_place"]: cell for cell in ran}
    submitted = sorted(ran, key=lambda cell: int(jobs[comment(*cell)]["JobIDRaw"]))
    assert submitted == [places[place] for place in sorted(places)]


def test_a_cell_has_its_nodes_to_itself_by_default(project: SlurmProject) -> None:
    project.stand_in()
    project.matrix("ddp", "1", device="cuda", slurm_extra="--exclusive")
    result = project.run(project.path("ddp", 1))
    assert result.returncode == 0, result.stdout
    job = last_jobs(project)[comment("ddp", 1)]
    assert "--exclusive" in options(job)
    assert tres(job["ReqTRES"])["gres/gpu"] == "1"
    assert tres(job["AllocTRES"])["cpu"] == "16", "all CPUs of its node"


@pytest.mark.parametrize(
    ("gpus", "limit", "words"),
    [
        (2, "gpu=1", "Step requested gres=gpu:2 is more than the job's gres=gpu:1"),
        (4, "nodes=1", "has less than the cell names (nodes: 1 of 2; GPUs: 2 of 4)"),
    ],
)
def test_what_a_limit_clipped_is_named(
    gpus: int, limit: str, words: str, project: SlurmProject
) -> None:
    project.matrix("ddp", str(gpus), device="cuda")
    result = project.run(project.path("ddp", gpus), "--resources", limit, "--retries", "0")
    assert result.returncode == 1
    assert words in result.stdout, result.stdout
    assert "Traceback" not in result.stdout


def test_the_cells_of_a_pinned_block_run_on_the_same_nodes(project: SlurmProject) -> None:
    project.stand_in()
    project.matrix("ddp, fsdp, fsdp2", "2", "0, 1", device="cuda", block="pinned")
    targets = [project.path(s, 2, seed) for s in ("ddp", "fsdp", "fsdp2") for seed in (0, 1)]
    result = project.run(*targets)
    assert result.returncode == 0, result.stdout
    ran = last_jobs(project)
    for seed in (0, 1):
        block = f"results/t/blocks/small/gpus2/seed{seed}.json"
        (pinned,) = re.findall(r'"nodes": ?\["(n\d)"\]', (project.folder / block).read_text())
        for strategy in ("ddp", "fsdp", "fsdp2"):
            assert ran[comment(strategy, 2, seed)]["NodeList"] == pinned


def test_the_cluster_is_real(cluster: Cluster) -> None:
    assert set(cluster.daemons) >= {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-n4"}
