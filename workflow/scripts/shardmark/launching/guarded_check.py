"""Check a user's own file in a process of its own, so that the file can end only that process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

from shardmark.disk import disk_errors_explained
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.node import no_survivors
from shardmark.processes.ending import leave
from shardmark.processes.tether import end_with

# A check takes seconds; a large model may be slow to build or to load.
LIMIT_S = 30 * 60.0
# Fits into a pipe that nobody reads yet.
MOST_CHARACTERS = 10_000


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
    parent = os.getpid()
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        if not end_with(parent):
            leave(1)
        try:
            with disk_errors_explained():
                write_text(output, check())
        except UserError as error:
            sender.send(str(error)[:MOST_CHARACTERS])
        with contextlib.suppress(ValueError):  # the file may have closed stdout
            leave()

    process = multiprocessing.get_context("fork").Process(target=work)
    with no_survivors():
        process.start()
        sender.close()
        process.join(limit_s)
        code = process.exitcode
    if receiver.poll():
        with contextlib.suppress(EOFError):  # nothing was sent
            raise UserError(receiver.recv())
    if code is None:
        raise UserError(
            f"{file}: its check was ended after {limit_s:.0f} s. It may be waiting for something, "
            "or its model may take that long to build, or its data to load; make it faster"
        )
    if code in (-signal.SIGKILL, -signal.SIGTERM):
        raise UserError(
            f"{file}: something else ended its check ({signal.Signals(-code).name}). If memory ran "
            "out, the check needs more of it, or a smaller model or data set"
        )
    if code or not output.exists():
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UserError(f"{file}: its code must not end the process, but did ({name})")
