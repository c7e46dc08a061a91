"""Run the check of a file of the user's own in a process that it cannot take down with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from shardmark.command import one_message
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.node import no_survivors
from shardmark.processes.ending import leave

# A check takes seconds; a large model may be slow to build or to load.
LIMIT_S = 30 * 60.0


def write_check(
    file: str, check: Callable[[], str], output: Path, *, limit_s: float = LIMIT_S
) -> None:
    """Run a check and write what it returns; no process that the file starts outlives this.

    Args:
        file: the user's file, for messages.
        check: runs code of the file.
        output: the file to write.
        limit_s: seconds after which the check is ended.

    Raises:
        UserError: if the check took too long, or its process ended before it was over.
    """
    output = output.absolute()  # the file may change the working directory
    output.unlink(missing_ok=True)

    @one_message
    def work() -> None:
        write_text(output, check())
        with contextlib.suppress(ValueError):  # the file may have closed stdout
            leave()

    process = multiprocessing.get_context("fork").Process(target=work)
    with no_survivors():
        process.start()
        process.join(limit_s)
        code = process.exitcode
    if code == 1:
        sys.exit(1)  # the process has said why
    if code is None:
        raise UserError(
            f"{file}: its check was ended after {limit_s:.0f} s. It may wait for something, or "
            "build its model or load its data for that long; make that faster"
        )
    if code or not output.exists():
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UserError(
            f"{file}: its code ended the process ({name}) before the check was over; it must not"
        )
