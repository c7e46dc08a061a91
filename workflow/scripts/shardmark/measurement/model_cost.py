"""Count a model's parameters and FLOPs, without device, strategy or data.

A multiplication and an addition are two FLOPs. torch.utils.flop_counter counts convolutions, matrix
products and attention in the forward and the backward pass. Normalisation, activations, lookups and
the optimizer are not counted.

For a decoder-only transformer this is 6 N + 12 L d T per token (N: the parameters of its matrix
products, so without embeddings that are only looked up; L layers, width d, context T): the
convention of the PaLM paper (Chowdhery et al. 2022, appendix B). Causal attention is counted in
full, although half of its products are masked.

The FLOPs of the model are those of a training without activation checkpointing (MFU). Hardware
FLOPs include what checkpointing computes again (HFU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shardmark.workload.blocks import wrap_blocks
from shardmark.workload.contract import Contract

# Batch-norm needs more than one value per channel.
_SAMPLES = 2


@dataclass(frozen=True)
class ModelCost:
    """Parameters of a model, and FLOPs of one item's (image's, token's) training.

    Attributes:
        parameters: their number.
        flops_per_item: FLOPs of the forward and the backward pass.
        hardware_flops_per_item: the same with what activation checkpointing computes again.
    """

    parameters: int
    flops_per_item: int
    hardware_flops_per_item: int


def parameters_of(workload: Contract[Any]) -> int:
    """Return the number of parameters of the workload's network."""
    return sum(parameter.numel() for parameter in _on_meta(workload).parameters())


def cost_of(workload: Contract[Any]) -> ModelCost:
    """Run the workload's network on the meta device, which has shapes but no values."""
    alone = workload.without_collectives()
    model = _on_meta(alone)
    plain = _flops_per_item(alone, model)
    checkpointing = workload.definition.activation_checkpointing
    wrap_blocks(model, alone.shard_units(model), checkpointing, "none")
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_item=plain,
        hardware_flops_per_item=plain if checkpointing == "none" else _flops_per_item(alone, model),
    )


def _flops_per_item(workload: Contract[Any], model: nn.Module) -> int:
    with torch.device("meta"):
        inputs = workload.example(_SAMPLES)
    with FlopCounterMode(display=False) as counter:
        workload.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
    items: int = _SAMPLES * workload.definition.items_per_sample
    flops: int = counter.get_total_flops() // items
    return flops


def _on_meta(workload: Contract[Any]) -> nn.Module:
    with torch.device("meta"):
        return workload.build_model(seed=0)
