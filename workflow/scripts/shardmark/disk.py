"""Disks that take no more files: full, over a quota, read-only, or another user's."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shardmark.errors import UserError

# What an OSError says where a file system, or a user's share of it, is full.
FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    errno.ENOSPC: "make room and give the same command again",
    errno.EDQUOT: "make room within your quota and give the same command again",
    errno.EIO: "the disk or its file server fails; ask its administrator",
    errno.ESTALE: "the disk or its file server fails; ask its administrator",
    errno.ENOTDIR: "something else is in its place; move it away",
    errno.EISDIR: "something else is in its place; move it away",
    errno.EEXIST: "something else is in its place; move it away",
    errno.EROFS: "shardmark must be able to write there",
    errno.EACCES: "shardmark must be able to read and write there",
}
# A cell leaves about this much at the least.
ROOM_BYTES = 2**20


def is_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, comes from a full disk.

    Compilers and libraries wrap the OSError in an exception of their own, or keep its text alone.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(number) in str(error) for number in FULL):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


@contextlib.contextmanager
def disk_errors_explained(writing: Path | None = None) -> Iterator[None]:
    """Turn an OSError of a disk into an error for the user, with the path and what to do.

    Args:
        writing: the path to name; without one, that of the error.

    Raises:
        UserError: in the place of such an error.
    """
    try:
        yield
    except OSError as error:
        # Of a copy, the second file is the one that was written.
        path = writing or error.filename2 or error.filename
        advice = _ADVICE.get(error.errno or 0)
        if advice is None or (path is None and error.errno not in FULL):
            raise
        where = path if isinstance(path, str | Path) else "a disk"
        raise UserError(f"{where}: {error.strerror}; {advice}") from error


def why_no_folder(path: Path) -> str:
    """What is in the place of a folder that may also be missing; empty if nothing is."""
    if os.path.lexists(path) and not path.is_dir():
        return f"{path}: is no folder, or a link that leads to none; move it away"
    return ""


def why_no_room(folder: Path) -> str:
    """Why a folder takes no more files, and what to do; empty if it does."""
    try:
        require_room(folder)
    except UserError as error:
        return str(error)
    return ""


def require_room(folder: Path) -> None:
    """See that a folder takes another file; it is made where it is missing.

    The free space that a file system reports says nothing about a quota, so a file is written.

    Raises:
        UserError: if it does not.
    """
    with disk_errors_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            # A file server may report a full disk no earlier.
            os.fsync(file.fileno())
