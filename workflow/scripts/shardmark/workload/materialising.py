"""Building a network without its values, and giving each parameter its memory and value later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shardmark.workload.blocks import plain_name

# Sets the initial values of the parameter that has this name in the network.
Fill = Callable[[str, Tensor], None]


class Materialiser:
    """Puts the modules of a network on a device, one by one.

    A strategy that shards a module as soon as it is there never holds the whole network. Parameters
    on the meta device get their memory and their initial values; others are moved.

    Args:
        model: the whole network, in which parameters have their names.
        fill: sets initial values; needed only if parameters are on the meta device.
        device: where to put them.
    """

    def __init__(self, model: nn.Module, fill: Fill | None, device: torch.device) -> None:
        self.fill, self.device = fill, device
        self._names = {id(module): name for name, module in model.named_modules()}
        uses = Counter(
            id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)
        )
        self._tied = {parameter for parameter, count in uses.items() if count > 1}
        # Tied parameters, by the id of a meta parameter: itself, so that its id is not used again,
        # and what replaces it everywhere. No others: a strategy must be able to free them.
        self._made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def whole(self, module: nn.Module) -> nn.Module:
        """Put a module and all that it contains on the device; return it."""
        for part in list(module.modules()):
            self.own(part)
        return module

    @torch.no_grad()
    def own(self, module: nn.Module) -> None:
        """Put the parameters and buffers that a module itself holds on the device, the first time.

        Modules that are not the network's own, such as wrappers, stay as they are.

        Raises:
            RuntimeError: if a buffer is on the meta device, because only parameters can be filled.
        """
        place = self._names.pop(id(module), None)
        if place is None:
            return
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter.is_meta:
                module._parameters[name] = self._make(f"{place}.{name}", parameter)
            elif parameter.device != self.device:
                parameter.data = parameter.data.to(self.device)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                raise RuntimeError(f"buffer {name} was built on the meta device, without values")
            if buffer is not None:
                module._buffers[name] = buffer.to(self.device)

    def _make(self, name: str, old: nn.Parameter) -> nn.Parameter:
        if id(old) in self._made:
            return self._made[id(old)][1]
        assert self.fill is not None
        new = nn.Parameter(torch.empty_like(old, device=self.device), old.requires_grad)
        self.fill(plain_name(name.removeprefix(".")), new)
        if id(old) in self._tied:
            self._made[id(old)] = (old, new)
        return new
