"""When something outside asked a process to end: a trace that outlives it."""

from __future__ import annotations

import faulthandler
import signal
from pathlib import Path
from typing import IO

_NAME = "signal.rank{rank}.txt"
_kept: list[IO[str]] = []


def leave_trace_of_signals(scratch: Path, rank: int) -> None:
    """Let SIGTERM and SIGHUP leave a trace, and then end this process as they would without.

    A handler in Python would run only once the interpreter is back from a collective, perhaps
    never; faulthandler's runs at once.
    """
    file = (scratch / _NAME.format(rank=rank)).open("w")
    _kept.append(file)
    for number in (signal.SIGTERM, signal.SIGHUP):
        faulthandler.register(number, file=file, all_threads=False, chain=True)


def signalled_ranks(scratch: Path) -> dict[int, float]:
    """The ranks that a signal ended, and when, in seconds since the epoch."""
    found = {}
    for path in scratch.glob(_NAME.format(rank="*")):
        rank = path.stem.removeprefix("signal.rank")
        if rank.isdigit() and path.stat().st_size:
            found[int(rank)] = path.stat().st_mtime
    return found
