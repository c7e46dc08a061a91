"""What each cell asks of Slurm, and what Slurm gives it."""

from __future__ import annotations

import re
import shlex

import pytest

from cluster import Cluster, jobs, tres
from slurm_project import SlurmProject

FIELDS = ("JobIDRaw", "State", "ReqTRES", "AllocTRES", "NNodes", "TimelimitRaw", "SubmitLine")


def jobs_by_comment() -> dict[str, dict[str, str]]:
    """Accounting's last job of each rule and cell, by the plugin's comment."""
    found = jobs((*FIELDS, "Comment"))
    return {job["Comment"]: job for job in found}


def options(submit_line: str) -> dict[str, str]:
    """The options of an sbatch call."""
    words = shlex.split(submit_line.split(" --wrap")[0])
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if match := re.fullmatch(r"(--[a-z-]+)=(.*)", word):
            found[match[1]] = match[2]
        elif word.startswith("-"):
            found[word] = "" if following.startswith("-") else following
    return found


def test_every_cell_asks_for_its_gpus_nodes_cpus_memory_and_time(project: SlurmProject) -> None:
    project.stand_in()
    project.matrix("ddp, dp", "4, 2, 1", device="cuda")
    targets = [project.path(s, n) for s in ("ddp", "dp") for n in (4, 2, 1)]
    result = project.run(*targets)
    assert result.returncode == 0, result.stdout
    found = jobs_by_comment()
    for strategy in ("ddp", "dp"):
        for gpus in (1, 2, 4):
            if (strategy, gpus) == ("dp", 4):
                continue
            job = found[f"rule_train_wildcards_small_{strategy}_{gpus}_0"]
            nodes, on_node = max(1, gpus // 2), min(gpus, 2)
            asked = options(job["SubmitLine"])
            assert asked["--nodes"] == str(nodes)
            assert asked["--mem"] == str(3000 * on_node)
            assert asked["-t"] == "15"
            assert asked.get("--gpus") == (str(gpus) if nodes == 1 else None)
            assert asked.get("--gres") == (None if nodes == 1 else "gpu:2")
            given = tres(job["AllocTRES"])
            assert given["gres/gpu"] == str(gpus)
            assert given["node"] == job["NNodes"] == str(nodes)
            assert given["cpu"] == str(2 * gpus)
            assert given["mem"] in (f"{3000 * gpus}M", f"{3000 * gpus / 1024:.2f}G")
            assert job["TimelimitRaw"] == "15"
            assert job["State"] == "COMPLETED"
    assert project.metrics("dp", 4).status == "unsupported"
    assert "rule_train_wildcards_small_dp_4_0" not in found


def test_a_cell_has_its_nodes_to_itself_by_default(project: SlurmProject) -> None:
    project.stand_in()
    project.matrix("ddp", "1", device="cuda", slurm_extra="--exclusive")
    result = project.run(project.path("ddp", 1))
    assert result.returncode == 0, result.stdout
    job = jobs_by_comment()["rule_train_wildcards_small_ddp_1_0"]
    assert "--exclusive" in options(job["SubmitLine"])
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
    ran = {job["Comment"]: job["NodeList"] for job in jobs(("Comment", "NodeList"))}
    for seed in (0, 1):
        block = f"results/t/blocks/small/gpus2/seed{seed}.json"
        (pinned,) = re.findall(r'"nodes": \["(n\d)"\]', (project.folder / block).read_text())
        for strategy in ("ddp", "fsdp", "fsdp2"):
            assert ran[f"rule_train_wildcards_small_{strategy}_2_{seed}"] == pinned


def test_the_cluster_is_real(cluster: Cluster) -> None:
    assert set(cluster.daemons) >= {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-n4"}
