"""Count a model's parameters and FLOPs, without device, strategy or data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shardmark.config.schema import Workload
from shardmark.workload.models import build_model

# Batch-norm needs more than one value per channel.
_IMAGES = 2


@dataclass(frozen=True)
class ModelCost:
    """Parameters of a model, and FLOPs of one image's forward and backward pass.

    A multiplication and an addition are two FLOPs. torch.utils.flop_counter counts convolutions,
    matrix products and attention; normalisation, activations and the optimizer are not counted.
    """

    parameters: int
    flops_per_image: int


def parameters_of(workload: Workload) -> int:
    """Return the number of parameters of the workload's network."""
    return sum(parameter.numel() for parameter in _on_meta(workload).parameters())


def cost_of(workload: Workload) -> ModelCost:
    """Run the workload's network once on the meta device, which has shapes but no values."""
    model = _on_meta(workload)
    side = workload.dataset.image_size
    with torch.device("meta"):
        images = torch.empty(_IMAGES, 3, side, side)
        keys, labels = torch.zeros(2, _IMAGES, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        loss: Any = nn.functional.cross_entropy(model(images, keys), labels)
        loss.backward()
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_image=counter.get_total_flops() // _IMAGES,
    )


def _on_meta(workload: Workload) -> nn.Module:
    # Synchronised statistics would need a collective, and cost no FLOPs that are counted.
    alone = workload.model_copy(update={"batchnorm": "local"})
    with torch.device("meta"):
        return build_model(alone, seed=0)
