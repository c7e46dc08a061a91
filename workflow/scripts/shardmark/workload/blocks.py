"""Activation checkpointing and compilation of a network's blocks, before a strategy shards them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

# The attributes under which the wrappers of wrap_blocks hold the wrapped module.
CHECKPOINTED, COMPILED = "_checkpoint_wrapped_module", "_orig_mod"
# What these wrappers, and those of FSDP1 and FairScale, insert into the names of parameters.
_INSERTED = re.compile(rf"({CHECKPOINTED}|{COMPILED}|_fsdp_wrapped_module|_fpw_module)\.")


def plain_name(name: str) -> str:
    """Return the name that a parameter or buffer had before its block was wrapped."""
    return _INSERTED.sub("", name)


def wrap_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    checkpointing: Literal["none", "block"],
    compilation: Literal["none", "block", "model"],
) -> None:
    """Wrap each block of a network for checkpointing and compilation, as the workload asks.

    Checkpointing goes around the block itself, so that only its inputs are kept. Compilation goes
    around that, so that the compiler sees the recomputation. A strategy then shards the
    outermost module: FSDP inside a checkpointed module gathers in the wrong order.

    Compilation is lazy: the first step compiles. Shapes never change from step to step, so each
    block is compiled for its own shapes. Without ``dynamic=False``, torch would try one program for
    the shapes of all blocks. ``model`` compiles nothing here: the strategy compiles the whole model
    after it has wrapped it.
    """
    if compilation == "block":
        # Blocks of one class share a cache of compiled code. By default it holds eight versions,
        # and torch runs further blocks uncompiled, with only a warning.
        cast(Any, torch._dynamo).config.recompile_limit = max(8, len(blocks))
    places = {id(module): name for name, module in model.named_modules()}
    for block in blocks:
        wrapped = block
        if checkpointing == "block":
            wrapped = checkpoint_wrapper(wrapped, checkpoint_fn=_checkpoint)
        if compilation == "block":
            wrapped = cast(nn.Module, torch.compile(wrapped, dynamic=False))
        parent, _, child = places[id(block)].rpartition(".")
        setattr(model.get_submodule(parent), child, wrapped)


def _checkpoint(block: nn.Module, *inputs: Any, **named_inputs: Any) -> Any:
    """Run a block and keep only its inputs; the backward pass computes the rest again.

    Dropout draws from the samples' keys, so the second pass needs no generator's state. Saving and
    restoring that state would cost time in every block of every step.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    # The compiler accepts no contexts here; what it compiles updates batch-norm's statistics once.
    if not torch.compiler.is_compiling():
        options["context_fn"] = lambda: (nullcontext(), _freeze_statistics(block))
    return checkpoint(block, *inputs, **named_inputs, **options)


@contextmanager
def _freeze_statistics(block: nn.Module) -> Iterator[None]:
    """Freeze a block's batch-norm statistics, because the first pass has already updated them."""
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    settings = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, settings, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def outermost_modules(model: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Return, for each block, the outermost module that wrap_blocks put around it."""
    around = {
        id(child): module
        for module in model.modules()
        for name, child in module.named_children()
        if name in (CHECKPOINTED, COMPILED)
    }
    wrappers = []
    for block in blocks:
        while id(block) in around:
            block = around[id(block)]
        wrappers.append(block)
    return wrappers
