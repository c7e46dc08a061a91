"""Check for set-ups of the cluster or the user that make a matrix fail or wait for ever."""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from snakemake_executor_plugin_slurm.accounts import validate_account
from snakemake_interface_common.exceptions import WorkflowError

from shardmark.doctor.finding import Finding
from shardmark.doctor.slurm_submission import Resources
from shardmark.errors import UserError
from shardmark.slurm import queue

# As in the executor, which uses squeue only if Slurm remembers an ended job for three checks.
FIRST_LOOK_S, LOOKS = 40, 3


def check_user() -> Iterator[Finding]:
    """Check whether the user has a name, which Snakemake's executor needs to query accounts."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        problem = (
            f"user {os.getuid()} has no name: USER is not set and the passwd database has none"
        )
        yield Finding("FAIL", "user", problem, "export USER=..., as sacctmgr show user names you")
    else:
        yield Finding("ok", "user", name)


def check_job_states(profile: Mapping[str, Any]) -> Iterator[Finding]:
    """Check whether Snakemake will notice that a job has ended."""
    has_sacct = shutil.which("sacct") is not None
    status_command = profile.get("slurm-status-command") or ("sacct" if has_sacct else "squeue")
    first_look_s = int(profile.get("slurm-init-seconds-before-status-checks", FIRST_LOOK_S))
    age = re.search(r"^MinJobAge\s*=\s*(\d+)", queue.ask("scontrol", "show", "config"), re.M)
    remembered_s = int(age[1]) if age else 0
    forgets_too_soon = remembered_s < LOOKS * first_look_s
    if not has_sacct or (status_command == "squeue" and not forgets_too_soon):
        yield Finding("ok", "job states", f"by squeue; Slurm remembers a job for {remembered_s} s")
        return
    try:
        queue.ask("sacct", "--noheader", "--allocations", "--starttime=now")
    except UserError as error:
        advice = "set slurm-status-command: squeue in the profile"
        if forgets_too_soon:
            most = remembered_s // LOOKS
            advice += f", and slurm-init-seconds-before-status-checks: {most} or less"
        problem = f"Snakemake would wait for ever for a job's end: {error}"
        yield Finding("FAIL", "job states", problem, advice)
    else:
        yield Finding("ok", "job states", "by sacct")


def check_account(resources: Resources) -> Iterator[Finding]:
    """Check whether Snakemake's executor accepts the account as one of the user's."""
    silent = logging.Logger(__name__, logging.CRITICAL)
    for name in re.split(r"[,\s]+", str(resources.get("slurm_account") or "")):
        try:
            if name:
                validate_account(name, silent)
        except WorkflowError as error:
            advice = "change slurm_account in the profile; remove it where Slurm has no accounts"
            yield Finding("FAIL", "account", str(error), advice)


def check_partitions(resources: Resources, profile: str) -> Iterator[Finding]:
    """Check whether the partitions that a job may go to exist.

    Raises:
        UserError: if Slurm does not answer.
    """
    known = queue.ask("sinfo", "--noheader", "--format=%R").split()
    wanted = partition_names(resources)
    if missing := [name for name in wanted if name not in known]:
        advice = f"set slurm_partition in {profile}/config.yaml to one of: {', '.join(known)}"
        yield Finding("FAIL", "partition", f"there is no {', '.join(missing)}", advice)
    else:
        answer = f"{', '.join(wanted)} exists" if wanted else "left to Slurm's default"
        yield Finding("ok", "partition", answer)


def partition_names(resources: Resources) -> list[str]:
    """Return the partitions that a job names; it may run in any of them."""
    return [name for name in str(resources.get("slurm_partition") or "").split(",") if name]


def longest_limit_minutes(resources: Resources) -> float:
    """Return the longest time limit of a job's partitions, in minutes.

    Raises:
        UserError: if Slurm does not answer.
    """
    wanted = partition_names(resources)
    limits = [0.0]
    for line in queue.ask("sinfo", "--noheader", "--format=%P %l").splitlines():
        name, limit = line.split()
        if name in wanted or (not wanted and name.endswith("*")) or name.rstrip("*") in wanted:
            seconds = queue.parse_time(limit)
            limits.append(float("inf") if seconds is None else seconds / 60)
    return max(limits)


def check_queue_length(profile: Mapping[str, Any], resources: Resources) -> Iterator[Finding]:
    """Check whether Slurm lets the user queue as many jobs as Snakemake submits at a time."""
    try:
        jobs = int(profile.get("jobs", 1))
    except ValueError:  # unlimited
        jobs = None
    limits = list(_submit_limits(profile, resources))
    lowest = min(limits, default=None)
    if lowest is not None and (jobs is None or lowest < jobs):
        problem = (
            f"{lowest} may be queued, and the profile submits {jobs or 'as many as there are'}"
        )
        advice = f"set jobs: {lowest} in the profile; else Snakemake asks again until Slurm accepts"
        yield Finding("warn", "jobs", problem, advice)


def _submit_limits(profile: Mapping[str, Any], resources: Resources) -> Iterator[int]:
    """Yield the limits on submitted jobs of the user's account and QOS, if accounting has any."""
    ask = ("sacctmgr", "--noheader", "--parsable2", "show")
    name = str(resources.get("slurm_account") or "")
    columns = "format=account,maxsubmitjobs,grpsubmitjobs,defaultqos"
    try:
        associations = queue.ask(*ask, "associations", f"user={getpass.getuser()}", columns)
        rows = [line.split("|") for line in associations.splitlines()]
        rows = [row for row in rows if not name or row[0].lower() == name.lower()]
        qos = {str(resources.get("qos") or profile.get("slurm-qos") or row[3]) for row in rows}
        qos_names = ",".join(sorted(qos - {""}))
        columns = "format=maxsubmitjobsperuser,maxsubmitjobsperaccount,grpsubmitjobs"
        qos_limits = queue.ask(*ask, "qos", qos_names, columns) if qos_names else ""
    except UserError:  # no accounting database; check_job_states reports that
        return
    numbers = [number for row in rows for number in row[1:3]]
    numbers += [number for line in qos_limits.splitlines() for number in line.split("|")]
    yield from (int(number) for number in numbers if number.isdigit())
