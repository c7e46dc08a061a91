"""Detect disks that accept no more files: full, over quota, read-only, or another user's."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from shardmark.errors import UserError

# Error numbers for a full file system and an exceeded quota.
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
# A cell writes at least about this much.
ROOM_BYTES = 2**20


def is_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, comes from a full disk.

    Compilers and libraries wrap the OSError in their own exception, or keep only its text.
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
    """Turn an OSError about a disk into a UserError that names the path and what to do.

    Args:
        writing: the path to name; without it, the path of the OSError.

    Raises:
        UserError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        # When copying, the second file is the one that was written.
        path = writing or error.filename2 or error.filename
        advice = _ADVICE.get(error.errno or 0)
        if advice is None or (path is None and error.errno not in FULL):
            raise
        where = path if isinstance(path, str | Path) else "a disk"
        raise UserError(f"{where}: {error.strerror}; {advice}") from error


def why_no_folder(path: Path) -> str:
    """Return what occupies a folder's path instead of it; empty if it exists or can be made."""
    if os.path.lexists(path) and not path.is_dir():
        return f"{path}: is no folder, or a link that leads to none; move it away"
    return ""


def why_not_writable(files: Collection[str]) -> str:
    """Return what occupies the paths of files to write, or of their folders; empty if nothing."""
    folders = {folder for file in files for folder in Path(file).parents}
    reasons = [reason for folder in sorted(folders) if (reason := why_no_folder(folder))]
    reasons += [
        f"{file}: is a folder where a file belongs; move it away"
        for file in sorted(files)
        if Path(file).is_dir()
    ]
    return "\n".join(reasons)


def why_no_room(folder: Path) -> str:
    """Return why a folder accepts no more files, and what to do; empty if it does."""
    try:
        require_room(folder)
    except UserError as error:
        return str(error)
    return ""


def why_no_temporary_room() -> str:
    """Return why temporary files find no room, and what to do; empty if they do."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        # Python has tried each of the folders that this names.
        return f"{error.strerror}; make room in one, or name another folder in TMPDIR"
    reason = why_no_room(Path(folder))
    return reason and f"{reason}, or name another folder in TMPDIR"


def require_room(folder: Path) -> None:
    """Check that a folder accepts another file; create the folder if it is missing.

    A file system's free space says nothing about a quota, so this writes a file.

    Raises:
        UserError: if the folder accepts no file.
    """
    with disk_errors_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
            file.flush()
            # A file server may not report a full disk before this.
            os.fsync(file.fileno())
