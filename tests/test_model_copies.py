"""Copies of a network for the gate's oracles: equal to a new one, and independent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shardmark.parity.model_copies import copies_of

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two layers with one weight, a buffer, a frozen bias and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.second.weight.mine = "kept"  # type: ignore[attr-defined]
        self.second.bias.requires_grad_(False)
        self.register_buffer("scale", torch.rand(3), persistent=False)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        scaled: Tensor = self.second(self.first(inputs)) * self.scale * self.calls
        return scaled


class Closed(Tied):
    """One whose last layer is a function that refers to the module."""

    def __init__(self) -> None:
        super().__init__()
        self.last = lambda inputs: inputs @ self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.last(super().forward(inputs))
        return result


def losses_of(model: nn.Module) -> list[float]:
    """Train a model for three steps."""
    losses = []
    for _ in range(3):
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
                    parameter.grad = None
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("kind", "builds"), [(Tied, 1), (Closed, 4)])
def test_each_copy_trains_as_a_new_network(kind: Callable[[], nn.Module], builds: int) -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        torch.manual_seed(0)
        built.append(kind())
        return built[-1]

    new_model = copies_of(build, CPU)
    copies = [new_model() for _ in range(3)]
    assert len(built) == builds
    expected = losses_of(build())
    assert [losses_of(copy) for copy in copies] == [expected] * 3


def with_hook() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight.register_hook(torch.zeros_like)
    return layer


def with_views() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.register_buffer("part", layer.weight.detach()[:1])
    return layer


def with_owner() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight.owner = [layer]  # type: ignore[attr-defined]
    return layer


@pytest.mark.parametrize("kind", [with_hook, with_views, with_owner])
def test_what_a_copy_would_lose_or_share_is_built_each_time(
    kind: Callable[[], nn.Module],
) -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(kind())
        return built[-1]

    assert copies_of(build, CPU)() is built[1]


def test_a_copy_keeps_what_is_tied_and_what_is_frozen() -> None:
    copy = copies_of(Tied, CPU)()
    assert isinstance(copy, Tied)
    assert copy.first.weight is copy.second.weight
    assert vars(copy.first.weight) == {"mine": "kept"}
    assert isinstance(copy.first.weight, nn.Parameter)
    assert not copy.second.bias.requires_grad
    assert not isinstance(copy.scale, nn.Parameter)
