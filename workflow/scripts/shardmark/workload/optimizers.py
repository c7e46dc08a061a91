"""The optimizer and the learning rate, equal for every strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from shardmark.config.schema import Optimizer, Workload
from shardmark.optimizers import OPTIMIZERS

# Of the peak, for the steps after the training, which are timed and profiled: what cosine is on
# average. At its end, zero, they would be updates that change no weight.
RATE_AFTER_TRAINING = 0.5


def build_optimizer(
    params: Iterable[nn.Parameter], settings: Optimizer, learning_rate: float
) -> torch.optim.Optimizer:
    """The workload's torch optimizer, one group: flattened shards know no single parameters."""
    record = OPTIMIZERS[settings.name]
    optimizer: torch.optim.Optimizer = getattr(torch.optim, record.torch_name)(
        params, lr=learning_rate, **record.arguments(settings)
    )
    return optimizer


def peak_learning_rate(workload: Workload, gpus: int) -> float:
    """The configured rate, multiplied by the GPU count under the linear rule of weak scaling."""
    factor = gpus if workload.learning_rate_rule == "linear" else 1
    return workload.optimizer.learning_rate * factor


def learning_rate_at(workload: Workload, gpus: int, step: int, steps_per_epoch: int) -> float:
    """The rate of an optimizer step, counted from 0 over all epochs.

    Steps after the training, inspected, timed and profiled, have a constant one: the peak, or
    RATE_AFTER_TRAINING of it where the schedule falls. The same for every strategy.
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
