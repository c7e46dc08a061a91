"""Activation checkpointing and compilation of a network's blocks, before a strategy shards them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

# The names under which the wrappers of wrap_blocks hold what they wrap.
CHECKPOINTED, COMPILED = "_checkpoint_wrapped_module", "_orig_mod"
# What these wrappers, and those of FSDP1 and FairScale, insert into the names of parameters.
_INSERTED = re.compile(rf"({CHECKPOINTED}|{COMPILED}|_fsdp_wrapped_module|_fpw_module)\.")


def plain_name(name: str) -> str:
    """The name that a parameter or buffer had before its block was wrapped."""
    return _INSERTED.sub("", name)


def wrap_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    checkpointing: Literal["none", "block"],
    compilation: Literal["none", "block", "model"],
) -> None:
    """Put the wrappers of a workload around each block of a network.

    Checkpointing goes around the block itself, so that its inputs alone are kept. Compilation goes
    around that, so that the compiler sees what is computed again. A strategy then shards the
    outermost module: FSDP inside a checkpointed module gathers in the wrong order.

    Compilation is lazy: the first step compiles. Shapes never change from step to step, so each
    block is compiled for its own; torch would try one program for the shapes of all blocks.
    ``model`` compiles nothing here: a strategy compiles what it has made of the model.
    """
    if compilation == "block":
        # Blocks of one class share their compiled code. torch would soon give up: beyond eight
        # different ones it runs the rest uncompiled, with only a warning.
        cast(Any, torch._dynamo).config.recompile_limit = max(8, len(blocks))
    places = {id(module): name for name, module in model.named_modules()}
    for block in blocks:
        wrapped = block
        if checkpointing == "block":
            # Dropout draws from the samples' keys, so the second pass needs no generator's state.
            # To save and restore it would cost each block time in every step.
            wrapped = checkpoint_wrapper(wrapped, preserve_rng_state=False)
        if compilation == "block":
            wrapped = cast(nn.Module, torch.compile(wrapped, dynamic=False))
        parent, _, child = places[id(block)].rpartition(".")
        setattr(model.get_submodule(parent), child, wrapped)


def outermost(model: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Replace each block of a network by the outermost module that wrap_blocks put around it."""
    around = {
        id(child): module
        for module in model.modules()
        for name, child in module.named_children()
        if name in (CHECKPOINTED, COMPILED)
    }
    found = []
    for block in blocks:
        while id(block) in around:
            block = around[id(block)]
        found.append(block)
    return found
