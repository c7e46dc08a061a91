"""What accounting knows of the jobs that a matrix became."""

from __future__ import annotations

import re
import shlex

from cluster import run
from shardmark.slurm.job_request import SPARE_MINUTES
from slurm_project import CLUSTER, SlurmProject
from waiting import until

FIELDS = (
    *("JobIDRaw", "State", "Comment", "NodeList", "NNodes", "ReqTRES", "AllocTRES"),
    *("TimelimitRaw", "ElapsedRaw", "Start", "WorkDir", "JobName", "SubmitLine"),
)
# What a job was given, and squeue's name for it.
GIVEN = {
    "NodeList": "NodeList",
    "NNodes": "NumNodes",
    "AllocTRES": "tres-alloc",
    "Start": "StartTime",
}
# The states of a job that has not ended.
NOT_ENDED = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "REQUEUED"}
Job = dict[str, str]


def jobs(project: SlurmProject) -> list[Job]:
    """Every job of a project, in the order of their numbers.

    Slurm's controller knows before accounting that a job has ended. So this waits until accounting
    knows it, too.
    """
    until(lambda: _ended(_given()) <= _ended(_accounted()), "end of the jobs in accounting")
    given = _given()
    return [
        job | {name: given[number][name] for name in GIVEN if number in given}
        for number, job in sorted(_accounted().items(), key=lambda item: int(item[0]))
        if job["WorkDir"] == str(project.folder)
    ]


def _accounted() -> dict[str, Job]:
    """Every job that accounting knows, by its number."""
    text = run("sacct", "-X", "-P", "-n", "-S", "now-1days", f"--format={','.join(FIELDS)}")
    # The command line comes last, since it may hold the sign that parts the fields.
    split = [line.split("|", len(FIELDS) - 1) for line in text.splitlines()]
    known = (dict(zip(FIELDS, values, strict=True)) for values in split if len(values) > 1)
    return {job["JobIDRaw"]: job for job in known}


def _given() -> dict[str, Job]:
    """The state of each job and what it was given, as the controller has it, by its number.

    Accounting once had no nodes ("None assigned") for a job that had run.
    """
    names = {"JobIDRaw": "JobID", "State": "State"} | GIVEN
    columns = ",".join(f"{name}:|" for name in names.values())
    lines = run("squeue", "--noheader", "--states=all", f"--Format={columns}").splitlines()
    known = (dict(zip(names, line.strip().split("|"), strict=False)) for line in lines)
    return {job["JobIDRaw"]: job for job in known}


def _ended(known: dict[str, Job]) -> set[str]:
    """The numbers of the jobs that have ended."""
    return {number for number, job in known.items() if job["State"].split()[0] not in NOT_ENDED}


def next_job_number() -> int:
    """The number that Slurm gives the next job."""
    (number,) = re.findall(r"NEXT_JOB_ID\s*=\s*(\d+)", run("scontrol", "show", "config"))
    return int(number)


def last_jobs(project: SlurmProject) -> dict[str, Job]:
    """The last job of each rule and cell, by the executor's comment."""
    return {job["Comment"]: job for job in jobs(project)}


def queue() -> dict[str, Job]:
    """What is queued or running now, by the executor's comment, which accounting has at the end."""
    names = ("JobIDRaw", "State", "NodeList", "Comment")
    lines = run("squeue", "--noheader", "--format=%i|%T|%N|%k").splitlines()
    return {
        (job := dict(zip(names, line.split("|"), strict=True)))["Comment"]: job for line in lines
    }


def comment(strategy: str, gpus: int, seed: int = 0) -> str:
    """What the executor calls the job of a cell."""
    return f"rule_train_wildcards_t_small_{strategy}_{gpus}_{seed}"


def tres(text: str) -> dict[str, str]:
    """``cpu=4,mem=8G,node=2,gres/gpu=4`` as a mapping."""
    return dict(re.findall(r"([^,=]+)=([^,]+)", text))


def options(job: Job) -> dict[str, str]:
    """The options of the job's sbatch call."""
    words = shlex.split(job["SubmitLine"].split(" --wrap")[0])
    values: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if match := re.fullmatch(r"(--[a-z-]+)=(.*)", word):
            values[match[1]] = match[2]
        elif word.startswith("-"):
            values[word] = "" if following.startswith("-") else following
    return values


def assert_asked_and_given(job: Job, gpus: int) -> None:
    """The job of a cell with this many GPUs asked for just what the cell is, and was given it."""
    nodes, on_node = max(1, gpus // 2), min(gpus, 2)
    memory_mb = CLUSTER["mem_gb_per_gpu"] * 1000
    minutes = str(CLUSTER["time_limit_minutes"] + SPARE_MINUTES)
    asked = options(job)
    assert asked["--nodes"] == str(nodes)
    assert asked["--mem"] == str(memory_mb * on_node)
    assert asked["-t"] == job["TimelimitRaw"] == minutes
    assert asked.get("--gpus") == (str(gpus) if nodes == 1 else None)
    assert asked.get("--gres") == (None if nodes == 1 else f"gpu:{on_node}")
    given = tres(job["AllocTRES"])
    assert given["gres/gpu"] == str(gpus)
    assert given["node"] == job["NNodes"] == str(nodes)
    assert given["cpu"] == str(CLUSTER["cpus_per_gpu"] * gpus)
    total = memory_mb * gpus
    assert given["mem"] in (f"{total}M", f"{total / 1024:.2f}G")
    assert job["State"] == "COMPLETED"
