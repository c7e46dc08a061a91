"""Several cells in one job: what it asks for, what status says, what is left if it is lost."""

from __future__ import annotations

from collections import Counter

import pytest

from accounting import jobs, options, queue
from cluster import run
from slurm_project import CONFIG, SCRIPTS, SlurmProject
from test_slurm_faults import controller, run_after_an_orphan
from waiting import PATIENCE_S, until

GROUPS = ("--groups", "train=gpus{gpus}", "--group-components", "gpus{gpus}=3")
SEEDS = (0, 1, 2)


def targets(project: SlurmProject) -> list[str]:
    return [project.path("ddp", 1, seed) for seed in SEEDS]


def ended(project: SlurmProject) -> set[int]:
    """The seeds whose cells have their result, and the note that it is whole."""
    folders = {seed: (project.folder / project.path("ddp", 1, seed)).parent for seed in SEEDS}
    return {seed for seed, folder in folders.items() if (folder / "code.sha256").exists()}


def runs(project: SlurmProject) -> Counter[str]:
    """How often each cell ran."""
    return Counter((project.folder / "ran.log").read_text().splitlines())


def hold_all_but_the_first(project: SlurmProject) -> None:
    """Make a stand-in run the first cell at once, and the others once there is a file GO."""
    project.stand_in()
    script = project.folder / SCRIPTS / "run_cell.py"
    wait = 'while Path("ran.log").exists() and not Path("GO").exists():\n    time.sleep(0.2)\n'
    script.write_text(f"import time\nfrom pathlib import Path\n\n{wait}{script.read_text()}")


def test_a_lost_group_keeps_what_its_cells_had_ended_and_the_next_run_does_the_others(
    project: SlurmProject,
) -> None:
    hold_all_but_the_first(project)
    project.matrix("ddp", "1", "0, 1, 2", device="cuda")
    with controller(project, *targets(project), *GROUPS, "--retries", "0") as process:
        until(lambda: ended(project), "first result")
        first = ended(project)
        (number,) = (job["JobIDRaw"] for job in queue().values())
        text = project.status()
        assert "1 ok, 2 queued" in text
        assert "queued (Slurm's reasons): 2 with 2 others in one job, which runs" in text
        run("scancel", number)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "2 no result, 1 ok" in text
    assert ended(project) == first
    (project.folder / "GO").touch()
    again = project.run(*targets(project), *GROUPS)
    assert again.returncode == 0, again.stdout
    assert "cells [2/2] | 2 ok" in again.stdout
    (before,) = first
    assert runs(project)[f"small ddp gpus1 seed{before}"] == 1
    lost, rest = jobs(project)
    assert (options(lost)["-t"], options(rest)["-t"]) == ("30", "20"), "10 min a cell"
    assert options(lost)["--gpus"] == "1"
    assert options(lost)["--cpus-per-task"] == "2"


def test_a_group_of_a_killed_controller_is_waited_for(project: SlurmProject) -> None:
    hold_all_but_the_first(project)
    project.matrix("ddp", "1", "0, 1, 2", device="cuda")
    with controller(project, *targets(project), *GROUPS) as process:
        until(lambda: ended(project), "first result")
        first = ended(project)
        process.kill()
    (orphan,) = (job["JobIDRaw"] for job in queue().values())
    assert f"orphaned: {orphan}" in project.status()
    project.run("--unlock")
    text = run_after_an_orphan(project, *targets(project), *GROUPS)
    assert f"1 job(s) of a controller that is gone are still queued or running ({orphan})" in text
    _, second = jobs(project)
    assert f"--dependency=afterany:{orphan}" in second["SubmitLine"]
    assert all(runs(project)[f"small ddp gpus1 seed{seed}"] == 1 for seed in first)


def test_a_cell_without_a_result_does_not_end_its_group(project: SlurmProject) -> None:
    project.stand_in()
    script = project.folder / SCRIPTS / "run_cell.py"
    fails = 'if cell.seed == 1:\n    sys.exit("no such library")\nmetrics = '
    script.write_text(script.read_text().replace("metrics = ", fails, 1))
    project.matrix("ddp", "1", "0, 1, 2", device="cuda")
    result = project.run(*targets(project), *GROUPS, "--retries", "0")
    assert result.returncode == 1
    assert "no such library" in result.stdout
    assert ended(project) == {0, 2}
    assert "2 ok" in result.stdout


@pytest.mark.parametrize(
    ("groups", "block", "on_failure", "words"),
    [
        ("train=cells", "free", "record", "cells of 1, 2 GPUs"),
        ("check_parity=gate", "free", "record", "check_parity cannot be grouped, only train"),
        ("train=gpus{gpus}", "pinned", "record", "cannot be used with cluster.block: pinned"),
        ("train=gpus{gpus}", "free", "stop", "cannot be used with on_failure: stop"),
    ],
)
def test_groups_that_cannot_work_are_refused_at_the_start(
    groups: str, block: str, on_failure: str, words: str, project: SlurmProject
) -> None:
    project.stand_in()
    project.matrix("ddp", "2, 1", device="cuda", block=block)
    with (project.folder / CONFIG).open("a") as config:
        config.write(f"on_failure: {on_failure}\n")
    name = groups.partition("=")[2]
    both = [project.path("ddp", gpus) for gpus in (2, 1)]
    result = project.run(*both, "--groups", groups, "--group-components", f"{name}=3")
    assert result.returncode == 1
    assert words in result.stdout, result.stdout
    assert "Traceback" not in result.stdout
    assert jobs(project) == []


def test_a_cell_that_never_started_keeps_its_old_result(project: SlurmProject) -> None:
    project.stand_in()
    project.matrix("ddp", "1", "0")
    target = project.path("ddp", 1)
    assert project.run(target).returncode == 0
    old = (project.folder / target).read_text()
    on_n4 = ["--force", "--retries", "0", "--set-resources", "train:slurm_extra='--nodelist=n4'"]
    run("scontrol", "update", "nodename=n4", "state=drain", "reason=test")
    try:
        with controller(project, target, *on_n4) as process:
            until(queue, "waiting job")
            run("scancel", *(job["JobIDRaw"] for job in queue().values()))
            text, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        run("scontrol", "update", "nodename=n4", "state=resume")
    assert process.returncode == 1, text
    assert (project.folder / target).read_text() == old
    assert "train" in project.run(target, "-n").stdout, "the rerun is still to be done"
