"""The optimizer and the learning rate, the same for every strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from shardmark.config.schema import Optimizer, Workload
from shardmark.optimizers import OPTIMIZERS

# Fraction of the peak rate for the steps after the training, which are timed and profiled. It is
# the average of the cosine schedule. At the schedule's end the rate is zero, and no update would
# change a weight.
RATE_AFTER_TRAINING = 0.5


def build_optimizer(
    params: Iterable[nn.Parameter], settings: Optimizer, learning_rate: float
) -> torch.optim.Optimizer:
    """Build the workload's torch optimizer with a single parameter group.

    Groups would need single parameters, and flattened shards no longer have them.
    """
    record = OPTIMIZERS[settings.name]
    optimizer: torch.optim.Optimizer = getattr(torch.optim, record.torch_name)(
        params, lr=learning_rate, **record.arguments(settings)
    )
    return optimizer


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
