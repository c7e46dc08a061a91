"""Time: phases by the wall, steps by the device's own events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shardmark.heartbeat import Heartbeat


class Phases:
    """Wall-clock seconds of the named phases of a process, and which one it is in.

    Attributes:
        seconds: of each phase so far.
        heart: tells the launcher how far the process has come.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.heart = Heartbeat()
        self.current = "imports"

    @property
    def current(self) -> str:
        """The phase the process is in."""
        return self._current

    @current.setter
    def current(self, name: str) -> None:
        self._current = name
        self.heart.phase(name)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the phase; an exception leaves its name in ``current``."""
        self.current = name
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class StepClock:
    """Marks between steps; on a GPU events, so that nothing waits until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        """The end of a step, and the begin of the next."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def step_ms(self) -> list[float]:
        """Duration of each step, ms; the one synchronisation."""
        if self._events:
            self._events[-1].synchronize()
            pairs = zip(self._events, self._events[1:], strict=False)
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [
            1000 * (end - begin) for begin, end in zip(self._times, self._times[1:], strict=False)
        ]
