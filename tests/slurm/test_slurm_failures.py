"""Cells that fail on the cluster: on one node of two, and in a matrix that is to stop at that."""

from __future__ import annotations

from collections import Counter

import pytest

from accounting import comment, jobs, last_jobs
from cluster import run
from slurm_project import ROOT, SCRIPTS, SlurmProject
from waiting import until

FAILING = ROOT / "tests/failing/train_misbehaves.py"
# gloo's own patience is 30 minutes.
PROMPT_S = 180


@pytest.fixture
def misbehaving(project: SlurmProject) -> SlurmProject:
    """A project in whose DDP the last rank, on the second node, misbehaves."""
    script = project.folder / SCRIPTS / "train_ddp.py"
    script.rename(script.with_name("well_behaved.py"))
    script.write_text(FAILING.read_text().replace("from train_ddp", "from well_behaved"))
    return project


@pytest.mark.parametrize(
    ("how", "minutes", "words"),
    [
        ("crash", 5, "the process died of SIGSEGV"),
        pytest.param("hang", 1, "hung: no rank got further; rank 3 in", marks=pytest.mark.long),
    ],
)
def test_what_a_rank_of_the_second_node_does_ends_the_cell_on_both(
    how: str,
    minutes: int,
    words: str,
    misbehaving: SlurmProject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    misbehaving.matrix("ddp", "4", stall_limit_minutes=minutes)
    monkeypatch.setenv("MISBEHAVIOUR", how)
    result = misbehaving.run(misbehaving.path("ddp", 4))
    assert result.returncode == 0, result.stdout
    assert "small ddp gpus4 seed0: failed" in result.stdout
    metrics = misbehaving.metrics("ddp", 4)
    assert metrics.status == "failed"
    assert metrics.failure is not None
    assert metrics.failure.rank == 3
    assert words in metrics.failure.exception
    (job,) = jobs(misbehaving)
    assert job["NNodes"] == "2"
    assert int(job["ElapsedRaw"]) < PROMPT_S
    again = misbehaving.run(misbehaving.path("ddp", 4))
    assert "Nothing to be done" in again.stdout, "a failure is a result"


@pytest.mark.long
def test_a_rank_that_is_killed_on_the_second_node_is_no_result(
    misbehaving: SlurmProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    misbehaving.matrix("ddp", "4")
    monkeypatch.setenv("MISBEHAVIOUR", "killed")
    target = misbehaving.path("ddp", 4)
    result = misbehaving.run(target, "--retries", "0")
    assert result.returncode == 1
    assert "something else killed rank 3" in result.stdout
    assert "Traceback" not in result.stdout
    assert not (misbehaving.folder / target).exists()
    (job,) = jobs(misbehaving)
    assert int(job["ElapsedRaw"]) < PROMPT_S


def test_on_failure_stop_does_not_wait_for_snakemakes_next_look_at_the_jobs(
    project: SlurmProject,
) -> None:
    project.stand_in()
    # A failed cell's job goes on for longer than the others take to start.
    with (project.folder / SCRIPTS / "run_cell.py").open("a") as script:
        script.write("\ntime.sleep(20 if out_of_memory else 3)\n")
    project.matrix("ddp", "2", "0, 1, 2, 3", slurm_extra="--exclusive", mem_gb_per_gpu=10)
    with (project.folder / "matrix.yaml").open("a") as config:
        config.write("on_failure: stop\n")
    other = run("sbatch", "--parsable", "--nodes=3", "--exclusive", "--wrap=sleep 600").strip()
    until(lambda: "RUNNING" in run("squeue", f"--jobs={other}", "--format=%T"), "three taken nodes")
    (project.folder / "OOM").write_text("small ddp gpus2 seed0")
    targets = [project.path("ddp", 2, seed) for seed in range(4)]
    stopped = project.run(*targets)
    run("scancel", other)
    assert "on_failure: stop: small ddp gpus2 seed0 ended as oom" in stopped.stdout
    states = [job["State"].split()[0] for job in jobs(project)]
    # The failed job occupied the only node meanwhile.
    assert states.count("CANCELLED") >= 3, states


def test_on_failure_stop_cancels_what_waits_and_lets_run_what_runs(project: SlurmProject) -> None:
    project.stand_in()
    # On one node, so that they run one after the other and the others wait.
    project.matrix("ddp", "2", "0, 1, 2, 3", slurm_extra="--nodelist=n1 --exclusive")
    with (project.folder / "matrix.yaml").open("a") as config:
        config.write("on_failure: stop\n")
    targets = [project.path("ddp", 2, seed) for seed in range(4)]
    (project.folder / "OOM").write_text("small ddp gpus2 seed0")
    stopped = project.run(*targets)
    assert stopped.returncode == 1
    assert "on_failure: stop: small ddp gpus2 seed0 ended as oom" in stopped.stdout
    assert "Traceback" not in stopped.stdout
    first = {job["Comment"]: job["State"].split()[0] for job in jobs(project)}
    assert first[comment("ddp", 2, 0)] == "COMPLETED"
    assert Counter(first.values())["CANCELLED"] >= 1, first
    again = project.run(*targets)
    assert again.returncode == 0, again.stdout
    done = Counter(job["Comment"] for job in jobs(project) if job["State"] == "COMPLETED")
    assert [done[comment("ddp", 2, seed)] for seed in range(4)] == [1, 1, 1, 1]
    assert project.metrics("ddp", 2, 0).status == "oom"
    assert {job["State"] for job in last_jobs(project).values()} == {"COMPLETED"}
