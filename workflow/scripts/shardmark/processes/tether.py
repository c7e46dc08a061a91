"""Run a command that dies with the process that started it, however that process ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tether(command: Sequence[str]) -> list[str]:
    """Wrap ``command`` so that the kernel kills it when this process ends.

    The kernel ties it to the thread that starts it, so start it from a thread that lasts, such as
    the main thread. Only the command itself is tied; each process that it starts needs a tether of
    its own.
    """
    return [sys.executable, "-I", __file__, str(os.getpid()), *command]


def end_with(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends; whether the parent still runs."""
    return not ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and (
        os.getppid() == parent
    )


def main() -> None:
    """Replace this process by the command on its command line, tied to the parent process."""
    parent, *command = sys.argv[1:]
    if not end_with(int(parent)):
        sys.exit(f"shardmark: {command[0]}: not started, since what wanted it is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
