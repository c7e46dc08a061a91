"""Record which Snakemake runs a matrix, and tell whether it is alive; its jobs may outlive it."""

from __future__ import annotations

import atexit
import json
import shutil
import socket
from pathlib import Path

from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.launching.scratch import OWNER, Owner, is_alive_here, owner_of
from shardmark.slurm import queue

FOLDER = ".controller"


def record_controller(results: Path, owner: Owner) -> None:
    """Record in the results folder that this process runs the matrix, until it exits.

    Args:
        results: ``results/<run>``.
        owner: this_run() from before Snakemake's executor unset SLURM_JOB_ID.
    """
    folder = results / FOLDER
    write_text(folder / OWNER, json.dumps(owner))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def controller_of(results: Path) -> tuple[bool | None, str]:
    """Say whether a controller of these results is alive (None: unknown), and describe it.

    A killed controller leaves its record; one that exits removes it.
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
    """Do the same for results without a record: a batch job may be about to start a controller."""
    try:
        jobs = queue.controllers_of(Path()) if shutil.which("squeue") else []
    except UserError:
        jobs = []  # status.py reports that Slurm does not answer
    if not jobs:
        return False, "none is running"
    words = (
        f"Slurm job {job.job_id} waits ({job.reason})"
        if job.state == "PENDING"
        else f"Slurm job {job.job_id} starts, or works on another configuration"
        for job in jobs
    )
    return None, f"none yet; {', '.join(words)}: {jobs[0].command}"
