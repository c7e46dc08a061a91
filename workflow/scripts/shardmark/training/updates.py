"""Optimizer steps that change the weights, although a loss scaler may skip some."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.optim.optimizer import register_optimizer_step_post_hook

from shardmark.errors import UserError

# The loss scaler of fp16 starts at 2**16 and halves until nothing overflows. ResNet-50 at 224 px
# skipped its first two steps.
MOST_SKIPPED = 16

Result = TypeVar("Result")


def taken_until_it_updates(step: Callable[[], Result], *, required: bool = False) -> Result:
    """Take a step, and repeat it as long as the loss scaler skips it.

    Each rank and the oracle scale the loss of one replica. DataParallel scales a replica's share of
    the total loss, which is smaller by a factor of the number of replicas. So DataParallel may
    overflow at another scale and skip another number of steps than the oracle. Without the
    repetition, their first updates would come from different batches.

    Args:
        step: takes a step on the same batch each time.
        required: whether it is an error if every repetition is skipped.

    Raises:
        UserError: if an update is required, and there is none.
    """
    updates: list[bool] = []
    hook = register_optimizer_step_post_hook(lambda *_: updates.append(True))
    try:
        for _ in range(1 + MOST_SKIPPED):
            result = step()
            if updates:
                break
        if required and not updates:
            raise UserError(
                f"the loss scaler skipped {1 + MOST_SKIPPED} steps in a row, so the loss or its "
                "gradient is too large for fp16; use bf16, or make the loss smaller"
            )
        return result
    finally:
        hook.remove()
