"""Record the signal that ends a process, in a file that outlives the process."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path
from typing import IO

from shardmark.processes.heartbeat import FILE_VARIABLE

_NAME = "signal.rank{rank}.txt"
_open_files: list[IO[str]] = []


# The signals with which a scheduler, a system limit or a person ends a process. SIGKILL cannot be
# recorded, and SIGUSR1 only asks a rank for its stack.
FROM_OUTSIDE = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGXCPU,
    signal.SIGUSR2,
)


def leave_trace_of_signals(rank: int) -> None:
    """Write a trace when a signal from outside arrives, and then let it end the process as usual.

    The trace goes to the node's own disk, beside the heartbeats, because a file server has another
    clock. Without a launcher there is no trace. This uses faulthandler, whose handler runs at once;
    a Python handler would wait until the interpreter returns from a collective, perhaps for ever.
    """
    if FILE_VARIABLE not in os.environ:
        return
    file = Path(os.environ[FILE_VARIABLE]).with_name(_NAME.format(rank=rank)).open("w")
    _open_files.append(file)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        # With Python's KeyboardInterrupt, this rank's exit would wait for the other ranks.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in FROM_OUTSIDE:
        # An ignored signal (nohup) does not end the process.
        if signal.getsignal(number) != signal.SIG_DFL:
            continue
        faulthandler.register(number, file=file, all_threads=False, chain=True)


def signalled_ranks(folder: Path) -> dict[int, float]:
    """Return the ranks of a node that such a signal ended, and when, in seconds since the epoch.

    Args:
        folder: the folder of the heartbeats.
    """
    times = {}
    for path in folder.glob(_NAME.format(rank="*")):
        rank = path.stem.removeprefix("signal.rank")
        if rank.isdigit() and path.stat().st_size:
            times[int(rank)] = path.stat().st_mtime
    return times
