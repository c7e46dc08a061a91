"""The cell of a language model that the benchmarks run, with the settings of plain_gpt.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnet50 import ROOT
from shardmark.cells import Cell, cell_of
from shardmark.config.loading import load
from shardmark.strategies import STRATEGIES

# The frameworks' own mixed precision, as in config/config.yaml.
VARIANTS: dict[str, dict[str, Any]] = {
    "fsdp_bf16": {"base": "fsdp", "param_dtype": "bf16"},
    "fsdp2_bf16": {"base": "fsdp2", "param_dtype": "bf16"},
    "zero1_bf16": {"base": "deepspeed_zero1", "param_dtype": "bf16"},
    "zero2_bf16": {"base": "deepspeed_zero2", "param_dtype": "bf16"},
    "zero3_bf16": {"base": "deepspeed_zero3", "param_dtype": "bf16"},
}


def gpt_cell(
    strategy: str, gpus: int, measure: Mapping[str, Any], preset: str, *, checkpoint: bool
) -> Cell:
    """A cell of one epoch of five steps.

    Args:
        strategy: of the matrix, or one of ``VARIANTS``.
        gpus: of the cell, all on this machine.
        measure: as in the configuration.
        preset: the model's size.
        checkpoint: whether the backward pass computes the blocks again.
    """
    workload: dict[str, Any] = {
        "model": {"name": "gpt", "preset": preset},
        "dataset": {"name": "synthetic_tokens", "sequences": 20 * gpus},
        "batch": {"per_gpu": 4},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-4,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "fused": True,
        },
        "precision": "bf16",
        "activation_checkpointing": "block" if checkpoint else "none",
    }
    raw = {
        "run": "benchmark",
        "matrix": {
            "workloads": ["w"],
            "strategies": [*STRATEGIES, *VARIANTS],
            "gpus": [gpus],
            "seeds": [0],
        },
        "workloads": {"w": workload},
        "variants": VARIANTS,
        "cluster": {"device": "cuda", "gpus_per_node": gpus},
        "measure": dict(measure),
    }
    return cell_of(load(raw, ROOT), "w", strategy, gpus, 0)
