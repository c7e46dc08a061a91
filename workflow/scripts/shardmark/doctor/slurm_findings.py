"""Whether Slurm would take the largest cell, and a job of the doctor's own on its nodes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from shardmark.config import Config
from shardmark.doctor.finding import Finding
from shardmark.doctor.slurm_submission import (
    Resources,
    read_profile,
    resources_of_cell,
    sbatch,
)
from shardmark.errors import ConfigError, UserError
from shardmark.slurm import queue

# Minutes that the doctor's job asks for; torch alone takes one of them on a slow file system.
JOB_MINUTES = 5
# For its output to appear on a shared file system.
LATENCY_S = 60.0
DONE = "doctor: "


def resources_of_largest(config: Config, profile: Path) -> Resources:
    """What the job of the largest cell asks for.

    Raises:
        ConfigError: if the profile cannot be read.
    """
    return resources_of_cell(config, max(config.matrix.gpus), read_profile(profile))


def requests(config: Config, profile: Path) -> Iterator[Finding]:
    """Whether the partition exists and the largest cell's request is one that can be met."""
    try:
        resources = resources_of_largest(config, profile)
    except ConfigError as error:
        yield Finding("FAIL", "profile", str(error), "name the profile: doctor.py --profile ...")
        return
    try:
        known = queue.ask("sinfo", "--noheader", "--format=%R").split()
    except UserError as error:
        yield Finding("FAIL", "Slurm", str(error), "run this where sbatch works")
        return
    # A job may be sent to several, of which one will do.
    wanted = [name for name in str(resources.get("slurm_partition") or "").split(",") if name]
    missing = [name for name in wanted if name not in known]
    if missing:
        advice = f"set slurm_partition in {profile}/config.yaml to one of: {', '.join(known)}"
        yield Finding("FAIL", "partition", f"there is no {', '.join(missing)}", advice)
        return
    named = f"{', '.join(wanted)} exists" if wanted else "left to Slurm's default"
    yield Finding("ok", "partition", named)
    yield would_start(resources, max(config.matrix.gpus))


def would_start(resources: Resources, gpus: int) -> Finding:
    """Slurm's own answer to the request of a cell (``sbatch --test-only``)."""
    command = sbatch(resources, Path("/dev/null"), "true", "--test-only")
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line.removeprefix("sbatch: ") for line in done.stderr.strip().splitlines()]
    last = said[-1] if said else "no answer"
    asked = " ".join(word for word in command if re.match(r"--(gpus|gres|nodes|cpus)", word))
    if done.returncode:
        advice = "make cluster: and the profile say what a node has, and your account may use"
        return Finding("FAIL", "request", f"{gpus} GPUs ({asked}): {'; '.join(said)}", advice)
    return Finding("ok", "request", f"{gpus} GPUs would be given: {last}")


def on_nodes(config: Config, profile: Path, command: str, log: Path) -> Iterator[str]:
    """Run a command as a job of the largest cell's size, and give its output line by line.

    Args:
        config: the matrix.
        profile: a Snakemake profile.
        command: what to run on the first node; it ends with a line that begins with ``DONE``.
        log: where its output goes, which its nodes and this machine see.

    Raises:
        UserError: if the job ended without that line.
    """
    resources = resources_of_largest(config, profile) | {"runtime": JOB_MINUTES}
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    call = sbatch(Resources(resources), log, command, "--wait", "--no-requeue")
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
