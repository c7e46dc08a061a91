"""Bytes of the model's state: those that a process holds, and those that ZeRO's formulas predict.

The state is what sharding can save: parameters, gradients, optimizer state. It does not include
activations, the framework's own buffers and the samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shardmark.metrics import ModelState
from shardmark.optimizers import OPTIMIZERS, Optimizer

_FLOAT32_BYTES = 4
# bf16 and fp16.
_LOW_BYTES = 2


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Return the bytes of the tensors' storages by address; views of one storage count once.

    A shard that is a view of a larger buffer keeps the whole buffer alive, so the buffer counts.
    """
    sizes = {}
    for tensor in tensors:
        if tensor is None:
            continue
        memory = _local(tensor).untyped_storage()
        if memory.nbytes():
            sizes[memory.data_ptr()] = memory.nbytes()
    return sizes


def host_bytes(tensors: Iterable[Tensor | None], device_type: str) -> int:
    """Return the bytes that were offloaded to host memory by a rank that computes on this device.

    Tensors of one number, such as the optimizer's step counters, are in host memory anyway.
    """
    if device_type == "cpu":
        return 0
    offloaded = (
        tensor
        for tensor in tensors
        if tensor is not None and tensor.numel() > 1 and _local(tensor).device.type == "cpu"
    )
    return sum(storages(offloaded).values())


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, or the tensor itself."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def held(
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    stepped: Iterable[Tensor],
    gradients_bytes: int,
    gradients_host_bytes: int,
    device_type: str,
) -> ModelState:
    """Return the state that this process holds between two steps.

    Args:
        parameters: parameters of the strategy's module. With ZeRO-3 their shards are in
            ``ds_tensor``.
        optimizer: the torch optimizer that steps.
        stepped: the parameters that it updated. Those that are not the module's are copies, and
            count as its state. ZeRO-3 takes them out of its groups between steps.
        gradients_bytes: bytes of the gradients when it stepped; between steps there are none.
        gradients_host_bytes: those of them that were offloaded to host memory.
        device_type: the device that computes, ``cuda`` or ``cpu``.
    """
    module = list(parameters)
    shards = [getattr(parameter, "ds_tensor", None) for parameter in module]
    whole = storages([*module, *shards])
    stepped = list(stepped)
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
        host_bytes=gradients_host_bytes
        + host_bytes([*module, *shards, *stepped, *state], device_type),
    )


def predicted(
    parameters: int,
    stage: int,
    ranks: int,
    bytes_each: tuple[int, int, int],
    offload: str = "none",
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
        offload: what is in host memory: ``none``, the ``optimizer``'s state with the gradients, or
            ``all``.
    """
    whole = [parameters * size for size in bytes_each]
    parameter, gradient, state = (
        -(-size // ranks) if stage >= sharded_from else size
        for size, sharded_from in zip(whole, (3, 2, 1), strict=True)
    )
    host = {"none": 0, "optimizer": gradient + state, "all": parameter + gradient + state}
    return ModelState(
        parameters_bytes=parameter,
        gradients_bytes=gradient,
        optimizer_state_bytes=state,
        host_bytes=host[offload],
    )


def bytes_each(optimizer: Optimizer, state_dtype: str) -> tuple[int, int, int]:
    """Return the bytes of a parameter, its gradient and its optimizer state.

    If parameters are kept in less than float32, the state includes a float32 copy of them.
    """
    numbers = OPTIMIZERS[optimizer.name].state_numbers(optimizer)
    if state_dtype == "fp32":
        return _FLOAT32_BYTES, _FLOAT32_BYTES, numbers * _FLOAT32_BYTES
    return _LOW_BYTES, _LOW_BYTES, (1 + numbers) * _FLOAT32_BYTES
