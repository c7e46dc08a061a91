"""Ask Slurm's queue about this process's job, the jobs of a matrix and its controllers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmark.cells import Cell
from shardmark.errors import UserError

ASK_S = 60.0
# profiles/slurm/controller.sbatch runs Snakemake as a batch job.
CONTROLLER_SCRIPT = "controller.sbatch"


def job_id() -> str | None:
    """Return the number of the Slurm job that this process belongs to, if any."""
    return os.environ.get("SLURM_JOB_ID")


def ask(*command: str) -> str:
    """Run a Slurm command and return what it prints.

    Raises:
        UserError: if it cannot be run or fails.
    """
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} cannot be asked ({error})") from None
    if finished.returncode:
        raise UserError(
            f"{' '.join(command)} failed: {finished.stderr.strip() or finished.stdout.strip()}"
        )
    return finished.stdout


def state_of(job: str) -> str:
    """Return the state (such as ``RUNNING``) of a queued, running or held job; empty if it is gone.

    Raises:
        UserError: if Slurm does not answer.
    """
    try:
        state = ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()
    except UserError as error:
        if "Invalid job id" in str(error):  # Slurm has forgotten it
            return ""
        raise
    # COMPLETING: Slurm is ending the job's processes.
    return "" if state == "COMPLETING" else state


@dataclass(frozen=True)
class Job:
    """A job that is queued or running.

    Attributes:
        job_id: its number.
        state: ``PENDING``, ``RUNNING``, ...
        reason: why it waits, in Slurm's words.
        comments: rule and wildcards of each cell of the job, as Snakemake's executor writes them.
        nodes: the nodes that it runs on, in Slurm's notation.
        left: time until its limit, ``[days-]hours:minutes:seconds``.
    """

    job_id: str
    state: str
    reason: str
    comments: tuple[str, ...]
    nodes: str
    left: str


def parse_time(text: str) -> float | None:
    """Convert Slurm's ``[days-][hours:]minutes:seconds`` to seconds; None for UNLIMITED etc."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def jobs_of(project: Path, comments: Container[str]) -> list[Job]:
    """Return this user's jobs that were submitted from a project's folder and have not ended.

    Args:
        project: the folder.
        comments: comments of the jobs to return, as ``comments_of`` returns them for a matrix.

    Raises:
        UserError: if Slurm does not answer.
    """
    text = ask("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%T|%r|%k|%N|%L|%Z")
    here = str(project.resolve())
    jobs = []
    for *fields, folder in (line.split("|", 6) for line in text.splitlines()):
        if folder == here:
            job, state, reason, comment, nodes, left = fields
            job_comments = tuple(comment.split())
            if state != "COMPLETING" and any(one in comments for one in job_comments):
                jobs.append(Job(job, state, reason, job_comments, nodes, left))
    return jobs


@dataclass(frozen=True)
class ControllerJob:
    """A batch job that runs Snakemake.

    Attributes:
        job_id: its number.
        state: ``PENDING``, ``RUNNING``, ...
        reason: why it waits, in Slurm's words.
        command: its script, as it was submitted.
    """

    job_id: str
    state: str
    reason: str
    command: str


def controllers_of(project: Path) -> list[ControllerJob]:
    """Return this user's batch jobs that run Snakemake in a project's folder.

    Raises:
        UserError: if Slurm does not answer.
    """
    columns = "--format=%i|%T|%r|%Z|%o"
    # By number, since a user without a passwd entry has no name.
    text = ask("squeue", "--noheader", f"--user={os.getuid()}", columns)
    rows = [line.split("|", 4) for line in text.splitlines()]
    here = str(project.resolve())
    return [
        ControllerJob(number, state, reason, command)
        for number, state, reason, folder, command in rows
        if folder == here and CONTROLLER_SCRIPT in command and state != "COMPLETING"
    ]


def let_gate_pass(project: Path, comments: Container[str]) -> None:
    """Lower the priority of waiting cells just enough that the parity gate's jobs go first.

    A parity case is submitted only when its oracle exists, and so queues behind cells that were
    submitted earlier. All cells, and the searches for the largest batch, get the same nice value,
    which keeps their order. A user may raise a nice value but not lower it again.

    Args:
        project: the folder.
        comments: the comments of the matrix's jobs, as for ``jobs_of``.

    Raises:
        UserError: if Slurm does not answer or refuses.
    """
    columns = "--format=%i|%Q|%y|%k|%Z"
    text = ask("squeue", "--noheader", "--states=PENDING", f"--user={os.getuid()}", columns)
    here = str(project.resolve())
    gate_priorities: list[int] = []
    to_wait: dict[str, tuple[int, int]] = {}
    for line in text.splitlines():
        job, priority, nice, comment, folder = line.split("|", 4)
        if folder != here or not any(one in comments for one in comment.split()):
            continue
        if comment.startswith(AFTER_GATE):
            to_wait[job] = int(priority), int(nice)
        elif comment.startswith(GATE) and int(priority):  # 0: held
            gate_priorities.append(int(priority))
    if not to_wait:
        return
    nice_value = max(nice for _, nice in to_wait.values())
    if gate_priorities:
        first = max(priority + nice for priority, nice in to_wait.values()) - nice_value
        nice_value += max(0, first - min(gate_priorities) + 1)
    too_early = [job for job, (_, nice) in to_wait.items() if nice < nice_value]
    if too_early:
        ask("scontrol", "update", f"jobid={','.join(too_early)}", f"nice={nice_value}")


def comment_of(rule: str, wildcards: Sequence[str]) -> str:
    """Return the comment that Snakemake's executor gives to a rule's job."""
    return "_".join(["rule", rule, "wildcards", *wildcards])


TRAIN = "train"
# The prefixes of the comments of cells and searches, and of the parity gate's jobs.
AFTER_GATE = comment_of(TRAIN, [""]), comment_of("find_largest_batch", [""])
GATE = comment_of("make_oracle", [""]), comment_of("check_parity", [""])


def comments_of(cells: Iterable[Cell]) -> set[str]:
    """Return the comments of all jobs that the cells need, including the gate's and the searches'.

    A comment joins names with ``_``, which names may contain too, so workload ``b_c`` of run ``a``
    looks the same as workload ``c`` of run ``a_b``.
    """
    comments = set()
    for cell in cells:
        run, workload, strategy = cell.run, cell.workload, cell.strategy
        gpus, seed = str(cell.gpus), str(cell.seed)
        comments |= {
            comment_of("train", [run, workload, strategy, gpus, seed]),
            comment_of("pin_block", [run, workload, gpus, seed]),
            comment_of("check_parity", [run, workload, strategy, gpus]),
            comment_of("make_oracle", [run, workload, gpus]),
            comment_of("find_largest_batch", [run, workload, strategy, gpus]),
        }
    return comments
