"""How a network uses its parameters: what a strategy may have to know before it wraps them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

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
        why_unknown: why reused and unused are not known; None if they are.
    """

    tied: frozenset[str] = frozenset()
    reused: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    why_unknown: str | None = None

    @property
    def kinds(self) -> dict[str, frozenset[str]]:
        """The kinds of use that there are, with the parameters of each."""
        kinds = {
            "tied": self.tied,
            "reused": self.reused,
            "unused": self.unused,
            "frozen": self.frozen,
        }
        return {kind: names for kind, names in kinds.items() if names}


def parameter_uses(workload: Contract[Any], *, surrogate: bool = False) -> ParameterUses:
    """Run the workload's network once without values, which takes no memory.

    Args:
        workload: what is trained.
        surrogate: whether to look at its surrogate instead of its model.
    """
    alone = workload.without_collectives()
    outline = alone.outline(seed=0, surrogate=surrogate).train()
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, parameter in outline.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    known = ParameterUses(
        tied=frozenset(mine[0] for mine in names.values() if len(mine) > 1),
        frozen=frozenset(mine[0] for part, mine in names.items() if not part.requires_grad),
    )
    try:
        run = _run(alone, outline)
    except Exception as error:  # a user's own model may do anything
        first = next(iter(str(error).splitlines()), "")
        return known._replace(why_unknown=f"{type(error).__name__}: {first}".rstrip(".: "))
    trained = [mine for part, mine in names.items() if part.requires_grad]
    return known._replace(
        reused=frozenset(mine[0] for mine in names.values() if run.reused & set(mine)),
        unused=frozenset(mine[0] for mine in trained if not run.with_gradient & set(mine)),
    )


class _Run(NamedTuple):
    """Names of parameters after a forward and backward pass.

    Attributes:
        with_gradient: those that have a gradient.
        reused: those of modules that were called more than once.
    """

    with_gradient: set[str]
    reused: set[str]


def _run(workload: Contract[Any], model: nn.Module) -> _Run:
    """On the meta device, or with fake tensors if the model does not run there."""
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, __, name=name: calls.update([name]))
    try:
        with torch.device("meta"):
            inputs = workload.example(_SAMPLES)
        workload.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
    except Exception:
        calls.clear()
        inputs = workload.example(_SAMPLES)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = tuple(map(mode.from_tensor, inputs))
            model = model.to_empty(device="cpu")
            model.zero_grad()
            workload.loss(model, fake).backward()  # type: ignore[no-untyped-call]
    return _Run(
        with_gradient={
            name
            for name, value in model.named_parameters(remove_duplicate=False)
            if value.grad is not None
        },
        reused={
            f"{place}.{name}".removeprefix(".")
            for place, module in model.named_modules()
            for name in module._parameters
            if calls[place] > 1
        },
    )
