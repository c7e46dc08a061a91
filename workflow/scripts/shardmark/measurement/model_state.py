"""Bytes of the model's state: those that a process holds, and those that ZeRO's formulas predict.

The state is what sharding can save: parameters, gradients, optimizer state. It does not include
activations, the framework's own buffers and the samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shardmark.config.schema import Optimizer
from shardmark.metrics import ModelState
from shardmark.optimizers import OPTIMIZERS

_FLOAT32_BYTES = 4


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Return the bytes of the tensors' storages by address; views of one storage count once.

    A shard that is a view of a larger buffer keeps the whole buffer alive, so the buffer counts.
    """
    found = {}
    for tensor in tensors:
        if tensor is None:
            continue
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        memory = local.untyped_storage()
        if memory.nbytes():
            found[memory.data_ptr()] = memory.nbytes()
    return found


def held(
    parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, gradients_bytes: int
) -> ModelState:
    """Return the state that this process holds between two steps.

    Args:
        parameters: parameters of the strategy's module. With ZeRO-3 their shards are in
            ``ds_tensor``.
        optimizer: the torch optimizer that steps. If its parameters are not the module's, they are
            copies and count as its state.
        gradients_bytes: bytes of the gradients when it stepped; between steps there are none.
    """
    module = list(parameters)
    shards = [getattr(parameter, "ds_tensor", None) for parameter in module]
    whole = storages([*module, *shards])
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = [leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor)]
    own = {
        address: size
        for address, size in storages([*stepped, *state]).items()
        if address not in whole
    }
    return ModelState(
        parameters_bytes=sum(whole.values()),
        gradients_bytes=gradients_bytes,
        optimizer_state_bytes=sum(own.values()),
    )


def predicted(
    parameters: int, stage: int, ranks: int, bytes_each: tuple[int, int, int]
) -> ModelState:
    """Return what a rank holds according to ZeRO's formulas.

    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
    (SC20), figure 1.

    Args:
        parameters: parameters of the model, over all ranks.
        stage: 0 shards nothing, 1 the optimizer state, 2 the gradients too, 3 the parameters too.
        ranks: number of ranks that share the shards.
        bytes_each: bytes per parameter of the parameter, its gradient and its optimizer state; in
            the paper 2, 2 and 12.
    """
    parameter, gradient, state = (parameters * size for size in bytes_each)
    return ModelState(
        parameters_bytes=-(-parameter // ranks) if stage >= 3 else parameter,
        gradients_bytes=-(-gradient // ranks) if stage >= 2 else gradient,
        optimizer_state_bytes=-(-state // ranks) if stage >= 1 else state,
    )


def float32_bytes(optimizer: Optimizer) -> tuple[int, int, int]:
    """Return the bytes of a parameter, its gradient and its optimizer state in plain float32."""
    numbers = OPTIMIZERS[optimizer.name].state_numbers(optimizer)
    return _FLOAT32_BYTES, _FLOAT32_BYTES, numbers * _FLOAT32_BYTES
