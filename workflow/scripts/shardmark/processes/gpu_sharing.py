"""How cases of the parity gate that run at the same time share a machine's GPUs."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

# "1" if all ranks share one GPU. That is only a functional check, never a timing.
SHARED_DEVICE = "SHARDMARK_SHARED_DEVICE"
# A file on this machine. The case that holds its lock is the next to use GPUs.
TURN_VARIABLE = "SHARDMARK_GPU_TURN"


@contextlib.contextmanager
def running(file: Path, *, alone: bool) -> Iterator[None]:
    """Enter when a case may run: at once beside others, or ``alone`` when all others have ended.

    While one runs alone, no other starts. On a file system without locks, no case waits.

    Args:
        file: a file on this machine that all cases lock; made if it is missing.
        alone: whether to wait for the others.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as held:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
