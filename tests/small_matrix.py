"""A small matrix for tests, and changes to it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from shardmark.cells import Cell, cell_of
from shardmark.config.loading import load
from shardmark.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
RAW: dict[str, Any] = {
    "run": "t",
    "matrix": {
        "workloads": ["small"],
        "strategies": ["dp", "ddp", "slim"],
        "gpus": [1, 2],
        "seeds": [0, 1],
    },
    "workloads": {
        "small": {
            "model": {"name": "resnet8"},
            "dataset": {"name": "synthetic", "train_images": 64, "test_images": 16},
            "batch": {"global": 16},
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
            "schedule": {"warmup_epochs": 1},
            "precision": "fp32",
            "epochs": 2,
        }
    },
    "variants": {"slim": {"base": "ddp", "comm_hook": "bf16_compress"}},
    "cluster": {"device": "cpu", "gpus_per_node": 4},
    "data": {"dir": "config"},
    "measure": {
        "steady_min_s": 0.2,
        "steady_max_s": 0.2,
        "warmup_min_steps": 3,
        "warmup_max_steps": 20,
    },
}


def changed(**values: Any) -> dict[str, Any]:
    """The configuration with values at paths; ``a__b`` is ``a.b``."""
    raw = copy.deepcopy(RAW)
    for path, value in values.items():
        *parents, key = path.split("__")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return raw


def matrix(**values: Any) -> Config:
    """The validated configuration, with values at paths."""
    return load(changed(**values), ROOT)


def cell_at(strategy: str = "ddp", gpus: int = 1, seed: int = 0, **values: Any) -> Cell:
    """One cell of it."""
    return cell_of(matrix(**values), "small", strategy, gpus, seed)
