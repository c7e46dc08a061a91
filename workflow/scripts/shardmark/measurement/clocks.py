"""Time: phases by the wall, steps by the device's own events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shardmark.processes.heartbeat import Heartbeat

OTHER = "other"


class Phases:
    """Wall-clock seconds of a process, each second in exactly one phase.

    Args:
        imports_s: what it had taken before, for its imports.

    Attributes:
        seconds: by phase; ``other`` is the time in none.
        heart: tells the launcher how far the process has come.
    """

    def __init__(self, imports_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {"imports": imports_s}
        self.heart = Heartbeat()
        self.current = "imports"
        self._open = OTHER
        self._since = time.perf_counter()

    @property
    def current(self) -> str:
        """The phase last entered, for a failure to be told with."""
        return self._current

    @current.setter
    def current(self, name: str) -> None:
        self._current = name
        self.heart.phase(name)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Give the time inside to this phase, and to the one around it no more until it is left.

        An exception leaves the name in ``current``.
        """
        around = self._switch(name)
        self.current = name
        yield
        self._switch(around)
        if around != OTHER:
            self.current = around

    def so_far(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._switch(self._open)
        return dict(self.seconds)

    def _switch(self, name: str) -> str:
        now = time.perf_counter()
        self.seconds[self._open] = self.seconds.get(self._open, 0.0) + now - self._since
        self._open, self._since, before = name, now, self._open
        return before


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
            # By default it would be recorded on the process's current device, which under
            # DataParallel is always the first.
            event.record(torch.cuda.current_stream(self._device))
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
