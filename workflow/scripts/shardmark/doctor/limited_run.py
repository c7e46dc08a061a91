"""Run a command of the doctor's with a time limit."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def run_limited(
    command: Sequence[str], task: str, limit_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command; if it takes too long, it has failed, and its stderr says so.

    Args:
        command: what to run.
        task: what it does, for that message.
        limit_s: how long it may take.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        message = f"{task} took more than {limit_s:.0f} s"
        return subprocess.CompletedProcess(command, 1, "", message)
