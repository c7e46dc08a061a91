"""Parity cases that run at the same time, and one that runs alone."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


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
