"""End a process, even one that is stopped or hangs in a driver."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from typing import Any


def end(process: subprocess.Popen[Any], grace_s: float) -> None:
    """End a process with SIGTERM, and with SIGKILL if it is still alive after ``grace_s`` seconds.

    A stopped process receives SIGTERM only when it continues, but SIGKILL at once. A process that
    hangs in a driver may survive both: this returns anyway, and its ``returncode`` is None.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
