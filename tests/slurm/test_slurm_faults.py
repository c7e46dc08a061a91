"""What Slurm, and people, do to jobs: the cell has a result or none, and runs once at a time."""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from accounting import comment, jobs, next_job_number, queue
from cluster import ACCOUNT, URGENT, Cluster, run
from processes_that_end import command_line
from slurm_project import SCRIPTS, SlurmProject
from waiting import PATIENCE_S, until

# Enough for a cell to be met while it trains.
STEADY_S = 8
# DDP whose ranks stop after the first epoch, until there is a file GO.
HELD = """
class Held(Ddp):
    def forward(self, inputs):
        while self.is_held():
            time.sleep(0.1)
        return super().forward(inputs)

    def is_held(self):
        logs = Path("results").rglob("job.log")
        return any("epoch 1" in log.read_text() for log in logs) and not Path("GO").exists()


if __name__ == "__main__":
    import time
    from pathlib import Path

    main(Held)
"""


def trains(project: SlurmProject, *cell: object) -> bool:
    """Whether a cell has come as far as its steps."""
    log = project.folder / Path(project.path(*cell)).with_name("job.log")  # type: ignore[arg-type]
    return log.exists() and "epoch 1" in log.read_text()


@contextlib.contextmanager
def controller(project: SlurmProject, *targets: str) -> Iterator[subprocess.Popen[str]]:
    """Snakemake, gone at the end."""
    process = subprocess.Popen(
        project.command(*targets),
        cwd=project.folder,
        env=project.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # nohup ignores it, and so would every Snakemake that is started under it.
        preexec_fn=functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def hold_after_an_epoch(project: SlurmProject) -> None:
    """Make the cells of DDP stop after their first epoch, until there is a file GO."""
    script = project.folder / SCRIPTS / "train_ddp.py"
    script.write_text(script.read_text().partition("if __name__")[0] + HELD)


def run_after_an_orphan(project: SlurmProject, *targets: str) -> str:
    """Run Snakemake, release the orphan once a job waits for it, and return the output."""
    with controller(project, *targets) as process:
        until(lambda: len(run("squeue", "--noheader").splitlines()) == 2, "job that waits")
        (project.folder / "GO").touch()
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    return text


def test_an_orphan_of_a_killed_controller_is_waited_for_and_not_launched_again(
    project: SlurmProject,
) -> None:
    project.matrix("ddp", "1")
    hold_after_an_epoch(project)
    target = project.path("ddp", 1)
    with controller(project, target) as process:
        until(lambda: trains(project, "ddp", 1), "training")
        process.kill()
    orphan = queue()[comment("ddp", 1)]["JobIDRaw"]
    locked = project.run(target)
    assert locked.returncode == 1
    assert "--unlock" in locked.stdout
    project.run("--unlock")
    text = run_after_an_orphan(project, target)
    assert "1 job(s) of a controller that is gone are still queued or running" in text
    first, second = (job for job in jobs(project) if job["Comment"] == comment("ddp", 1))
    assert first["JobIDRaw"] == orphan
    assert f"--dependency=afterany:{orphan}" in second["SubmitLine"]
    log = project.folder / Path(target).with_name("job.log")
    assert "another job has made its result meanwhile" in log.read_text()
    assert project.metrics("ddp", 1).environment["variables"]["SLURM_JOB_ID"] == orphan
    assert project.run(target, "-n").stdout.count("Nothing to be done") == 1


def test_cancelled_cells_and_an_interrupted_controller_lose_nothing_that_was_done(
    project: SlurmProject,
) -> None:
    project.matrix("ddp", "1", "0, 1, 2, 3", steady_s=STEADY_S)
    targets = [project.path("ddp", 1, seed) for seed in (0, 1, 2, 3)]
    assert project.run(targets[0]).returncode == 0
    first = (project.folder / targets[0]).read_text()
    with controller(project, *targets) as process:
        cells = [comment("ddp", 1, seed) for seed in (1, 2, 3)]
        # Of the three some train and others wait or prepare: to wait for the last of them on a
        # busy machine would let the first end.
        until(lambda: set(cells) <= set(queue()), "submission of three")
        until(lambda: any(trains(project, "ddp", 1, s) for s in (1, 2, 3)), "training of one")
        run("scancel", *(queue()[cell]["JobIDRaw"] for cell in cells))
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
    until(lambda: not queue(), "end of the jobs")
    for target in targets[1:]:
        assert not (project.folder / target).exists()
    # As the controller ended, it may have submitted a second attempt and cancelled it. Accounting
    # may hear of that attempt late, but its number is smaller than those of the jobs that follow.
    submitted_next = next_job_number()
    result = project.run(*targets)
    assert result.returncode == 0, result.stdout
    assert "cells [3/3] | 3 ok" in result.stdout
    assert (project.folder / targets[0]).read_text() == first
    ran = [
        (job["Comment"], job["State"])
        for job in jobs(project)
        if int(job["JobIDRaw"]) >= submitted_next
    ]
    assert sorted(ran) == [(cell, "COMPLETED") for cell in cells]


@pytest.mark.parametrize(
    "how",
    [
        "step daemon killed",
        pytest.param("requeued", marks=pytest.mark.long),
        pytest.param("preempted", marks=pytest.mark.long),
        pytest.param("node lost", marks=pytest.mark.long),
    ],
)
def test_what_slurm_does_to_a_job_is_no_result_and_the_cell_runs_again(
    how: str, project: SlurmProject, cluster: Cluster
) -> None:
    project.matrix("ddp", "2", steady_s=STEADY_S)
    with controller(project, project.path("ddp", 2)) as process:
        until(lambda: trains(project, "ddp", 2), "training")
        job = queue()[comment("ddp", 2)]
        family = processes_of(job["JobIDRaw"])
        match how:
            case "step daemon killed":
                step_daemon(job["JobIDRaw"]).kill()
            case "requeued":
                run("scontrol", "requeue", job["JobIDRaw"])
            case "preempted":
                preempt(job["NodeList"])
            case "node lost":
                lose_node(cluster, job["NodeList"], family)
        assert_gone(family)
        assert not (project.folder / project.path("ddp", 2)).exists()
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    assert project.metrics("ddp", 2).status == "ok"


@pytest.mark.long
def test_slurms_own_time_limit_is_no_result(project: SlurmProject) -> None:
    project.matrix("ddp", "2", steady_s=600)
    target = project.path("ddp", 2)
    more = ["--set-resources", "train:runtime=1", "--retries", "0"]
    with controller(project, target, *more) as process:
        until(lambda: trains(project, "ddp", 2), "training")
        family = processes_of(queue()[comment("ddp", 2)]["JobIDRaw"])
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "DUE TO TIME LIMIT" in text
    assert_gone(family)
    assert not (project.folder / target).exists()


def assert_gone(family: list[psutil.Process]) -> None:
    """No process outlives its job."""
    assert family
    _, living = psutil.wait_procs(family, timeout=60)
    assert [" ".join(command_line(left))[:300] for left in living] == []


def processes_of(job: str) -> list[psutil.Process]:
    """Every process of a job, its step daemons left out."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") == job and process.name() != "slurmstepd":
                processes.append(process)
    return processes


def step_daemon(job: str) -> psutil.Process:
    """The step daemon that the ranks run under."""
    processes = psutil.process_iter(["name", "cmdline"])
    daemons = [one for one in processes if one.info["name"] == "slurmstepd"]
    return next(one for one in daemons if f"[{job}.0]" in " ".join(one.info["cmdline"] or ()))


def preempt(node: str) -> None:
    """Let a more urgent job take a node."""
    asked = [f"--partition={URGENT}", f"--account={ACCOUNT}", f"--nodelist={node}", "--exclusive"]
    run("sbatch", *asked, "--output=/dev/null", "--wrap=sleep 5")


def lose_node(cluster: Cluster, node: str, family: list[psutil.Process]) -> None:
    """Power off a node and, when Slurm has noticed, on again."""
    power_off(cluster, node, family)
    until(lambda: f"{node} down" in run("sinfo", "-Nh", "-o", "%N %t"), "loss of the node")
    cluster.start_node(node)


def power_off(cluster: Cluster, node: str, family: Iterable[psutil.Process] = ()) -> None:
    """End a node's slurmd and all its processes."""
    ids = run("squeue", "--noheader", f"--nodelist={node}", "--format=%i").split()
    cluster.end(f"slurmd-{node}", signal.SIGKILL)
    for process in (*psutil.process_iter(), *family):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            serves = process.name() == "slurmstepd" and any(f"[{job}." in title for job in ids)
            if serves or process.environ().get("SLURMD_NODENAME") == node:
                process.kill()
