"""A trace of the signal that ended a process, which outlives the process."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path
from typing import IO

from shardmark.processes.heartbeat import FILE_VARIABLE

_NAME = "signal.rank{rank}.txt"
_kept: list[IO[str]] = []


# What a scheduler, a limit of the system or a person ends a process with; SIGKILL leaves no trace,
# and SIGUSR1 asks a rank where it stands.
FROM_OUTSIDE = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGXCPU,
    signal.SIGUSR2,
)


def leave_trace_of_signals(rank: int) -> None:
    """Write a trace when a signal from outside arrives, and then end as usual.

    The trace is on the node's own disk, beside the heartbeats, because a file server has another
    clock. Without a launcher there is no trace. A Python handler would run only after the
    interpreter returns from a collective, perhaps never; faulthandler's runs at once.
    """
    if FILE_VARIABLE not in os.environ:
        return
    file = Path(os.environ[FILE_VARIABLE]).with_name(_NAME.format(rank=rank)).open("w")
    _kept.append(file)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        # Python's exception would leave this rank's exit to wait for the others.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in FROM_OUTSIDE:
        # One that is ignored (nohup) ends nothing.
        if signal.getsignal(number) != signal.SIG_DFL:
            continue
        faulthandler.register(number, file=file, all_threads=False, chain=True)


def signalled_ranks(folder: Path) -> dict[int, float]:
    """The ranks of a node that such a signal ended, and when, in seconds since the epoch.

    Args:
        folder: the heartbeats'.
    """
    found = {}
    for path in folder.glob(_NAME.format(rank="*")):
        rank = path.stem.removeprefix("signal.rank")
        if rank.isdigit() and path.stat().st_size:
            found[int(rank)] = path.stat().st_mtime
    return found
