"""Snakemake run from a batch job: the cells are jobs of their own, and inherit nothing of its."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from accounting import assert_asked_and_given, comment, jobs, last_jobs
from cluster import ACCOUNT, PARTITION, run
from slurm_project import CONFIG, SCRIPTS, SlurmProject
from test_slurm_faults import until

SCRIPT = "profiles/slurm/controller.sbatch"
# Each is a variable of the controller's job that its jobs would otherwise take for their own.
ODD = ("--ntasks=3", "--ntasks-per-node=3", "--cpus-per-task=1", "--mem=4G")


def submit(project: SlurmProject, *targets: str) -> str:
    """Send the controller from the project's folder as a user would, and give its number."""
    script = project.folder / SCRIPT
    text = script.read_text()
    for placeholder, mine in (("my_account", ACCOUNT), ("my_partition", PARTITION)):
        (line,) = [line for line in text.splitlines() if line.endswith(f"={placeholder}")]
        text = text.replace(line, line.removeprefix("# ").replace(placeholder, mine))
    script.write_text(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return run(
        *("sbatch", "--parsable", *ODD, SCRIPT, *targets),
        *("--configfile", CONFIG),
        cwd=project.folder,
        env=project.environment() | {"PATH": path},
    ).strip()


def status(project: SlurmProject) -> str:
    command = [sys.executable, f"{SCRIPTS}/status.py", "--configfile", CONFIG]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_controller_in_a_job_sends_cells_that_inherit_nothing_of_its_own(
    project: SlurmProject,
) -> None:
    project.stand_in()
    stand_in = project.folder / SCRIPTS / "run_cell.py"
    # What a cell finds, beside its result.
    stand_in.write_text(
        stand_in.read_text()
        + "\nimport json, os\nfound = {k: v for k, v in os.environ.items() if 'SLURM' in k}\n"
        + "arguments.output.with_name('found.json').write_text(json.dumps(found))\n"
    )
    project.matrix("ddp", "4, 1", device="cuda")
    targets = [project.path("ddp", gpus) for gpus in (4, 1)]
    # All nodes are taken, so that it waits.
    other = run("sbatch", "--parsable", "--nodes=4", "--exclusive", "--wrap=sleep 600").strip()
    until(lambda: "RUNNING" in run("squeue", f"--jobs={other}", "--format=%T"), "taken nodes")
    job = submit(project, *targets)
    until(lambda: run("squeue", f"--jobs={job}", "--noheader", "--format=%T"), "controller's job")
    assert f"controller: none yet; Slurm job {job} waits" in status(project)
    run("scancel", other)
    log = project.folder / f"shardmark-{job}.log"
    until(lambda: len(jobs(project)) > 1, "job of a cell")
    owner = json.loads((project.folder / "results/t/.controller/owner.json").read_text())
    assert owner["slurm_job_id"] == job
    # All nodes are one machine here.
    assert f"of this machine, in Slurm job {job}" in status(project)
    until(lambda: not run("squeue", "--noheader"), "end of the controller")
    said = log.read_text()
    ran = last_jobs(project)
    assert "2 ok" in said, said
    for gpus in (1, 4):
        # Exactly what the cell is: a count that leaked would show in what it asked for or got.
        cell = ran[comment("ddp", gpus)]
        assert_asked_and_given(cell, gpus)
        assert cell["JobIDRaw"] != job
        found = project.folder / Path(project.path("ddp", gpus)).with_name("found.json")
        assert f'"SLURM_JOB_ID": "{cell["JobIDRaw"]}"' in found.read_text()
        assert "SLURM_NTASKS_PER_NODE" not in found.read_text()
    assert run("sacct", "-nXPj", job, "--format=State").strip() == "COMPLETED"
