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
from shardmark.doctor.slurm_setup import (
    account,
    job_states,
    most_minutes,
    partitions,
    queue_length,
    user,
)
from shardmark.doctor.slurm_submission import (
    Resources,
    jobs_of_matrix,
    read_profile,
    resources_of_cell,
    sbatch,
)
from shardmark.errors import ConfigError, UserError
from shardmark.slurm import queue

# Time limit of the doctor's job; importing torch takes one minute on a slow file system.
JOB_MINUTES = 5
# Time for the job's output to appear on a shared file system.
LATENCY_S = 60.0
DONE = "doctor: "


def requests(config: Config, profile: Path) -> Iterator[Finding]:
    """Check whether Slurm would accept each kind of job, and Snakemake would notice their end."""
    try:
        settings = read_profile(profile)
    except ConfigError as error:
        yield Finding("FAIL", "profile", str(error), "name the profile: doctor.py --profile ...")
        return
    jobs = jobs_of_matrix(config, settings)
    first = next(iter(jobs.values()))
    yield from (named := list(user()))
    if any(one.level == "FAIL" for one in named):
        return
    try:
        yield from (places := list(partitions(first, str(profile))))
        yield from job_states(settings)
        yield from (accounts := list(account(first)))
        yield from queue_length(settings, first)
        # Otherwise sbatch would repeat the same error for each job.
        if all(one.level == "ok" for one in (*places, *accounts)):
            yield from answers(jobs, settings)
    except UserError as error:
        yield Finding("FAIL", "Slurm", str(error), "run this where sbatch works")


def answers(jobs: Mapping[str, Resources], profile: Mapping[str, Any]) -> Iterator[Finding]:
    """Ask Slurm about each distinct request (``sbatch --test-only``); one finding per answer."""
    asked: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for title, resources in jobs.items():
        command = sbatch(resources, profile, Path("/dev/null"), "true", "--test-only")
        asked[tuple(command)].append(title)
    kinds: dict[str, list[str]] = defaultdict(list)
    for call, titles in asked.items():
        done = subprocess.run(call, capture_output=True, text=True)
        lines = done.stderr.strip().splitlines()
        said = "; ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in lines)
        resources = jobs[titles[0]]
        minutes, most = resources["runtime"], most_minutes(resources)
        if done.returncode:
            kinds[said].append(f"{', '.join(titles)} ({_machines(call)})")
        elif minutes > most:
            # Without EnforcePartLimits, Slurm accepts such a job, which then never starts.
            limit = f"the time limit of {minutes} min is above the partition's {most:.0f} min"
            kinds[limit].append(", ".join(titles))
        else:
            kinds[""].append(f"{', '.join(titles)}: {said or 'no answer'}")
    advice = "let cluster: (gpu_request for GRES) and the profile ask for what you may have"
    for said, titles in kinds.items():
        if said:
            yield Finding("FAIL", "request", f"{said}: {'; '.join(titles)}", advice)
        else:
            yield from (Finding("ok", "request", title) for title in titles)


def _machines(command: Sequence[str]) -> str:
    return " ".join(word for word in command if re.match(r"--(gpus|gres|nodes|cpus)", word))


def on_nodes(config: Config, profile: Path, command: str, log: Path) -> Iterator[str]:
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
    call = sbatch(resources, settings, log, command, "--wait", "--no-requeue")
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
