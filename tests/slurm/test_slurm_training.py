"""Cells that train on the cluster: on one node, and over two."""

from __future__ import annotations

import itertools
import time

import pytest

from accounting import assert_asked_and_given, comment, last_jobs
from cluster import PARTITION
from parity_cases import STRATEGIES
from shardmark.parity_result import read_parity
from slurm_project import SlurmProject


def test_cells_of_one_gpu_two_gpus_and_two_nodes_train_the_same(project: SlurmProject) -> None:
    project.matrix("ddp, dp", "4, 2, 1")
    targets = [project.path(s, n) for s in ("ddp", "dp") for n in (4, 2, 1)]
    verdict = "results/t/parity/small/ddp/ranks4.json"
    result = project.run(*targets, verdict, fake_gpus=True)
    assert result.returncode == 0, result.stdout
    for gpus in (1, 2, 4):
        metrics = project.metrics("ddp", gpus)
        assert metrics.status == "ok", metrics.failure
        assert metrics.cell.nodes == len(metrics.devices) == max(1, gpus // 2)
        assert metrics.throughput is not None
    assert project.metrics("dp", 1).status == "ok"
    assert project.metrics("dp", 2).status == "unsupported"
    two_nodes = project.metrics("ddp", 4)
    assert len({device.node for device in two_nodes.devices}) == 2
    assert all(device.samples for device in two_nodes.devices), "a sampler on each node"
    parity = read_parity(project.folder / verdict)
    assert parity.status == "passed", parity.reason
    jobs = last_jobs(project)
    for gpus in (1, 2, 4):
        job, ran = jobs[comment("ddp", gpus)], project.metrics("ddp", gpus).slurm
        assert_asked_and_given(job, gpus)
        assert ran is not None
        assert (ran.job_id, ran.partition) == (job["JobIDRaw"], PARTITION)
        assert len(ran.nodes) == int(job["NNodes"])


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_every_strategy_on_1_2_and_4_gpus_with_two_seeds(project: SlurmProject) -> None:
    project.matrix(", ".join(STRATEGIES), "4, 2, 1", "0, 1")
    cells = list(itertools.product(STRATEGIES, (4, 2, 1), (0, 1)))
    begin = time.monotonic()
    result = project.run(*(project.path(*cell) for cell in cells), fake_gpus=True)
    minutes = (time.monotonic() - begin) / 60
    assert result.returncode == 0, result.stdout
    jobs = last_jobs(project)
    print(f"\n{len(cells)} cells in {minutes:.1f} min")
    for strategy, gpus, seed in cells:
        metrics = project.metrics(strategy, gpus, seed)
        if strategy == "dp" and gpus > 1:
            assert metrics.status == "unsupported"
            assert comment(strategy, gpus, seed) not in jobs
            continue
        job = jobs[comment(strategy, gpus, seed)]
        assert metrics.status == "ok", metrics.failure
        assert_asked_and_given(job, gpus)
        assert metrics.throughput is not None
        print(
            f"{strategy:16} gpus {gpus} seed {seed}: {job['NodeList']:7} {job['AllocTRES']} "
            f"{job['ElapsedRaw']:>3} s, {metrics.throughput.items_per_s:.0f} images/s"
        )
