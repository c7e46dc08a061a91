"""Time phases by the wall clock, and steps by the device's own events."""

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
        imports_s: seconds that the process had already spent on imports.

    Attributes:
        seconds: seconds by phase; ``other`` is the time outside all phases.
        heart: reports the progress of the process to the launcher.
    """

    def __init__(self, imports_s: float = 0.0) -> None:
        self.seconds: dict[str, float] = {"imports": imports_s}
        self.heart = Heartbeat()
        self.current = "imports"
        self._open = OTHER
        self._since = time.perf_counter()

    @property
    def current(self) -> str:
        """The phase entered last, for the record of a failure."""
        return self._current

    @current.setter
    def current(self, name: str) -> None:
        self._current = name
        self.heart.phase(name)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charge this phase, and pause the enclosing one.

        After an exception, ``current`` still has the phase's name.
        """
        enclosing = self._switch(name)
        self.current = name
        yield
        self._switch(enclosing)
        if enclosing != OTHER:
            self.current = enclosing

    def so_far(self) -> dict[str, float]:
        """Return seconds by phase until now."""
        self._switch(self._open)
        return dict(self.seconds)

    def _switch(self, name: str) -> str:
        now = time.perf_counter()
        self.seconds[self._open] = self.seconds.get(self._open, 0.0) + now - self._since
        self._open, self._since, previous = name, now, self._open
        return previous


class StepClock:
    """Marks the ends of steps; on a GPU with events, so that nothing waits until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        """Mark the end of a step and the begin of the next."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            # The default is the process's current device, which under DataParallel is always the
            # first.
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def step_ms(self) -> list[float]:
        """Return the duration of each step, ms; this is the only call that synchronises."""
        if self._events:
            self._events[-1].synchronize()
            pairs = zip(self._events, self._events[1:], strict=False)
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [
            1000 * (end - begin) for begin, end in zip(self._times, self._times[1:], strict=False)
        ]
