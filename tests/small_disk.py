"""A small file system for tests, in a namespace of its own that no other process sees."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


@functools.cache
def _can_mount() -> bool:
    if os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(
    not _can_mount(), reason="mounting a small file system needs root and a mount namespace"
)

_FILL = 'head -c 100000000 /dev/zero > "$0/filler" 2> /dev/null'


def on_small_disk(
    command: Sequence[str],
    disk: Path,
    *,
    size: str = "1m",
    before: str = "",
    full: bool = False,
    after: str = "",
    **options: object,
) -> subprocess.CompletedProcess[str]:
    """Run a command where ``disk`` is a small tmpfs.

    Args:
        command: what to run.
        disk: an existing folder.
        size: as mount takes it.
        before: lines of sh that run first, with the disk as ``$0``.
        full: whether a file then fills the disk.
        after: lines of sh that run after the command, and print to stdout.
        options: of subprocess.run.
    """
    script = f"""
mount -t tmpfs -o size={size} tmpfs "$0" || exit 99
{before}
{_FILL if full else ""}
"$@"
code=$?
{after}
exit $code
"""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(disk), *command],
        capture_output=True,
        text=True,
        timeout=300,
        **options,  # type: ignore[call-overload, no-any-return]
    )
