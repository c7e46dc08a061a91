"""Count a model's parameters and FLOPs, without device, strategy or data.

A multiplication and an addition are two FLOPs. torch.utils.flop_counter counts convolutions, matrix
products and attention in the forward and the backward pass. Normalisation, activations, lookups and
the optimizer are not counted.

For a decoder-only transformer this is 6 N + 12 L d T per token (N: the parameters of its matrix
products, so without embeddings that are only looked up; L layers, width d, context T): the
convention of the PaLM paper (Chowdhery et al. 2022, appendix B). Causal attention is counted in
full, although half of its products are masked.

The count is that of the model (model FLOPs, MFU). Activation checkpointing computes a part of the
forward pass again; those FLOPs (hardware FLOPs, HFU) would have to be added here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shardmark.workload.contract import Contract

# Batch-norm needs more than one value per channel.
_SAMPLES = 2


@dataclass(frozen=True)
class ModelCost:
    """Parameters of a model, and FLOPs of one item's (image's, token's) training."""

    parameters: int
    flops_per_item: int


def parameters_of(workload: Contract[Any]) -> int:
    """Return the number of parameters of the workload's network."""
    return sum(parameter.numel() for parameter in _on_meta(workload).parameters())


def cost_of(workload: Contract[Any]) -> ModelCost:
    """Run the workload's network once on the meta device, which has shapes but no values."""
    alone = workload.without_collectives()
    model = _on_meta(alone)
    with torch.device("meta"):
        inputs = alone.example(_SAMPLES)
    with FlopCounterMode(display=False) as counter:
        alone.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
    items = _SAMPLES * workload.definition.items_per_sample
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_item=counter.get_total_flops() // items,
    )


def _on_meta(workload: Contract[Any]) -> nn.Module:
    with torch.device("meta"):
        return workload.build_model(seed=0)
