"""Waiting for room on GPUs that other cases of the parity gate use at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from shardmark.processes.gpu_sharing import TURN_VARIABLE
from shardmark.training.runtime import Runtime

# A case that has the turn waits this long for room, and then goes on: it may itself be too large.
LONGEST_WAIT_S = 600.0
POLL_S = 0.5
# Upper bound per parameter and rank: float32 weight, gradient and two optimizer states, and whole
# copies of the weight and the gradient while a framework flattens or gathers them.
BYTES_PER_PARAMETER = 24
# cuBLAS and NCCL workspaces, and the activations of a few images.
OTHER_BYTES = 3 * 2**30
# With this many times the need free, a case does not wait: cases side by side cannot fill a GPU.
AMPLE = 8


@contextlib.contextmanager
def room_for(
    runtime: Runtime, parameters: int, alive: Callable[[], object]
) -> Iterator[Callable[[], object]]:
    """Enter when this process group's GPUs have room for a model; a collective.

    If memory is ample, no case waits. Otherwise cases take their memory in turns: a case holds the
    turn from before it looks until its memory is taken, so two cases never count on the same room.

    Args:
        runtime: this process among the case's.
        parameters: of the model.
        alive: called while waiting.

    Yields:
        What to call when the memory is taken, for the next case to look.
    """
    needed = BYTES_PER_PARAMETER * parameters + OTHER_BYTES
    if runtime.shared_device:
        needed *= runtime.world_size
    file = os.environ.get(TURN_VARIABLE)
    with contextlib.ExitStack() as turn:
        if file is not None and runtime.device.type == "cuda":
            _wait_for_room(runtime, needed, Path(file), turn, alive)
        yield turn.close


def _wait_for_room(
    runtime: Runtime,
    needed: int,
    file: Path,
    turn: contextlib.ExitStack,
    alive: Callable[[], object],
) -> None:
    has_turn = runtime.rank != 0  # rank 0 takes it for all
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
        if runtime.rank0_decides(time.monotonic() - since) > LONGEST_WAIT_S:
            return
        has_turn = has_turn or _take(file, turn)
        alive()
        time.sleep(POLL_S)


def _take(file: Path, turn: contextlib.ExitStack) -> bool:
    """Whether the turn is this process's now; ``turn`` gives it back.

    On a file system without locks every case has it.
    """
    held = turn.enter_context(file.open("a"))
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return False
    except OSError:
        return True
    # A forked process, such as a loader's worker, would keep a lock that is only closed.
    turn.callback(fcntl.flock, held, fcntl.LOCK_UN)
    return True


def _free_bytes(runtime: Runtime) -> int:
    """Of this process's fullest GPU, with what its own allocator holds in reserve."""
    return min(
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
        for device in runtime.gpus
    )


def _least(runtime: Runtime, mine: int) -> int:
    """The smallest of all ranks' numbers."""
    agreed = torch.tensor([mine], dtype=torch.int64, device=runtime.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return int(agreed.item())
