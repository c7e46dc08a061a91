"""Wait for what a cluster does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster import run

# Much longer than anything here takes on an idle machine.
PATIENCE_S = 300.0


def until(there: Callable[[], object], what: str) -> None:
    """Wait until a condition holds; if it never does, fail with the state of queue and nodes."""
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        if time.monotonic() > deadline:
            now = run("squeue", "--format=%i %T %r %k") + run("sinfo", "-N", "--format=%N %t %E")
            raise AssertionError(f"no {what} after {PATIENCE_S:.0f} s\n{now}")
        time.sleep(0.2)
