"""A command that does not outlive the process that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tethered(command: Sequence[str]) -> list[str]:
    """``command`` as this process must start it, so that the kernel kills it with this process.

    The tie is to the thread that starts it: that must be one which lasts, such as the main thread.
    It holds for the command alone; what the command starts needs a tether of its own.
    """
    return [sys.executable, "-I", __file__, str(os.getpid()), *command]


def main() -> None:
    """Become the command of the command line, tied to its parent."""
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) or os.getppid() != int(parent):
        sys.exit(f"shardmark: {command[0]}: not started, since what wanted it is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
