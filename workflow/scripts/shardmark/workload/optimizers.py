"""The optimizer and the learning rate, the same for every strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from shardmark.config.schema import Workload
from shardmark.optimizers import OPTIMIZERS, Optimizer
from shardmark.workload.blocks import plain_name

# Fraction of the peak rate for the steps after the training, which are timed and profiled. It is
# the average of the cosine schedule. At the schedule's end the rate is zero, and no update would
# change a weight.
RATE_AFTER_TRAINING = 0.5


def build_optimizer(
    model: nn.Module,
    settings: Optimizer,
    learning_rate: float,
    dimensions: Mapping[str, int] | None = None,
) -> torch.optim.Optimizer:
    """Build the workload's torch optimizer for the parameters of a model.

    Args:
        model: the network, as a strategy has wrapped or sharded it.
        settings: the workload's optimizer.
        learning_rate: learning rate of every parameter group.
        dimensions: result of ``count_dimensions`` for the network before it was sharded; needed
            only if ``settings.decay`` is "matrices".
    """
    record = OPTIMIZERS[settings.name]
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if settings.decay == "matrices":
        known = dimensions if dimensions is not None else count_dimensions(model)
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in model.named_parameters():
            parts[known[plain_name(name)] > 1].append(parameter)
        groups = [{"params": parts[True]}, {"params": parts[False], "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer = getattr(torch.optim, record.torch_name)(
        groups, lr=learning_rate, **record.arguments(settings)
    )
    return optimizer


def count_dimensions(model: nn.Module) -> dict[str, int]:
    """The number of dimensions of each parameter; a shard of a matrix may have fewer."""
    return {plain_name(name): parameter.ndim for name, parameter in model.named_parameters()}


def peak_learning_rate(workload: Workload, gpus: int) -> float:
    """The configured rate; the linear rule of weak scaling multiplies it by the GPU count."""
    factor = gpus if workload.learning_rate_rule == "linear" else 1
    return workload.optimizer.learning_rate * factor


def learning_rate_at(workload: Workload, gpus: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of an optimizer step, counted from 0 over all epochs.

    The steps after the training, which are inspected, timed and profiled, have a constant rate: the
    peak, or RATE_AFTER_TRAINING times the peak if the schedule decays. It is the same for every
    strategy.
    """
    peak = peak_learning_rate(workload, gpus)
    total = steps_per_epoch * workload.epochs
    warmup = round(workload.schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if workload.schedule.name == "constant":
        return peak
    if step >= total:
        return peak * RATE_AFTER_TRAINING
    progress = (step - warmup) / (total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
