"""Snakemake run from a batch job: the cells are jobs of their own, and inherit nothing of its."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from accounting import assert_asked_and_given, comment, jobs, last_jobs, queue
from cluster import ACCOUNT, PARTITION, run
from result_tables import row_of
from slurm_project import CONFIG, SCRIPTS, SlurmProject
from test_slurm_faults import (
    controller,
    hold_after_an_epoch,
    run_after_an_orphan,
    trains,
)
from waiting import PATIENCE_S, until

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


def test_a_controller_in_a_job_sends_cells_that_inherit_nothing_of_its_own(
    project: SlurmProject,
) -> None:
    project.stand_in()
    stand_in = project.folder / SCRIPTS / "run_cell.py"
    # Write a cell's Slurm variables beside its result.
    stand_in.write_text(
        stand_in.read_text()
        + "\nimport json, os\nvariables = {k: v for k, v in os.environ.items() if 'SLURM' in k}\n"
        + "arguments.output.with_name('variables.json').write_text(json.dumps(variables))\n"
    )
    project.matrix("ddp", "4, 1", device="cuda")
    targets = [project.path("ddp", gpus) for gpus in (4, 1)]
    # All nodes are taken, so that it waits.
    other = run("sbatch", "--parsable", "--nodes=4", "--exclusive", "--wrap=sleep 600").strip()
    until(lambda: "RUNNING" in run("squeue", f"--jobs={other}", "--format=%T"), "taken nodes")
    job = submit(project, *targets)
    until(lambda: run("squeue", f"--jobs={job}", "--noheader", "--format=%T"), "controller's job")
    assert f"controller: none yet; Slurm job {job} waits" in project.status()
    run("scancel", other)
    log = project.folder / f"shardmark-{job}.log"
    until(lambda: len(jobs(project)) > 1, "job of a cell")
    owner = json.loads((project.folder / "results/t/.controller/owner.json").read_text())
    assert owner["slurm_job_id"] == job
    # All nodes are one machine here.
    assert f"of this machine, in Slurm job {job}" in project.status()
    until(lambda: not run("squeue", "--noheader"), "end of the controller")
    log_text = log.read_text()
    ran = last_jobs(project)
    assert "2 ok" in log_text, log_text
    for gpus in (1, 4):
        # Exactly what the cell is: a count that leaked would show in its request or allocation.
        cell = ran[comment("ddp", gpus)]
        assert_asked_and_given(cell, gpus)
        assert cell["JobIDRaw"] != job
        variables = project.folder / Path(project.path("ddp", gpus)).with_name("variables.json")
        assert f'"SLURM_JOB_ID": "{cell["JobIDRaw"]}"' in variables.read_text()
        assert "SLURM_NTASKS_PER_NODE" not in variables.read_text()
    assert run("sacct", "-nXPj", job, "--format=State").strip() == "COMPLETED"


def test_a_cancelled_controller_leaves_its_cells_running_and_no_lock(project: SlurmProject) -> None:
    project.matrix("ddp", "1")
    hold_after_an_epoch(project)
    target = project.path("ddp", 1)
    job = submit(project, target)
    until(lambda: trains(project, "ddp", 1), "training")
    cell = queue()[comment("ddp", 1)]["JobIDRaw"]
    run("scancel", job)
    until(lambda: not run("squeue", f"--jobs={job}", "--noheader"), "end of the controller")
    log_text = (project.folder / f"shardmark-{job}.log").read_text()
    assert "SIGTERM: this Snakemake ends. 1 job(s) stay queued or running." in log_text
    assert f"To end them too: scancel {cell}" in log_text
    assert "Traceback" not in log_text
    assert queue()[comment("ddp", 1)]["State"] == "RUNNING"
    assert "controller: none is running" in project.status()
    # No --unlock.
    again = run_after_an_orphan(project, target)
    assert f"({cell}); what they work on is waited for and not started again" in again
    metrics = project.metrics("ddp", 1)
    assert metrics.environment["variables"]["SLURM_JOB_ID"] == cell
    row = row_of(metrics)
    given = last_jobs(project)[comment("ddp", 1)]
    expected = (cell, PARTITION, given["NodeList"])
    assert (row.slurm_job, row.slurm_partition, row.slurm_nodes) == expected


def test_sighup_while_jobs_wait_to_be_submitted_ends_snakemake_at_once(
    project: SlurmProject,
) -> None:
    # SIGTERM, which has the same handler, is what scancel sends in the test above.
    project.stand_in()
    project.matrix("ddp", "1", "0, 1, 2, 3", mem_gb_per_gpu=60)
    nodes = run("sbatch", "--parsable", "--nodes=4", "--exclusive", "--wrap=sleep 600").strip()
    until(lambda: "RUNNING" in run("squeue", f"--jobs={nodes}", "--format=%T"), "taken nodes")
    targets = [project.path("ddp", 1, seed) for seed in range(4)]
    with controller(project, *targets, "--jobs", "2") as process:
        until(lambda: len(queue()) == 3, "two jobs")
        begin = time.monotonic()
        process.send_signal(signal.SIGHUP)
        text, _ = process.communicate(timeout=PATIENCE_S)
    # Slurm kills a batch job 30 s after SIGTERM.
    assert time.monotonic() - begin < 20
    assert process.returncode == 1
    assert "SIGHUP: this Snakemake ends. 2 job(s) stay queued or running." in text
    assert len(queue()) == 3
    run("scancel", nodes)
    again = project.run(*targets)
    assert again.returncode == 0, again.stdout
    done = Counter(job["Comment"] for job in jobs(project) if job["State"] == "COMPLETED")
    assert len(done) == 4
