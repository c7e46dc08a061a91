"""What sbatch is given and answers: after a lost node, at a limit, for the parity gate."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from accounting import comment, jobs, queue
from cluster import NODES, Cluster, nodes_in, run
from slurm_project import SCRIPTS, STAND_INS, SlurmProject
from test_slurm_faults import controller, power_off
from waiting import PATIENCE_S, until


def cells_that_last(project: SlurmProject, seconds: int) -> None:
    """Put a stand-in that takes a while in the place of the script that trains."""
    project.stand_in()
    script = project.folder / SCRIPTS / "run_cell.py"
    script.write_text(f"import time\n\ntime.sleep({seconds})\n{script.read_text()}")


@contextmanager
def node_down(cluster: Cluster, node: str) -> Iterator[None]:
    """A node that is off; Slurm requeues its job."""
    power_off(cluster, node)
    # It would take Slurm SlurmdTimeout to notice.
    run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        yield
    finally:
        cluster.start_node(node)
        until(lambda: node in nodes_in("idle") + nodes_in("mix") + nodes_in("alloc"), "node")


def running_cell() -> dict[str, str] | None:
    """The job of a cell that runs."""
    cells = (job for name, job in queue().items() if name.startswith("rule_train"))
    return next((job for job in cells if job["State"] == "RUNNING"), None)


def cells_submitted(project: SlurmProject) -> list[str]:
    """The jobs of cells so far, whatever became of them; accounting knows of them at their end."""
    lines = run("squeue", "--states=all", "--noheader", "--format=%k|%Z").splitlines()
    rows = [line.split("|") for line in lines]
    return [
        name
        for name, folder in rows
        if folder == str(project.folder) and name.startswith("rule_train")
    ]


def test_a_lost_node_does_not_keep_later_cells_from_being_submitted(
    project: SlurmProject, cluster: Cluster
) -> None:
    cells_that_last(project, 5)
    project.matrix("ddp", "2", "0, 1, 2, 3", device="cuda")
    cells = {comment("ddp", 2, seed): project.path("ddp", 2, seed) for seed in range(4)}
    with controller(project, *cells.values(), "--jobs", "2") as process:
        until(running_cell, "cell")
        lost = running_cell()
        assert lost is not None
        with node_down(cluster, lost["NodeList"]):
            others = [
                project.folder / path for name, path in cells.items() if name != lost["Comment"]
            ]
            until(lambda: all(other.exists() for other in others), "results of the other cells")
            process.send_signal(signal.SIGINT)
            text, _ = process.communicate(timeout=PATIENCE_S)
    assert "no result" not in text
    assert "excluded" not in text
    assert len(cells_submitted(project)) == 4


@contextmanager
def submit_limit(jobs_allowed: int) -> Iterator[None]:
    """An association that allows this many jobs in the queue."""
    change = ("sacctmgr", "-i", "modify", "user", "root", "set")
    run(*change, f"MaxSubmitJobs={jobs_allowed}")
    try:
        yield
    finally:
        run(*change, "MaxSubmitJobs=-1")


def retry_after(project: SlurmProject, seconds: int) -> None:
    """Make Snakemake submit a refused job again after that time."""
    with (project.folder / "Snakefile").open("a") as snakefile:
        snakefile.write(
            f"\nfrom shardmark.slurm import submission\nsubmission.WAIT_S = {seconds}\n"
        )


def logs(project: SlurmProject) -> str:
    """What Snakemake has logged so far."""
    return "".join(log.read_text() for log in project.folder.glob(".snakemake/log/*.log"))


def test_jobs_that_a_limit_keeps_out_of_the_queue_wait_and_are_submitted_later(
    project: SlurmProject,
) -> None:
    project.stand_in()
    retry_after(project, 1)
    project.matrix("ddp", "1", "0, 1, 2, 3")
    targets = [project.path("ddp", 1, seed) for seed in range(4)]
    with submit_limit(2):
        result = project.run(*targets)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("Slurm accepts no job at the moment (AssocMaxSubmitJobLimit; ") == 1
    assert "no result" not in result.stdout
    assert len(cells_submitted(project)) == 4


def test_jobs_that_wait_for_a_limit_are_not_submitted_after_an_interrupt(
    project: SlurmProject,
) -> None:
    # Both are longer than a busy machine takes to interrupt the controller.
    cells_that_last(project, 600)
    retry_after(project, 600)
    project.matrix("ddp", "1", "0, 1, 2")
    targets = [project.path("ddp", 1, seed) for seed in range(3)]
    with submit_limit(1), controller(project, *targets) as process:
        until(lambda: "Slurm accepts no job" in logs(project), "refusal")
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    assert len(cells_submitted(project)) == 1
    assert queue() == {}, "the job that ran was cancelled"


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        ("slurm_partition='nowhere'", "Invalid partition name specified"),
        ("slurm_account='nobody'", "The given account nobody appears to be invalid"),
        ("slurm_partition='brief'", "Requested time limit is invalid (missing or exceeds"),
    ],
)
def test_a_refusal_that_cannot_pass_stops_the_matrix_in_slurms_words(
    resource: str, words: str, project: SlurmProject
) -> None:
    project.stand_in()
    project.matrix("ddp", "1", "0, 1, 2")
    targets = [project.path("ddp", 1, seed) for seed in range(3)]
    result = project.run(*targets, "--set-resources", f"train:{resource}")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "Slurm refuses" in line]
    assert "Slurm refuses the job for results/t/small/ddp/gpus1/seed" in line
    assert words in line
    assert "no result" not in result.stdout
    assert "Traceback" not in result.stdout
    assert cells_submitted(project) == []


def test_the_gates_jobs_start_before_the_cells_that_wait(project: SlurmProject) -> None:
    cells_that_last(project, 1)
    for script in ("make_oracle", "run_parity"):
        shutil.copy(STAND_INS / "write_outputs.py", project.folder / SCRIPTS / f"{script}.py")
    project.matrix("ddp", "2", "0, 1, 2, 3, 4, 5", device="cuda")
    targets = [project.path("ddp", 2, seed) for seed in range(6)]
    others = ",".join(NODES[1:])
    # On the one node that is left the jobs run one after the other.
    run("scontrol", "update", f"nodename={others}", "state=drain", "reason=test")
    try:
        result = project.run(*targets, "results/t/parity/small/ddp/ranks2.json")
    finally:
        run("scontrol", "update", f"nodename={others}", "state=resume")
    assert result.returncode == 0, result.stdout
    started = sorted(jobs(project), key=lambda job: job["Start"])
    names = [job["Comment"].removeprefix("rule_").split("_wildcards")[0] for job in started]
    assert names[0] == "make_oracle"
    # A cell may start while the oracle's end is being noticed.
    assert names.index("check_parity") <= 4, names
    cells = [job["Comment"] for job in started if "_train_" in job["Comment"]]
    places = {comment("ddp", 2, seed): project.metrics("ddp", 2, seed) for seed in range(6)}
    assert [places[cell].provenance["planned_place"] for cell in cells] == list(range(6))


def test_array_jobs_are_refused_at_the_start(project: SlurmProject) -> None:
    project.stand_in()
    project.matrix("ddp", "1", "0, 1")
    result = project.run(
        *(project.path("ddp", 1, seed) for seed in (0, 1)), "--slurm-array-jobs", "all"
    )
    assert result.returncode == 1
    assert "--slurm-array-jobs cannot be used" in result.stdout
    assert "Traceback" not in result.stdout
    assert jobs(project) == []
