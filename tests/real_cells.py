"""Real cells on this machine's CPU, small enough for a test."""

from __future__ import annotations

from typing import Any

from parity_cases import ROOT, STRATEGIES, VARIANTS
from shardmark.cells import Cell, cell_of
from shardmark.config import load


def cell_named(
    strategy: str, gpus: int = 2, measure: dict[str, Any] | None = None, **changes: Any
) -> Cell:
    """A cell of one epoch of four steps; ``changes`` to its workload."""
    workload: dict[str, Any] = {
        "model": {"name": "resnet8"},
        "dataset": {"name": "synthetic", "train_images": 64, "test_images": 16},
        "batch": {"global": 16},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "precision": "fp32",
    } | changes
    raw = {
        "run": "test",
        "matrix": {
            "workloads": ["w"],
            "strategies": [*STRATEGIES, *VARIANTS],
            "gpus": [1, 2],
            "seeds": [0],
        },
        "workloads": {"w": workload},
        "variants": VARIANTS,
        "cluster": {"device": "cpu"},
        "measure": {"steady_s": 0.3, "warmup_min_steps": 4, "warmup_max_steps": 8}
        | (measure or {}),
    }
    return cell_of(load(raw, ROOT), "w", strategy, gpus, 0)
