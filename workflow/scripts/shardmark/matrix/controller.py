"""The Snakemake that runs a matrix, and whether it is alive: what it started may outlive it."""

from __future__ import annotations

import atexit
import json
import shutil
import socket
from pathlib import Path

from shardmark.atomic import write_text
from shardmark.errors import UserError
from shardmark.launching.scratch import OWNER, Owner, is_alive_here, owner_of
from shardmark.slurm import queue

FOLDER = ".controller"


def record_controller(results: Path, owner: Owner) -> None:
    """Say in the folder of the results that this process runs their matrix, until it ends.

    Args:
        results: ``results/<run>``.
        owner: this_run() from before Snakemake's executor took the Slurm job's number away.
    """
    folder = results / FOLDER
    write_text(folder / OWNER, json.dumps(owner))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def controller_of(results: Path) -> tuple[bool | None, str]:
    """Whether a controller of these results is alive (None: cannot be told), and in words.

    One that was killed leaves its record; one that ended by itself does not.
    """
    owner = owner_of(results / FOLDER)
    if owner is None:
        return _in_the_queue()
    pid, host, job = owner["pid"], owner["host"], owner["slurm_job_id"]
    if host == socket.gethostname():
        if is_alive_here(owner):
            return True, f"process {pid} of this machine{f', in Slurm job {job}' if job else ''}"
        return False, f"killed (it was process {pid} of this machine)"
    if job is None:
        return None, f"process {pid} on {host}, if it is alive: that cannot be seen from here"
    try:
        state = queue.state_of(job)
    except UserError as error:
        return None, f"Slurm job {job}, if it is alive: {error}"
    if state:
        return True, f"Slurm job {job} on {host} ({state.lower()})"
    return False, f"killed (it was Slurm job {job} on {host})"


def _in_the_queue() -> tuple[bool | None, str]:
    """The same for results without a record: a batch job may be about to start a controller."""
    try:
        jobs = queue.controllers_of(Path()) if shutil.which("squeue") else []
    except UserError:
        jobs = []  # status.py says that Slurm does not answer
    if not jobs:
        return False, "none is running"
    words = (
        f"Slurm job {job.job_id} waits ({job.reason})"
        if job.state == "PENDING"
        else f"Slurm job {job.job_id} starts, or works on another configuration"
        for job in jobs
    )
    return None, f"none yet; {', '.join(words)}: {jobs[0].command}"
