"""Runs a network with shapes but without values, which takes no memory and little time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shardmark.workload.contract import Contract, Inputs

# Batch-norm needs more than one value per channel.
SAMPLES = 2

Result = TypeVar("Result")


def run_without_values(
    workload: Contract[Any], model: nn.Module, run: Callable[[nn.Module, Inputs], Result]
) -> Result:
    """Run a network on the meta device, or with fake tensors if it does not run there.

    Some models check for fake tensors and then skip branches that depend on a tensor's value.

    Args:
        workload: makes the inputs of two samples.
        model: its network; without memory afterwards.
        run: computes the result; it may be called twice.
    """
    try:
        with torch.device("meta"):
            inputs = workload.example(SAMPLES)
        return run(model, inputs)
    except Exception:
        inputs = workload.example(SAMPLES)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return run(model.to_empty(device="cpu"), tuple(map(mode.from_tensor, inputs)))


def why_not(error: Exception) -> str:
    """Describe in one line why a network did not run; it may be the user's own."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(".: ")
