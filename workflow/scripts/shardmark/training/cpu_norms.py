"""Norms of large tensors on a CPU, for gradient clipping.

torch's CPU kernel adds the squares of a whole float32 tensor in float32. With torch 2.15, the norm
of 1, 10 and 38 million normal numbers was too small by 1.0e-5, 3.5e-4 and 2.6e-3 (issue 169237 of
pytorch/pytorch). So a CPU clipped to another norm than a GPU, and shards to another than a whole
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_VECTOR_NORM = torch.ops.aten.linalg_vector_norm.default
_FOREACH_NORM = torch.ops.aten._foreach_norm.Scalar
# Elements whose squares are added in float32. The error is then below 1e-7.
ROW = 4096


def precise_norms(device: torch.device) -> AbstractContextManager[object]:
    """Make torch's L2 norms of float32 gradients precise inside the context.

    Args:
        device: that of the gradients. Only on a CPU is anything changed.
    """
    return _RowByRow() if device.type == "cpu" else nullcontext()  # type: ignore[no-untyped-call]


class _RowByRow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds the squares of whole float32 tensors on the CPU row by row.

    Operations on a DTensor arrive here again, with its local shard.
    """

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the two operations with which torch and the frameworks take norms."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        options = options or {}
        if operation is _VECTOR_NORM:
            return _norm(*arguments, **options)
        if operation is _FOREACH_NORM:
            tensors, *others = arguments
            order = others[0] if others else 2
            return [_norm(tensor, order, **options) for tensor in tensors]
        return operation(*arguments, **options)


def _norm(tensor: Tensor, order: float = 2, *others: Any, **options: Any) -> Tensor:
    is_whole = not others and options.get("dim") is None and not options.get("keepdim")
    if order != 2 or not is_whole or tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        norm: Tensor = torch.linalg.vector_norm(tensor, order, *others, **options)
        return norm
    flat = tensor.flatten()
    end = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, ROW), dim=1)
    rest = torch.linalg.vector_norm(flat[end:])
    total: Tensor = torch.linalg.vector_norm(torch.cat([rows, rest[None]]), dtype=torch.float64)
    return total.to(options.get("dtype") or tensor.dtype)
