"""Independent copies of a network, since building one again takes long."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def copies_of(build: Callable[[], nn.Module], device: torch.device) -> Callable[[], nn.Module]:
    """Return what makes networks as ``build`` makes them, on a device: copies of one, if it can.

    A billion random weights take half a minute on one core. A copy is what pickle restores, because
    pickle refuses what would tie a copy to the original, for instance a lambda that refers to its
    module; ``copy.deepcopy`` would keep it. A network that pickle refuses is built each time.

    Args:
        build: builds the network on the CPU.
        device: where the copies are made.
    """
    built = build()
    tensors: list[Tensor] = []
    written = io.BytesIO()
    try:
        _Writer(written, tensors).dump(built)
        _Reader(io.BytesIO(written.getvalue()), tensors, torch.device("meta")).load()
    except Exception:
        return lambda: build().to(device)
    return lambda: _Reader(io.BytesIO(written.getvalue()), tensors, device).load()


class _Writer(pickle.Pickler):
    """Writes an object, and collects its tensors instead of their values."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors
        self.places: dict[int, int] = {}
        self.storages: set[int] = set()

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self.places:
            if reason := self._why_no_copy(value):
                raise pickle.PicklingError(reason)
            self.places[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self.places[id(value)]

    def _why_no_copy(self, value: Tensor) -> str | None:
        if type(value) not in (Tensor, nn.Parameter):
            return f"{type(value).__name__} may hold more than its values"
        if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
            return "hooks of a tensor would be lost"
        if not all(isinstance(one, bool | int | float | str) for one in vars(value).values()):
            return "what a tensor refers to would be shared"
        storage = value.untyped_storage().data_ptr()
        if storage in self.storages:
            return "tensors that share memory would be separated"
        if storage:
            self.storages.add(storage)
        return None


class _Reader(pickle.Unpickler):
    """Reads what a _Writer wrote, with a copy of each tensor on a device; tied ones stay tied."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor], device: torch.device) -> None:
        super().__init__(file)
        self.tensors, self.device = tensors, device
        self.copies: dict[int, Tensor] = {}

    def persistent_load(self, place: int) -> Tensor:
        if place not in self.copies:
            old = self.tensors[place]
            new = old.detach().to(self.device, copy=True)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, old.requires_grad)
            new.__dict__.update(old.__dict__)
            self.copies[place] = new
        return self.copies[place]
