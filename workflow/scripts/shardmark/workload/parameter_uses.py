"""How a network uses its parameters: what a strategy may have to know before it wraps them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import nn

from shardmark.workload.contract import Contract

# Batch-norm needs more than one value per channel.
_SAMPLES = 2


class ParameterUses(NamedTuple):
    """The parameters of a network that are not simply used and trained once per step, by name.

    Attributes:
        tied: those that several modules hold.
        reused: those of modules that are called more than once in a forward pass.
        unused: those that are to be trained, but that the loss does not depend on.
        frozen: those that are not to be trained.
    """

    tied: frozenset[str] = frozenset()
    reused: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()


def parameter_uses(workload: Contract[Any], *, surrogate: bool = False) -> ParameterUses:
    """Run the workload's network once on the meta device, which needs no memory and no time.

    Args:
        workload: what is trained.
        surrogate: whether to look at its surrogate instead of its model.
    """
    alone = workload.without_collectives()
    build = alone.surrogate if surrogate else alone.build_model
    with torch.device("meta"):
        model, inputs = build(seed=0).train(), alone.example(_SAMPLES)
    calls: Counter[nn.Module] = Counter()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: calls.update([module]))
    alone.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
    holders = Counter(part for module in model.modules() for part in module._parameters.values())
    reused = {
        parameter
        for module, count in calls.items()
        for parameter in module.parameters(recurse=False)
        if count > 1
    }
    named = list(model.named_parameters())
    return ParameterUses(
        tied=frozenset(name for name, value in named if holders[value] > 1),
        reused=frozenset(name for name, value in named if value in reused),
        unused=frozenset(
            name for name, value in named if value.requires_grad and value.grad is None
        ),
        frozen=frozenset(name for name, value in named if not value.requires_grad),
    )
