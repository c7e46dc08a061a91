"""Patches that let FairScale's FSDP run over gloo and on a machine without a GPU.

gloo needs flat tensors in a reduce-scatter; NCCL does not. FairScale also uses CUDA streams. On a
CPU everything runs in order, so streams that do nothing replace them, in FairScale's own modules
only. FairScale's computation is unchanged, and the parity gate compares it with the oracle as it
does for any other strategy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from fairscale.internal import reduce_scatter_bucketer
from fairscale.nn.data_parallel import FullyShardedDataParallel
from fairscale.nn.data_parallel import fully_sharded_data_parallel as fairscale_fsdp
from torch import Tensor


class _NullStream:
    def wait_stream(self, other: object) -> None:
        """Nothing runs ahead, so there is nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing runs ahead, so there is nothing to wait for."""


_NULL_STREAM = _NullStream()


class _Overlay:
    """Stands in for a module, with some of its names replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _current_stream(device: object = None) -> _NullStream:
    return _NULL_STREAM


def _synchronize(device: object = None) -> None:
    """Nothing runs ahead, so there is nothing to wait for."""


def _stream(stream: object) -> AbstractContextManager[None]:
    return nullcontext()


def _reduce_scatter_flat(output: Tensor, shards: Tensor, group: Any = None) -> Any:
    # gloo checks output.shape[0] * world == input.shape[0]; FairScale passes shape (world, n).
    return cast(Any, dist)._reduce_scatter_base(output.view(-1), shards.view(-1), group=group)


def allow_gloo() -> None:
    """Let FairScale's FSDP reduce over gloo in this process; a second call changes nothing."""
    bucketer = cast(Any, reduce_scatter_bucketer)
    if not isinstance(bucketer.dist, _Overlay):
        bucketer.dist = _Overlay(dist, _reduce_scatter_base=_reduce_scatter_flat)


def allow_cpu() -> None:
    """Let FairScale's FSDP train without a GPU in this process; a second call changes nothing."""
    module = cast(Any, fairscale_fsdp)
    if isinstance(module.torch, _Overlay):
        return
    cuda = _Overlay(
        torch.cuda, stream=_stream, current_stream=_current_stream, synchronize=_synchronize
    )
    module.torch = _Overlay(torch, cuda=cuda)
    wrapper = cast(Any, FullyShardedDataParallel)
    set_up = wrapper._setup_streams

    def set_up_null_streams(self: Any) -> None:
        set_up(self)
        for name in ("fp32_to_fp16", "all_gather", "post_backward"):
            self._streams.setdefault(name, _NULL_STREAM)

    wrapper._setup_streams = set_up_null_streams
    # record_stream raises on a CPU tensor; only FairScale calls it on one.
    cast(Any, Tensor).record_stream = lambda tensor, stream: None
    # clip_grad_norm_ calls it on the norm.
    cast(Any, Tensor).cuda = lambda tensor: tensor
