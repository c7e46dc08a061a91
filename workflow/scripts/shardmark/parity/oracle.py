"""The oracle: the reference training of a workload, without anything distributed.

One process trains N replicas one after another: local batch-norm statistics, the mean of the
replicas' gradients, one optimizer step. It uses the same augmentation of a sample as the cells, but
neither their loop nor their indexing.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from shardmark.cells import Cell, Rounding
from shardmark.training.updates import taken_until_it_updates
from shardmark.workload.contract import Contract, Rows
from shardmark.workload.data import epoch_order
from shardmark.workload.keyed_random import sample_keys
from shardmark.workload.optimizers import build_optimizer, learning_rate_at
from shardmark.workload.precision import (
    AUTOCAST_DTYPES,
    autocast,
    cast_floats,
    grad_scaler,
    set_math_mode,
)

# The reversed orders take the same sums from the last replica to the first, or from each replica's
# last sample to its first. With one replica, only the latter changes anything.
SummationOrder = Literal["natural", "replicas_reversed", "samples_reversed"]


def compute_alike() -> None:
    """Make two processes compute the same bits from the same micro-batch.

    Then a strategy's first update can differ from the oracle's only by the sum over replicas, and
    a reduction in bf16 becomes visible. If the two programs picked different kernels, the error of
    bf16 compute would hide the error of the reduction.
    """
    # Also on a GPU, where many cases share the machine's cores.
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling would write to every buffer that a framework allocates: gigabytes for DeepSpeed.
    cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


@dataclass(frozen=True)
class Trajectory:
    """A short training: the loss of each step before its update, and the weights.

    Attributes:
        losses: mean loss over the global batch, one per step that changed weights.
        initial: parameters by name, on the CPU, before the first step; without those on which the
            loss does not depend. FSDP1, FairScale and DeepSpeed give these a gradient of zero, so
            that weight decay shrinks them; other strategies and plain torch leave them alone.
        after_first_update: the same after the first step.
        final: the same at the end; empty for the real model, of which only a summary is compared.
        pass_losses: the oracle's mean loss of each forward pass.
    """

    losses: list[float]
    initial: dict[str, Tensor]
    after_first_update: dict[str, Tensor]
    final: dict[str, Tensor]
    pass_losses: list[float] = field(default_factory=list)


def run_oracle(
    cell: Cell,
    workload: Contract[Any],
    rows: Rows,
    build_model: Callable[[], nn.Module],
    steps: int,
    device: torch.device,
    order: SummationOrder = "natural",
    *,
    rounding: Rounding = "autocast",
    unused: Collection[str] = (),
    keep_final: bool = True,
) -> Trajectory:
    """Train a cell for ``steps`` steps on ``rows``, without any distribution.

    Args:
        cell: defines the replicas, the batch, the optimizer, the precision and the seed.
        workload: the cell's; makes the batches and computes the losses.
        rows: the training samples, on the CPU.
        build_model: builds the network.
        steps: number of optimizer steps, over as many epochs as they need.
        device: where to compute.
        order: the order of the sums; any order but natural serves to measure rounding.
        rounding: where a low precision rounds weights. "parameters" computes with parameters and
            inputs in low precision, as FSDP's mixed precision does, instead of under autocast.
        unused: names of parameters on which the loss does not depend.
        keep_final: whether the trajectory has the final weights.
    """
    definition = cell.definition
    set_math_mode(definition.precision)
    model = build_model().to(device).train()
    low_dtype = AUTOCAST_DTYPES[definition.precision] if rounding == "parameters" else None
    rounded = RoundedCopy(model, low_dtype) if low_dtype else None
    optimizer = build_optimizer(model, definition.optimizer, 0.0)
    scaler = grad_scaler(definition.precision, device)
    rows = tuple(part.to(device) for part in rows)
    per_epoch = len(rows[0]) // cell.global_batch_size
    losses: list[float] = []
    pass_losses: list[float] = []
    passes: list[float] = []
    initial = updated = _parameters(model, unused)
    for step in range(steps):
        epoch, step_in_epoch = divmod(step, per_epoch)
        shuffled = epoch_order(cell.seed, epoch, len(rows[0])).to(device)
        start = step_in_epoch * cell.global_batch_size
        rate = learning_rate_at(definition, cell.gpus, step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        forwards = _forwards(shuffled[start : start + cell.global_batch_size], cell, order)

        def take(forwards: Sequence[Tensor] = forwards, epoch: int = epoch) -> float:
            passes.clear()  # of a step that was skipped
            batches = [
                workload.batch(rows, samples, sample_keys(cell.seed, epoch, samples))
                for samples in forwards
            ]
            # Ranks divide by the mean number of terms per rank, and average gradients in float32.
            # So does the oracle. If it divided by the terms of all replicas before a pass in low
            # precision, the pass would round differently unless the number of replicas is a power
            # of two.
            terms = float(sum(map(workload.terms, batches))) / cell.gpus
            for inputs in batches:
                if rounded is None:
                    with autocast(
                        definition.precision, device.type, keep_weights=rounding != "each use"
                    ):
                        loss = workload.loss(model, inputs) / terms
                else:
                    loss = workload.loss(rounded.refresh(), inputs) / terms
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if rounded is not None:
                    rounded.add_gradients()
                passes.append(loss.item())
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(cell.gpus)
            if definition.optimizer.clip_norm is not None:
                scaler.unscale_(optimizer)
                _clip(model, definition.optimizer.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            return sum(passes) / cell.gpus

        losses.append(taken_until_it_updates(take))
        pass_losses += passes
        if step == 0:
            updated = _parameters(model, unused)
    final = _parameters(model, unused) if keep_final else {}
    return Trajectory(losses, initial, updated, final, pass_losses)


class RoundedCopy:
    """A copy of a model whose parameters have a low precision; its gradients go to the original.

    Batch-norm stays in float32, as FSDP1 and our FSDP2 keep it.

    Args:
        model: the original, in float32.
        dtype: the precision of the copy's parameters.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model = model
        self.copy = copy.deepcopy(model)
        # Not a method: a cycle would keep the model alive until a collection.
        cast_inputs = functools.partial(cast_floats, dtype)
        self.copy.register_forward_pre_hook(cast_inputs, with_kwargs=True)
        for module in self.copy.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """Round the original's parameters anew; return the copy."""
        for low, exact in zip(self.copy.parameters(), self.model.parameters(), strict=True):
            low.copy_(exact)
        return self.copy

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the copy's gradients to the original's, in float32, and clear them."""
        for low, exact in zip(self.copy.parameters(), self.model.parameters(), strict=True):
            if low.grad is not None:
                gradient = low.grad.float()
                exact.grad = gradient if exact.grad is None else exact.grad + gradient
                low.grad = None


def _clip(model: nn.Module, norm: float) -> None:
    """Scale the gradient down to a norm, as Pascanu et al. 2013 define it."""
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    total = sum(gradient.double().square().sum() for gradient in gradients) ** 0.5
    # torch and the frameworks add 1e-6 too, so that no gradient divides by zero.
    if total + 1e-6 > norm:
        for gradient in gradients:
            gradient.mul_(norm / (total + 1e-6))


def _forwards(batch: Tensor, cell: Cell, order: SummationOrder) -> Sequence[Tensor]:
    """The sample indices of each forward pass of a step, in the order of the passes."""
    accumulate = cell.definition.batch.accumulate
    blocks = list(batch.chunk(cell.gpus))
    if cell.definition.batchnorm_statistics == "sync":
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


def _parameters(model: nn.Module, unused: Collection[str]) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in model.named_parameters()
        if name not in unused
    }
