"""Cells that train on the cluster: on one node, and over two."""

from __future__ import annotations

from cluster import jobs, tres
from shardmark.metrics import read_parity
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
    given = {job["Comment"]: tres(job["AllocTRES"]) for job in jobs(("Comment", "AllocTRES"))}
    for gpus in (1, 2, 4):
        assert given[f"rule_train_wildcards_small_ddp_{gpus}_0"]["gres/gpu"] == str(gpus)
