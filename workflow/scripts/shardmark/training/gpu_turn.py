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

from shardmark.processes.surroundings import TURN_VARIABLE
from shardmark.training.runtime import Runtime

# After this a case goes on without the room: what is short of memory then may be the case itself.
LONGEST_WAIT_S = 600.0
POLL_S = 0.5
# Of a parameter on one rank at most: float32 weight, gradient and two optimizer states, and whole
# copies of the weight and the gradient while a framework flattens or gathers them.
BYTES_PER_PARAMETER = 24
# cuBLAS and NCCL workspaces, and the activations of a few images.
OTHER_BYTES = 3 * 2**30
# Times what a case needs; where so much is free, cases side by side cannot fill a GPU.
AMPLE = 8


@contextlib.contextmanager
def room_for(
    runtime: Runtime, parameters: int, alive: Callable[[], object]
) -> Iterator[Callable[[], object]]:
    """Enter when this process group's GPUs have room for a model; a collective.

    Where memory is ample, nobody waits. Else one case at a time takes its memory: it holds the turn
    from before it looks until it has taken it, so that two cases never count on the same room.

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
    begin = time.monotonic()
    has_turn = runtime.rank != 0  # rank 0 takes it for all
    while True:
        free = _least(runtime, _free_bytes(runtime))
        if free >= AMPLE * needed:
            return
        if _least(runtime, has_turn and free >= needed):
            return
        if runtime.rank0_decides(time.monotonic() - begin) > LONGEST_WAIT_S:
            return
        has_turn = has_turn or _take(file, turn)
        alive()
        time.sleep(POLL_S)


def _take(file: Path, turn: contextlib.ExitStack) -> bool:
    """Whether the turn is this process's now; ``turn`` gives it back.

    A file system without locks gives it to everybody.
    """
    held = turn.enter_context(file.open("a"))
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return False
    except OSError:
        return True
    return True


def _free_bytes(runtime: Runtime) -> int:
    """Of this process's fullest GPU, with what its own allocator holds in reserve."""
    one_process = len(runtime.replicas) > 1 and not runtime.shared_device
    devices = list(runtime.replicas) if one_process else [runtime.device.index]
    return min(
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
        for device in devices
    )


def _least(runtime: Runtime, mine: int) -> int:
    """The smallest of all ranks' numbers."""
    agreed = torch.tensor([mine], dtype=torch.int64, device=runtime.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return int(agreed.item())
