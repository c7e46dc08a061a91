"""How many bytes each strategy must reduce and gather in one optimizer step.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(SC20), section 7. Data parallelism averages each gradient once. ZeRO-1 and ZeRO-2 average it once
too and then gather the updated parameters. ZeRO-3 gathers the parameters before the forward pass
and again before the backward pass. FSDP does the same (torch.distributed.fsdp,
``ShardingStrategy``; ``fully_shard``, ``reshard_after_forward``).

Volumes are multiples of the parameters' bytes in float32. An all-reduce counts once, as a
reduction, however NCCL implements it; the paper counts it twice. Where frameworks deviate from the
paper, the numbers come from their source code and were confirmed in cells of two ranks. This module
does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardmark.cells import Cell

FLOAT32_BYTES = 4
# Shards are padded to equal size, DataParallel broadcasts buffers with the parameters, and FSDP1
# and FSDP2 keep batch-norm in float32 where the rest is halved. Each is a few per cent.
SLACK = 0.1
# Synchronised batch-norm exchanges two numbers per channel, rank and micro-batch. It also has two
# parameters per channel, which are at most 0.9 % of a model (resnet8).
_STATISTICS = 0.01
# DeepSpeed's default of stage3_max_reuse_distance, in elements.
_MAX_REUSE_DISTANCE = 1e9


@dataclass(frozen=True)
class Volume:
    """The smallest and the largest volume that is correct."""

    least: float
    most: float

    @classmethod
    def exactly(cls, multiple: float) -> Volume:
        """Return a volume of exactly this multiple."""
        return cls(multiple, multiple)

    def halved(self, *, all_of_it: bool) -> Volume:
        """Return the volume if all or some of the numbers travel in 16 bits instead of 32."""
        return Volume(self.least / 2, self.most / 2 if all_of_it else self.most)

    def allows(self, multiple: float, slack: float) -> bool:
        """Whether a volume is in the range, within the slack."""
        below, above = (slack * max(1.0, bound) for bound in (self.least, self.most))
        return self.least - below <= multiple <= self.most + above

    def __str__(self) -> str:
        if math.isinf(self.most):
            return f"{self.least:.2f} or more"
        if self.least == self.most:
            return f"{self.most:.2f}"
        return f"{self.least:.2f} to {self.most:.2f}"


@dataclass(frozen=True)
class StepVolume:
    """What one optimizer step must move."""

    reduced: Volume
    gathered: Volume

    def with_uses(self, *, untrained: float, reuses: bool) -> StepVolume:
        """Return the volume of a model that does not simply train each parameter once per step.

        Args:
            untrained: share of the parameters that are frozen or that the loss does not depend on.
                Strategies need not move them, but some do.
            reuses: whether a module is called more than once in a forward pass. It may be gathered
                for each call.
        """
        reduced, gathered = self.reduced, self.gathered
        return StepVolume(
            reduced=Volume(reduced.least * (1 - untrained), reduced.most),
            gathered=Volume(
                gathered.least * (1 - untrained),
                math.inf if reuses and gathered.most else gathered.most,
            ),
        )


def allowed_slack(cell: Cell) -> float:
    """Return how much a volume may differ, as a share of it; of 1 if the volume is less than 1."""
    if cell.definition.batchnorm_statistics != "sync":
        return SLACK
    return SLACK + _STATISTICS * cell.gpus * cell.definition.batch.accumulate


def expected_volume(cell: Cell, parameters: int, unit_parameters: int | None) -> StepVolume | None:
    """Return what a cell of several GPUs must move in a step; None for a strategy not covered here.

    Args:
        cell: its strategy, options and micro-batches determine the volume.
        parameters: number of parameters of the model.
        unit_parameters: number of those in its shard units; None if unknown.
    """
    micro_batches, options = cell.definition.batch.accumulate, cell.options
    once, each = Volume.exactly(1), Volume.exactly(micro_batches)
    match cell.base:
        case "dp":
            # Every forward pass creates new replicas, every backward pass sums their gradients.
            return StepVolume(reduced=each, gathered=each)
        case "ddp":
            compressed = options["comm_hook"] != "none"
            reduced = once.halved(all_of_it=True) if compressed else once
            # With it, each rank broadcasts the parameters that it updated.
            broadcast = options["zero_redundancy"]
            return StepVolume(reduced, gathered=once if broadcast else Volume.exactly(0))
        case "deepspeed_zero1":
            volume = StepVolume(reduced=once, gathered=once)
        case "deepspeed_zero2":
            # A rank keeps only its shard of the gradients, so it reduces in every micro-batch.
            volume = StepVolume(reduced=each, gathered=once)
        case "deepspeed_zero3":
            volume = StepVolume(
                reduced=each, gathered=_gathered_by_zero3(parameters, micro_batches)
            )
        case "fsdp" | "fsdp2" | "fairscale_fsdp":
            return _fully_sharded(cell, parameters, unit_parameters)
        case _:
            return None
    if cell.state_dtype != "fp32":
        return StepVolume(
            volume.reduced.halved(all_of_it=True), volume.gathered.halved(all_of_it=True)
        )
    if options["low_precision_communication"]:
        # Only those of convolutions and linear layers. Stages 1 and 2 still gather float32.
        gathered = volume.gathered
        if cell.base == "deepspeed_zero3":
            gathered = gathered.halved(all_of_it=False)
        return StepVolume(volume.reduced.halved(all_of_it=False), gathered)
    return volume


def _gathered_by_zero3(parameters: int, micro_batches: int) -> Volume:
    """ZeRO-3 keeps small parameters whole, gathers them once after the update, shards the others.

    DeepSpeed frees a sharded parameter after the forward pass only if its next use is further away
    than ``stage3_max_reuse_distance`` elements. Forward and backward pass together use each
    parameter twice, so a model with fewer than half as many parameters gathers them once per
    micro-batch instead of twice.
    """
    passes = 1 if 2 * parameters <= _MAX_REUSE_DISTANCE else 2
    return Volume(1, passes * micro_batches)


def _fully_sharded(cell: Cell, parameters: int, unit_parameters: int | None) -> StepVolume:
    """FSDP1, FSDP2 and FairScale reduce gradients only in the last micro-batch.

    A unit that reshards after the forward pass is gathered twice per micro-batch. The root unit,
    which holds the parameters outside the blocks, stays gathered until the backward pass ends.
    Between micro-batches FSDP2 always reshards. The other two keep what the forward pass kept,
    except for FSDP1's root, which reshards with its units. How many ranks gather together does not
    change the bytes.
    """
    micro_batches, options = cell.definition.batch.accumulate, cell.options
    full_shard = options.get("sharding") == "full_shard"
    reshards = options.get("reshard_after_forward", full_shard)
    if reshards:
        unit = 2 * micro_batches
        root = 1 if cell.base == "fairscale_fsdp" else micro_batches
    else:
        unit = root = micro_batches if cell.base == "fsdp2" else 1
    if unit_parameters is None:
        gathered = Volume(min(unit, root), max(unit, root))
    else:
        share = unit_parameters / parameters
        gathered = Volume.exactly(unit * share + root * (1 - share))
    # Ranks that share a copy reduce all gradients; then each averages its shard over the copies.
    copies = cell.gpus // cell.groups.shard
    reduced = Volume.exactly(1 if copies == 1 else 1 + 1 / cell.groups.shard)
    if options.get("reduce_dtype", "fp32") != "fp32":
        reduced = reduced.halved(all_of_it=True)
    if options.get("param_dtype", "fp32") != "fp32":
        gathered = gathered.halved(all_of_it=True)
    return StepVolume(reduced, gathered)
