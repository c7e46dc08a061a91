"""When something outside asked a process to end: a trace that outlives it."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path
from typing import IO

from shardmark.processes.heartbeat import FILE_VARIABLE

_NAME = "signal.rank{rank}.txt"
_kept: list[IO[str]] = []


def leave_trace_of_signals(rank: int) -> None:
    """Let SIGTERM and SIGHUP leave a trace, and then end this process as they would without.

    The trace is on the node's own disk, beside the heartbeats: a file server has another clock.
    Without a launcher there is none. A handler in Python would run only once the interpreter is
    back from a collective, perhaps never; faulthandler's runs at once.
    """
    if FILE_VARIABLE not in os.environ:
        return
    file = Path(os.environ[FILE_VARIABLE]).with_name(_NAME.format(rank=rank)).open("w")
    _kept.append(file)
    # One that is ignored (nohup) ends nothing.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_DFL:
            continue
        faulthandler.register(number, file=file, all_threads=False, chain=True)


def signalled_ranks(folder: Path) -> dict[int, float]:
    """The ranks of a node that a signal ended, and when, in seconds since the epoch.

    Args:
        folder: the heartbeats'.
    """
    found = {}
    for path in folder.glob(_NAME.format(rank="*")):
        rank = path.stem.removeprefix("signal.rank")
        if rank.isdigit() and path.stat().st_size:
            found[int(rank)] = path.stat().st_mtime
    return found
