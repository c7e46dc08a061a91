"""Small files of a user's own for tests: a training and a strategy, and configurations for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardmark.config.loading import load
from shardmark.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
ONE_ALL_REDUCE = ROOT / "docs/examples/one_all_reduce.py"

TRAINING = """
import torch
from torch import nn

from shardmark.workload.own import Training


class Mine(Training):
    def build_model(self, seed):
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2)]
        return nn.Sequential(*blocks, nn.Linear(16, 4))

    def shard_units(self, model):
        return [model[0], model[1]]

    def load(self, *, train):
        generator = torch.Generator().manual_seed(int(train))
        rows = torch.randn(256, 16, generator=generator)
        return rows, torch.randint(4, (256,), generator=generator)

    def loss(self, model, inputs):
        rows, classes = inputs
        return nn.functional.cross_entropy(model(rows), classes, reduction="sum")

    def evaluate(self, model, inputs):
        return (model(inputs[0]).argmax(1) == inputs[1]).float()
"""

# Sequences of 1 to 12 tokens: what follows is padding, which the loss ignores.
PADDED = """
import torch
from torch import nn

from shardmark.workload.own import Training


class Mine(Training):
    def build_model(self, seed):
        torch.manual_seed(seed)
        block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        return nn.Sequential(nn.Embedding(16, 8), block, nn.Linear(8, 16))

    def shard_units(self, model):
        return [model[1]]

    def load(self, *, train):
        generator = torch.Generator().manual_seed(int(train))
        tokens = torch.randint(16, (256, 13), generator=generator)
        targets = tokens[:, 1:].clone()
        lengths = torch.randint(1, 13, (256, 1), generator=generator)
        targets[torch.arange(12) >= lengths] = -100
        return tokens[:, :-1].clone(), targets

    def loss(self, model, inputs):
        tokens, targets = inputs
        logits = model(tokens).flatten(0, 1)
        return nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")

    def terms(self, inputs):
        return (inputs[1] != -100).sum()
"""


def write_changed(text: str, folder: Path, *changes: tuple[str, str]) -> Path:
    """Write a file with changes, each to a part of the text that is in it once."""
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    file = folder / "mine.py"
    file.write_text(text)
    return file


def own_workload(file: Path, **changes: Any) -> dict[str, Any]:
    """The section of a workload that a file defines."""
    return {
        "file": str(file),
        "dataset": {"samples": 256, "test_samples": 32, "unit": "rows"},
        "batch": {"per_gpu": 8},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "precision": "fp32",
    } | changes


def config_with(
    workload: dict[str, Any],
    strategies: list[str],
    own: dict[str, Path] | None = None,
    **options: Any,
) -> Config:
    """A configuration of one workload ``w`` on CPUs, with own strategies and their options."""
    raw = {
        "run": "test",
        "baseline": strategies[0],
        "matrix": {"workloads": ["w"], "strategies": strategies, "gpus": [1, 2], "seeds": [0]},
        "workloads": {"w": workload},
        "strategies": {
            name: {"file": str(file), "options": options} for name, file in (own or {}).items()
        },
        "cluster": {"device": "cpu"},
        "measure": {
            "steady_min_s": 0.3,
            "steady_max_s": 0.3,
            "warmup_min_steps": 4,
            "warmup_max_steps": 8,
            "idle_s": 0,
        },
    }
    return load(raw, ROOT)
