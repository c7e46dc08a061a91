"""The oracle: what training this workload means, with nothing distributed in it.

One process emulates N replicas one after another: local batch-norm statistics, the mean of the
replicas' gradients, one optimizer step. It shares the definition of a sample's augmentation with
the cells, and neither their loop nor their indexing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shardmark.cells import Cell
from shardmark.workload.data import Images, Pipeline, epoch_order
from shardmark.workload.keyed_random import sample_keys
from shardmark.workload.optimizers import build_optimizer, learning_rate_at
from shardmark.workload.precision import autocast, grad_scaler, set_math_mode

# Two orders of the same sums: replicas from the last to the first, and each replica's samples
# from the last to the first (the only other order there is for one replica).
SummationOrder = Literal["natural", "replicas_reversed", "samples_reversed"]


# The loss scaler of fp16 begins at 2**16 and halves until nothing overflows; the steps that it
# leaves out meanwhile change no weight. ResNet-50 at 224 px left out its first two.
MOST_SKIPPED = 16


def is_over(step: int, steps: int, updated_at: int | None) -> bool:
    """Whether a short training ends before this step, counted from 0.

    It takes at least ``steps`` steps, and one step after the first that changed weights. Otherwise
    a training whose first steps were left out would have nothing to compare.
    """
    if step < steps:
        return False
    return step >= steps + MOST_SKIPPED or (updated_at is not None and step > updated_at + 1)


@dataclass(frozen=True)
class Trajectory:
    """A short training: the loss of each step before its update, and the weights.

    Attributes:
        losses: mean loss over the global batch, one a step.
        initial: parameters by name, on the CPU.
        after_first_update: likewise, after the first step that changed them; the loss scaler may
            leave steps out.
        final: likewise, at the end.
    """

    losses: list[float]
    initial: dict[str, Tensor]
    after_first_update: dict[str, Tensor]
    final: dict[str, Tensor]


def run_oracle(
    cell: Cell,
    images: Images,
    build_model: Callable[[], nn.Module],
    steps: int,
    device: torch.device,
    order: SummationOrder = "natural",
) -> Trajectory:
    """Train ``steps`` steps on ``images`` as the cell defines them, without any distribution.

    Args:
        cell: names the replicas, the batch, the optimizer, the precision and the seed.
        images: the training split, on the CPU.
        build_model: the network.
        steps: optimizer steps at least, over as many epochs as they need; see is_over.
        device: where to compute.
        order: which way the same sums are taken; anything but natural measures rounding.
    """
    workload = cell.definition
    set_math_mode(workload.precision)
    model = build_model().to(device).train()
    optimizer = build_optimizer(model.parameters(), workload.optimizer, 0.0)
    scaler = grad_scaler(workload.precision, device)
    pipeline = Pipeline(workload, device)
    padded, labels = pipeline.pad(images.pixels).to(device), images.labels.to(device)
    per_epoch = len(labels) // cell.global_batch_size
    losses: list[float] = []
    initial = updated = _parameters(model)
    updated_at: int | None = None
    for step in itertools.count():
        if is_over(step, steps, updated_at):
            break
        epoch, step_in_epoch = divmod(step, per_epoch)
        shuffled = epoch_order(cell.seed, epoch, len(labels)).to(device)
        start = step_in_epoch * cell.global_batch_size
        rate = learning_rate_at(workload, cell.gpus, step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        forwards = _forwards(shuffled[start : start + cell.global_batch_size], cell, order)
        for samples in forwards:
            keys = sample_keys(cell.seed, epoch, samples)
            inputs = pipeline.training_images(padded, samples, keys)
            with autocast(workload.precision, device.type):
                logits = model(inputs, keys)
            loss = nn.functional.cross_entropy(logits.float(), labels[samples])
            scaler.scale(loss / len(forwards)).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / len(forwards)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(total)
        if updated_at is None:
            updated = _parameters(model)
            updated_at = step if differ(updated, initial) else None
    return Trajectory(losses, initial, updated, _parameters(model))


def _forwards(batch: Tensor, cell: Cell, order: SummationOrder) -> Sequence[Tensor]:
    """The sample indices of each forward pass of a step, in the order they are taken."""
    accumulate = cell.definition.batch.accumulate
    blocks = list(batch.chunk(cell.gpus))
    if cell.definition.batchnorm == "sync":
        # Statistics over all replicas: one forward pass over their joined micro-batches.
        parts = [block.chunk(accumulate) for block in blocks]
        passes = [torch.cat([part[micro] for part in parts]) for micro in range(accumulate)]
    else:
        passes = [part for block in blocks for part in block.chunk(accumulate)]
    if order == "replicas_reversed":
        passes.reverse()
    if order == "samples_reversed":
        passes = [part.flip(0) for part in passes]
    return passes


def differ(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors differs from its namesake."""
    return any(not torch.equal(tensor, others[name]) for name, tensor in some.items())


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters()}
