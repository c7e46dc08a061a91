"""What fp32, tf32, bf16 and fp16 mean, the same for every strategy (docs/method.md).

bf16 and fp16 mean autocast: low-precision compute with float32 parameters, gradients, reduction and
optimizer state. A strategy with low-precision storage or communication is a variant with its own
name.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_math_mode(precision: str) -> None:
    """Allow TensorFloat-32 only for tf32; float32 operations under bf16 and fp16 stay float32."""
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(
    precision: str, device_type: str, *, keep_weights: bool = True
) -> AbstractContextManager[object]:
    """The autocast region of a forward pass; for fp32 and tf32 it exists but is disabled.

    Args:
        precision: the workload's.
        device_type: cuda or cpu.
        keep_weights: whether a rounded weight is kept for other uses in the region.
    """
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(
        device_type, dtype=dtype, enabled=dtype is not None, cache_enabled=keep_weights
    )


def cast_floats(
    dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cast the float tensors that a module is called with: a forward pre-hook with keywords."""

    def cast_one(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    return tree_map(cast_one, inputs), tree_map(cast_one, named)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A dynamic loss scaler with torch's defaults for fp16; otherwise a disabled one."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
