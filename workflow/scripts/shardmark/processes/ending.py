"""Ending a process, also one that is stopped or that a driver holds."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from typing import Any


def end(process: subprocess.Popen[Any], grace_s: float) -> None:
    """End a process: with SIGTERM, and if that is not enough with SIGKILL.

    SIGTERM waits until a stopped process goes on, SIGKILL does not. One that hangs within a driver
    may outlive both: this returns all the same, and its ``returncode`` is None.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
