"""Keep Python's garbage collector out of the timed steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause garbage collection while the context is open.

    A collection stops the thread that launches kernels; the more objects a framework keeps alive,
    the longer it takes. torchtitan controls the collector for the same reason. gc.freeze() keeps a
    framework's own calls of gc.collect() cheap.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def collections_so_far() -> int:
    """Return the number of collections of all generations since the process began."""
    return sum(generation["collections"] for generation in gc.get_stats())
