"""Tables of cells for tests, as collect.py leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shardmark.metrics import Metrics
from shardmark.results.cell_rows import CellRow
from shardmark.results.cell_rows import cell_row as collected_row
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome
from shardmark.strategies import STRATEGIES

GPU = "GPU-{:02d}"
OTHERS = tuple(name for name in STRATEGIES if name != "ddp")


def cell_row(strategy: str, seed: int, items_per_s: float, **changes: Any) -> dict[str, Any]:
    """One usable cell on one GPU; ``changes`` to its columns."""
    return {
        "run": "t",
        "workload": "w",
        "strategy": strategy,
        "base": strategy,
        "gpus": 1,
        "nodes": 1,
        "seed": seed,
        "outcome": "ok",
        "excluded": "",
        "status": "ok",
        "device_faults": "",
        "parity": "passed",
        "scaling": "weak",
        "global_batch_size": 512,
        "per_gpu_batch_size": 512,
        "precision": "bf16",
        "batchnorm": "local",
        "device": "cuda",
        "unit": "images",
        "items_per_s": items_per_s,
        "memory_used_peak_bytes": 10 * 2**30,
        "energy_per_item_j": 400 / items_per_s,
        "epoch_s_mean": 50_000 / items_per_s,
        "total_s": 60 + 500_000 / items_per_s,
        "device_names": "NVIDIA H200",
        "device_uuids": GPU.format(0),
        "hosts": "node1",
        "torch": "2.15.0",
        "packages": "",
        "driver": "570.1",
        "git_commit": "a" * 40,
        "code_sha256": f"code of {strategy}",
        "path": f"results/t/w/{strategy}/gpus1/seed{seed}/metrics.json",
    } | changes


def cells_table(
    ratios: Mapping[str, float],
    seeds: Sequence[int] = range(9),
    sd: float = 0.005,
    noise: int = 0,
    **changes: Any,
) -> pd.DataFrame:
    """Cells of strategies whose throughput is 10,000 images/s times a ratio, with normal noise.

    Args:
        ratios: the strategies, and the true ratio of each to 10,000 images/s.
        seeds: one run each.
        sd: standard deviation from run to run, as a share.
        noise: seed of the noise.
        changes: to the columns of every cell.
    """
    generator = np.random.default_rng(noise)
    rows = [
        cell_row(strategy, seed, 1e4 * ratio * float(np.exp(generator.normal(0, sd))), **changes)
        for strategy, ratio in ratios.items()
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def row_of(metrics: Metrics) -> CellRow:
    """The row of a result whose strategy passed the parity gate."""
    planned = PlannedCell(metrics.cell, Outcome(metrics.status), metrics)
    return collected_row(planned, "passed", "")
