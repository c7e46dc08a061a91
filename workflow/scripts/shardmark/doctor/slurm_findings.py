"""Check whether Slurm would accept a matrix's jobs, and run the doctor as a job on its nodes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmark.config.schema import Config
from shardmark.doctor.finding import Finding
from shardmark.doctor.limited_run import run_limited
from shardmark.doctor.slurm_setup import (
    check_account,
    check_job_states,
    check_partitions,
    check_queue_length,
    check_user,
    longest_limit_minutes,
)
from shardmark.doctor.slurm_submission import (
    Resources,
    jobs_of_matrix,
    read_profile,
    resources_of_cell,
    sbatch_command,
)
from shardmark.errors import ConfigError, UserError
from shardmark.slurm import queue

# Time limit of the doctor's job; importing torch takes one minute on a slow file system.
JOB_MINUTES = 5
# Time for the job's output to appear on a shared file system.
LATENCY_S = 60.0
DONE = "doctor: "


def check_requests(config: Config, profile: Path) -> Iterator[Finding]:
    """Check whether Slurm would accept each kind of job, and Snakemake would notice its end."""
    try:
        settings = read_profile(profile)
    except ConfigError as error:
        yield Finding("FAIL", "profile", str(error), "name the profile: doctor.py --profile ...")
        return
    jobs = jobs_of_matrix(config, settings)
    largest = next(iter(jobs.values()))
    yield from (user_findings := list(check_user()))
    if any(one.level == "FAIL" for one in user_findings):
        return
    try:
        yield from (partition_findings := list(check_partitions(largest, str(profile))))
        yield from check_job_states(settings)
        yield from (account_findings := list(check_account(largest)))
        yield from check_queue_length(settings, largest)
        # Otherwise sbatch would repeat the same error for each job.
        if all(one.level == "ok" for one in (*partition_findings, *account_findings)):
            yield from try_submissions(jobs, settings)
    except UserError as error:
        yield Finding("FAIL", "Slurm", str(error), "run this where sbatch works")


def try_submissions(jobs: Mapping[str, Resources], profile: Mapping[str, Any]) -> Iterator[Finding]:
    """Ask Slurm about each distinct request (``sbatch --test-only``); one finding per answer."""
    titles_by_call: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for title, resources in jobs.items():
        command = sbatch_command(resources, profile, Path("/dev/null"), "true", "--test-only")
        titles_by_call[tuple(command)].append(title)
    # By Slurm's refusal and the machines asked for, the titles of the jobs.
    refused: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for call, titles in titles_by_call.items():
        trial = run_limited(call, "sbatch --test-only", queue.ASK_S)
        lines = trial.stderr.strip().splitlines()
        answer = "; ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in lines)
        resources = jobs[titles[0]]
        minutes, limit_minutes = resources["runtime"], longest_limit_minutes(resources)
        if trial.returncode:
            refused[answer][f" ({_machine_options(call)})"] += titles
        elif minutes > limit_minutes:
            # Without EnforcePartLimits, Slurm accepts such a job, which then never starts.
            refusal = (
                f"the time limit of {minutes} min is above the partition's {limit_minutes:.0f} min"
            )
            refused[refusal][""] += titles
        else:
            answer = answer or "no answer"
            yield Finding("ok", "request", f"{', '.join(titles)}: {answer}")
    advice = "let cluster: (gpu_request for GRES) and the profile ask for what you may have"
    for answer, titles_by_machines in refused.items():
        jobs_refused = "; ".join(
            f"{', '.join(titles)}{machines}" for machines, titles in titles_by_machines.items()
        )
        yield Finding("FAIL", "request", f"{answer}: {jobs_refused}", advice)


def _machine_options(command: Sequence[str]) -> str:
    return " ".join(word for word in command if re.match(r"--(gpus|gres|nodes|cpus)", word))


def run_on_nodes(config: Config, profile: Path, command: str, log: Path) -> Iterator[str]:
    """Run a command as a job of the largest cell's size, and yield its output line by line.

    Args:
        config: the matrix.
        profile: a Snakemake profile.
        command: command for the first node; its last output line begins with ``DONE``.
        log: file for its output, which both the nodes and this machine see.

    Raises:
        UserError: if the job ended without that line.
    """
    settings = read_profile(profile)
    resources = resources_of_cell(config, max(config.matrix.gpus), settings)
    resources["runtime"] = JOB_MINUTES
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    call = sbatch_command(resources, settings, log, command, "--wait", "--no-requeue")
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        job = process.stdout.readline().strip()
        if job:
            yield f"job {job} is sent; waiting for it (Ctrl-C cancels it)"
        try:
            error = process.stderr.read().strip()
        except BaseException:
            with contextlib.suppress(UserError):
                queue.ask("scancel", job)
            raise
    if not job:
        raise UserError(f"the doctor's job was refused: {error}")
    deadline = time.monotonic() + LATENCY_S
    while True:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        if any(line.startswith(DONE) for line in lines):
            yield from (line for line in lines if not line.startswith(DONE))
            return
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    yield from lines
    raise UserError(
        f"Slurm job {job} ended before the doctor had (exit code {process.returncode}); "
        f"see {log}, and sacct --jobs={job}"
    )
