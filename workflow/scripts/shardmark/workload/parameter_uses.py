"""How a network uses its parameters: what a strategy may have to know before it wraps them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from torch import nn

from shardmark.workload.contract import Contract, Inputs
from shardmark.workload.without_values import run_without_values, why_not


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
    calls: Counter[str] = Counter()
    for name, module in outline.named_modules():
        module.register_forward_pre_hook(lambda _, __, name=name: calls.update([name]))

    def names_with_gradient(model: nn.Module, inputs: Inputs) -> set[str]:
        calls.clear()
        model.zero_grad()
        alone.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
        parameters = model.named_parameters(remove_duplicate=False)
        return {name for name, parameter in parameters if parameter.grad is not None}

    try:
        with_gradient = run_without_values(alone, outline, names_with_gradient)
    except Exception as error:
        return known._replace(why_unknown=why_not(error))
    called_again = {
        f"{place}.{name}".removeprefix(".")
        for place, module in outline.named_modules()
        for name in module._parameters
        if calls[place] > 1
    }
    trained = [mine for part, mine in names.items() if part.requires_grad]
    return known._replace(
        reused=frozenset(mine[0] for mine in names.values() if called_again & set(mine)),
        unused=frozenset(mine[0] for mine in trained if not with_gradient & set(mine)),
    )
