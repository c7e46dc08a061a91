"""Ask about processes that may end at any moment."""

from __future__ import annotations

import contextlib

import psutil

from shardmark.processes.ending import is_alive


def command_line(process: psutil.Process) -> list[str]:
    """The words of the command that a process runs; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
        return process.cmdline()
    return []


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return is_alive(psutil.Process(pid))
    return False
