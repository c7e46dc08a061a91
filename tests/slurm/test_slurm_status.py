"""What the status view says of jobs in a real queue, and of one whose controller was killed."""

from __future__ import annotations

import re

from accounting import comment, queue
from cluster import run
from slurm_project import SlurmProject
from test_slurm_faults import controller, hold_after_an_epoch, trains
from waiting import until


def line(text: str, state: str) -> str:
    """The line of the only cell in a state."""
    (entry,) = [line for line in text.splitlines() if line.startswith(f"{state}  ")]
    return entry


def test_the_status_shows_what_runs_what_waits_and_what_a_killed_controller_left(
    project: SlurmProject,
) -> None:
    # A cell has all memory of its node, and all nodes but one are taken.
    project.matrix("ddp", "1", "0, 1", mem_gb_per_gpu=60)
    hold_after_an_epoch(project)
    nodes = run("sbatch", "--parsable", "--nodes=3", "--exclusive", "--wrap=sleep 600").strip()
    until(lambda: "RUNNING" in run("squeue", f"--jobs={nodes}", "--format=%T"), "three nodes taken")
    targets = [project.path("ddp", 1, seed) for seed in (0, 1)]
    with controller(project, *targets) as process:
        until(lambda: len(queue()) == 3, "two jobs")
        first = 0 if trains_first(project) else 1
        jobs = {seed: queue()[comment("ddp", 1, seed)]["JobIDRaw"] for seed in (0, 1)}
        text = project.status()
        assert f"controller: process {process.pid} of this machine" in text
        assert "orphaned" not in text
        assert f"seed{first}  job {jobs[first]}" in line(text, "running")
        assert "limit in 5 min" in text or "limit in 4 min" in text
        assert re.search(
            r"^queued \(Slurm's reasons\): 1 (Resources|Priority)$", text, re.MULTILINE
        )
        process.kill()
        process.wait()
    text = project.status()
    assert f"controller: killed (it was process {process.pid} of this machine)" in text
    assert f"orphaned: {', '.join(sorted(jobs.values(), reverse=True))}." in text
    run("scancel", *jobs.values(), nodes)
    until(lambda: not queue(), "end of the jobs")
    text = project.status()
    assert f"seed{first}  job {jobs[first]}" in line(text, "interrupted")
    assert "orphaned" not in text


def trains_first(project: SlurmProject) -> bool:
    """Whether the first seed runs on the node, once one of them trains."""
    until(lambda: trains(project, "ddp", 1, 0) or trains(project, "ddp", 1, 1), "training")
    return trains(project, "ddp", 1, 0)
