"""Python's garbage collector, kept out of what is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection inside.

    A collection stops the thread that launches kernels, for longer the more objects a framework
    keeps alive. torchtitan controls the collector for the same reason. gc.freeze() keeps a
    framework's own gc.collect() cheap.
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
    """Collections of all generations since the process began."""
    return sum(generation["collections"] for generation in gc.get_stats())
