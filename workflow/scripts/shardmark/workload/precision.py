"""What fp32, tf32, bf16 and fp16 mean, the same for every strategy (docs/method.md).

bf16 and fp16 are autocast: low-precision compute with float32 parameters, gradients, reduction and
optimizer state. A strategy's own low-precision storage or communication is a named variant.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_math_mode(precision: str) -> None:
    """Allow TensorFloat-32 for tf32 alone; float32 leftovers of bf16 and fp16 stay float32."""
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(precision: str, device_type: str) -> AbstractContextManager[object]:
    """The autocast region of a forward pass; disabled, but present, for fp32 and tf32."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16, with torch's defaults; a pass-through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
