"""The oracle: what training this workload means, with nothing distributed in it.

One process emulates N replicas one after another: local batch-norm statistics, the mean of the
replicas' gradients, one optimizer step. It shares the definition of a sample's augmentation with
the cells, and neither their loop nor their indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from shardmark.cells import Cell
from shardmark.workload.data import Images, Pipeline, epoch_order
from shardmark.workload.keyed_random import sample_keys
from shardmark.workload.optimizers import build_optimizer, learning_rate_at
from shardmark.workload.precision import autocast, grad_scaler, set_math_mode

# Two orders of the same sums: replicas from the last to the first, and each replica's samples
# from the last to the first (the only other order there is for one replica).
SummationOrder = Literal["natural", "replicas_reversed", "samples_reversed"]


# The loss scaler of fp16 begins at 2**16 and halves until nothing overflows. ResNet-50 at 224 px
# left out its first two steps.
MOST_SKIPPED = 16

Result = TypeVar("Result")


def taken_until_it_updates(step: Callable[[], Result]) -> Result:
    """Take a step, and again as long as the loss scaler leaves it out.

    Ranks each scale the loss of their own replica. The oracle and DataParallel scale a replica's
    share in the loss of all, which is smaller by the number of replicas. So they overflow at other
    scales and leave out other numbers of steps; without this, their first updates would be those of
    different batches.

    Args:
        step: takes the same batch each time.
    """
    updates: list[bool] = []
    hook = register_optimizer_step_post_hook(lambda *_: updates.append(True))
    try:
        for _ in range(1 + MOST_SKIPPED):
            result = step()
            if updates:
                break
        return result
    finally:
        hook.remove()


@dataclass(frozen=True)
class Trajectory:
    """A short training: the loss of each step before its update, and the weights.

    Attributes:
        losses: mean loss over the global batch, one per step that changed weights.
        initial: parameters by name, on the CPU.
        after_first_update: likewise, after the first step.
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
        steps: optimizer steps, over as many epochs as they need.
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
    for step in range(steps):
        epoch, step_in_epoch = divmod(step, per_epoch)
        shuffled = epoch_order(cell.seed, epoch, len(labels)).to(device)
        start = step_in_epoch * cell.global_batch_size
        rate = learning_rate_at(workload, cell.gpus, step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        forwards = _forwards(shuffled[start : start + cell.global_batch_size], cell, order)

        def take(forwards: Sequence[Tensor] = forwards, epoch: int = epoch) -> float:
            total = 0.0
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
            return total

        losses.append(taken_until_it_updates(take))
        if step == 0:
            updated = _parameters(model)
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


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters()}
