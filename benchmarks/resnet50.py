"""The cell that the benchmarks run: ResNet-50 with the CIFAR stem in bf16, 512 images per GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from run_cell import publish, run_cell
from shardmark.cells import Cell, cell_of
from shardmark.config.loading import load
from shardmark.launching.scratch import scratch_folder
from shardmark.metrics import Metrics
from shardmark.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]


def resnet50_cell(
    strategy: str,
    gpus: int,
    measure: Mapping[str, Any],
    *,
    dataset: Mapping[str, Any] | None = None,
    variants: Mapping[str, Any] | None = None,
    data_dir: str = "resources",
    **changes: Any,
) -> Cell:
    """A cell of one epoch of ten steps on one GPU, of fewer on more.

    Args:
        strategy: of the matrix, or one of ``variants``.
        gpus: of the cell, all on this machine.
        measure: as in the configuration.
        dataset: changes to the data set, which is synthetic.
        variants: as in the configuration.
        data_dir: where the data set is.
        changes: to the workload.
    """
    images = {"name": "synthetic", "classes": 10, "train_images": 5120, "test_images": 1024}
    workload: dict[str, Any] = {
        "model": {"name": "resnet50"},
        "dataset": images | dict(dataset or {}),
        "batch": {"per_gpu": 512},
        "optimizer": {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
        "precision": "bf16",
    } | changes
    raw = {
        "run": "benchmark",
        "matrix": {
            "workloads": ["w"],
            "strategies": [*STRATEGIES, *(variants or {})],
            "gpus": [gpus],
            "seeds": [0],
        },
        "workloads": {"w": workload},
        "variants": dict(variants or {}),
        "cluster": {"device": "cuda", "gpus_per_node": gpus},
        "data": {"dir": data_dir, "download": False},
        "measure": dict(measure),
    }
    return cell_of(load(raw, ROOT), "w", strategy, gpus, 0)


def run_in(
    folder: Path, cell: Cell, script: Path | None = None, stall_s: float | None = None
) -> Metrics:
    """The result of a cell, left in ``folder`` with what belongs to it."""
    path = folder / "metrics.json"
    with scratch_folder(path) as scratch:
        metrics = run_cell(cell, scratch, script=script, stall_s=stall_s)
        publish(scratch, path, metrics)
    return metrics
