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
from typing import Any, Literal

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shardmark.workload.blocks import wrap_blocks
from shardmark.workload.contract import Contract, Inputs
from shardmark.workload.without_values import SAMPLES, run_without_values, why_not


@dataclass(frozen=True)
class ModelCost:
    """Parameters of a model, and FLOPs of one item's (image's, token's) training.

    Attributes:
        parameters: their number.
        flops_per_item: FLOPs of the forward and the backward pass; None if they cannot be counted.
        hardware_flops_per_item: the same with what activation checkpointing computes again.
        why_uncounted: why the FLOPs cannot be counted; None if they are.
    """

    parameters: int
    flops_per_item: int | None
    hardware_flops_per_item: int | None
    why_uncounted: str | None = None


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network; tied ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def cost_of(workload: Contract[Any]) -> ModelCost:
    """Run the workload's network with shapes but no values."""
    alone = workload.without_collectives()
    parameters = count_parameters(alone.outline(seed=0))
    checkpointing = workload.definition.activation_checkpointing
    try:
        plain = again = _flops_per_item(alone, "none")
        if checkpointing != "none":
            again = _flops_per_item(alone, checkpointing)
    except Exception as error:  # a user's own model may do anything
        return ModelCost(parameters, None, None, why_not(error))
    if not plain:
        why = "it has no matrix product, convolution or attention of torch's"
        return ModelCost(parameters, None, None, why)
    return ModelCost(parameters, plain, again)


def _flops_per_item(workload: Contract[Any], checkpointing: Literal["none", "block"]) -> int:
    model = workload.outline(seed=0)
    wrap_blocks(model, workload.shard_units(model), checkpointing, "none")

    def count(model: nn.Module, inputs: Inputs) -> int:
        with FlopCounterMode(display=False) as counter:
            workload.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
        flops: int = counter.get_total_flops()
        return flops

    items: int = SAMPLES * workload.definition.items_per_sample
    return run_without_values(workload, model, count) // items
