"""The scratch folder: shared by a running cell's processes, and the lock of its run.

It lies beside the result, where every node and every later launch of the same cell sees it. mkdir
is atomic, so the folder is the lock that keeps a cell from running twice at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.slurm import queue

OWNER = "owner.json"
# Variable with the start time of the Snakemake that wants a job's result, in s since the epoch.
CONTROLLER_STARTED = "SHARDMARK_CONTROLLER_STARTED"
# A folder without an owner that is younger than this may still be in the making.
NEWBORN_S = 60.0


class Owner(TypedDict):
    """What identifies a process among all, here and on other machines; see this_run."""

    host: str
    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    created: float
    slurm_job_id: str | None
    started: float


_OWNER = TypeAdapter(Owner)


def scratch_path(result: Path) -> Path:
    """Return the scratch folder of the run that will write ``result``."""
    return result.absolute().with_name(f".{result.stem}.run")


@contextlib.contextmanager
def scratch_folder(result: Path) -> Iterator[Path]:
    """Make the empty scratch folder of a run, hold it while the context is open, then remove it.

    Args:
        result: the file that the run will write.

    Raises:
        UserError: if a run for the same result is alive.
    """
    folder = scratch_path(result)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        if reason := why_alive(folder):
            raise UserError(
                f"{result}: {reason}; it is not started a second time. Wait for it, or end it, "
                "and give the same command again"
            )
        _remove(folder)
    try:
        # If two processes try, mkdir fails for one of them on every file system.
        folder.mkdir()
    except FileExistsError:
        raise UserError(f"{result}: another run of it has just started") from None
    try:
        # Inside the try: a full disk may have room for the folder but not for this file.
        write_text(folder / OWNER, json.dumps(this_run()))
        yield folder
    finally:
        _remove(folder)


def empty_scratch(folder: Path) -> None:
    """Remove what a run left in its scratch folder, and keep holding the folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != OWNER:
            path.unlink()


def why_alive(folder: Path) -> str:
    """Say which live run holds the folder; empty if there is none."""
    owner = owner_of(folder)
    if owner is None:
        with contextlib.suppress(FileNotFoundError):
            is_newborn = time.time() - folder.stat().st_mtime < NEWBORN_S
            if is_newborn and not (folder / OWNER).exists():
                return "another run of it is just starting"
        return ""
    is_here = owner["host"] == socket.gethostname()
    # First, because two processes may have inherited the number of the same job.
    if is_here and is_alive_here(owner):
        return f"process {owner['pid']} of this machine runs it"
    if owner["slurm_job_id"] is not None:
        return _why_job_alive(owner["slurm_job_id"], folder)
    if not is_here:
        return (
            f"process {owner['pid']} on {owner['host']} runs it, or did: that cannot be seen from "
            f"here (if it does not, delete {folder})"
        )
    return ""


def owner_of(folder: Path) -> Owner | None:
    """Return the this_run() of the process that made a folder; None if it is not recorded."""
    try:
        return _OWNER.validate_json((folder / OWNER).read_bytes())
    except (OSError, ValueError):
        return None


def is_alive_here(owner: Owner) -> bool:
    """Whether the process that made a folder is alive; it must be a process of this machine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        created: float = psutil.Process(owner["pid"]).create_time()
        return bool(created == owner["created"])
    return False


def _why_job_alive(job: str, folder: Path) -> str:
    if job == queue.job_id():  # an earlier try of this same job, which was requeued
        return ""
    if shutil.which("squeue") is None:
        return (
            f"Slurm job {job} runs it, or did: squeue, which tells, is missing here (if it does "
            f"not, delete {folder})"
        )
    state = queue.state_of(job)
    return f"Slurm job {job} runs it ({state.lower()})" if state else ""


def this_run() -> Owner:
    """Return what identifies this process among all, here and on other machines."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "slurm_job_id": queue.job_id(),
        "started": time.time(),
    }


def _remove(folder: Path) -> None:
    # Rename first, so that the remains of an interrupted removal no longer hold the lock.
    removed = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
