"""End a process: another one, even if it is stopped or hangs in a driver, or this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

import psutil


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


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def leave(code: int = 0) -> NoReturn:
    """End this process at once, after it has imported torch; all its files must be closed.

    An orderly exit of the interpreter tears down every module of torch and torch._dynamo. That
    takes each process a second (measured, torch 2.15) and has no use.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
