"""Read the command lines of processes that may end at any moment."""

from __future__ import annotations

import contextlib

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """The words of the command that a process runs; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
        return process.cmdline()
    return []
