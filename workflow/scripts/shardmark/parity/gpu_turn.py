"""Waits for memory that other cases of the parity gate use at the same time.

Ranks agree over gloo. Kernels of NCCL that wait for each other would take time from the GPUs of the
cases that train.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from shardmark.parity.side_by_side import (
    TURN_VARIABLE,
    alone_file,
    building_file,
    is_taken,
    take,
)
from shardmark.training.runtime import Runtime

# A case that has the turn waits at most this long for room, then continues: it may be too large.
LONGEST_WAIT_S = 600.0
POLL_S = 0.5
# Upper bound per parameter per rank: float32 weight, gradient and two optimizer states, plus full
# copies of the weight and the gradient while a framework flattens or gathers them.
BYTES_PER_PARAMETER = 24
# cuBLAS and NCCL workspaces, and the activations of a few images.
OTHER_BYTES = 3 * 2**30
# If this many times the needed memory is free, a case doesn't wait: parallel cases can't fill it.
AMPLE = 8
# No case waits for more than this share of a GPU's memory, because the processes that wait for
# their turn hold some, too. Our choice, not measured.
MOST = 0.6


@contextlib.contextmanager
def room_for(
    runtime: Runtime, parameters: int, alive: Callable[[], object]
) -> Iterator[Callable[[], object]]:
    """Enter when this process group's GPUs have room for a model; a collective.

    If memory is ample, no case waits. Otherwise cases allocate their memory in turns. A case takes
    the turn before it checks the free memory and keeps it until its own memory is allocated, so two
    cases never count on the same room. No case enters while another runs alone.

    Args:
        runtime: this process.
        parameters: number of parameters of the model; 0 waits only for a case that runs alone.
        alive: called while waiting.

    Yields:
        a function to call once the memory is allocated; it gives the turn to the next case.
    """
    with contextlib.ExitStack() as turn:
        if (file := _turn_file(runtime)) is not None:
            _wait_until(runtime, lambda: not is_taken(alone_file(file)), alive)
            if parameters:
                needed = _least(runtime, _needed_bytes(runtime, parameters))
                _wait_for_room(runtime, needed, file, turn, alive)
        yield turn.close


@contextlib.contextmanager
def alone_on_gpus(runtime: Runtime, alive: Callable[[], object]) -> Iterator[None]:
    """Enter when most of the GPUs' memory is free; no other case starts a training meanwhile.

    A collective. Trainings that other cases have started go on to their end.
    """
    with contextlib.ExitStack() as locks:
        if (file := _turn_file(runtime)) is not None:
            _wait_until(runtime, lambda: take(alone_file(file), locks), alive)
            needed = _least(runtime, _needed_bytes(runtime, None))
            _wait_for_room(runtime, needed, file, locks, alive)
        yield


@contextlib.contextmanager
def room_on_host(runtime: Runtime, parameters: int, alive: Callable[[], object]) -> Iterator[None]:
    """Enter when the host's memory has room for a float32 model per rank; a collective.

    Several cases may build their models at the same time, while others use the GPUs. At most half
    of the free memory is promised to them.
    """
    needed = runtime.world_size * 4 * max(1, parameters)

    def has_place() -> bool:
        assert file is not None
        # A case that has a place may not have taken its memory yet.
        places = max(1, psutil.virtual_memory().available // (2 * needed))
        return any(take(building_file(file, place), locks) for place in range(places))

    with contextlib.ExitStack() as locks:
        if (file := _turn_file(runtime)) is not None:
            _wait_until(runtime, has_place, alive)
        yield


def give_memory_back() -> None:
    """Free what a training took, for the cases that run beside this one."""
    gc.collect()  # modules of the frameworks, and of users, are in reference cycles
    torch.cuda.empty_cache()


def wait_for_most(device: torch.device) -> None:
    """Wait until most of a GPU's memory is free, though not for ever."""
    since = time.monotonic()
    while time.monotonic() - since < LONGEST_WAIT_S:
        free, total = torch.cuda.mem_get_info(device)
        if free >= MOST * total:
            return
        time.sleep(POLL_S)


def _turn_file(runtime: Runtime) -> Path | None:
    file = os.environ.get(TURN_VARIABLE)
    return Path(file) if file is not None and runtime.device.type == "cuda" else None


def _wait_until(runtime: Runtime, done: Callable[[], bool], alive: Callable[[], object]) -> None:
    """Wait until rank 0 says that something is done."""
    while not _least(runtime, runtime.rank != 0 or done()):
        alive()
        time.sleep(POLL_S)


def _needed_bytes(runtime: Runtime, parameters: int | None) -> int:
    most = int(MOST * min(torch.cuda.mem_get_info(device)[1] for device in runtime.gpus))
    if parameters is None:
        return most
    ranks = runtime.world_size if runtime.shared_device else 1
    return min(most, ranks * (BYTES_PER_PARAMETER * parameters + OTHER_BYTES))


def _wait_for_room(
    runtime: Runtime,
    needed: int,
    file: Path,
    turn: contextlib.ExitStack,
    alive: Callable[[], object],
) -> None:
    has_turn = runtime.rank != 0  # rank 0 takes the turn for all ranks
    since = time.monotonic()
    while True:
        free = _least(runtime, _free_bytes(runtime))
        if free >= AMPLE * needed:
            return
        everyone_has_it = bool(_least(runtime, has_turn))
        if everyone_has_it and free >= needed:
            return
        if not everyone_has_it:
            since = time.monotonic()
        if _least(runtime, runtime.rank != 0 or time.monotonic() - since > LONGEST_WAIT_S):
            return
        has_turn = has_turn or take(file, turn)
        alive()
        time.sleep(POLL_S)


def _free_bytes(runtime: Runtime) -> int:
    """Free bytes on this process's fullest GPU, including its own allocator's unused reserve."""
    return min(
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
        for device in runtime.gpus
    )


def _least(runtime: Runtime, mine: int) -> int:
    """The smallest number of all ranks."""
    agreed = torch.tensor([mine], dtype=torch.int64)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=_host_group(runtime))
    return int(agreed.item())


@functools.cache
def _host_group(runtime: Runtime) -> Any:
    """The group that communicates tensors in host memory; None for the default group."""
    return None if runtime.backend == "gloo" else dist.new_group(backend="gloo")
