"""A site's set-up and local disk on the nodes of a cell that spans two."""

from __future__ import annotations

from slurm_project import CONFIG, SlurmProject

# The first leaves a file a node; the second is a folder that the nodes alone make.
SITE = """
site:
  setup: touch "set-up-on-$SLURMD_NODENAME"
  scratch: $PWD/local
"""


def test_the_set_up_runs_on_each_node_and_the_local_disk_is_left_empty(
    project: SlurmProject,
) -> None:
    project.matrix("ddp", "4")
    with (project.folder / CONFIG).open("a") as file:
        file.write(SITE)
    result = project.run(project.path("ddp", 4), fake_gpus=True)
    assert result.returncode == 0, result.stdout
    metrics = project.metrics("ddp", 4)
    assert metrics.status == "ok", metrics.failure
    assert len(list(project.folder.glob("set-up-on-n*"))) == 2
    assert list((project.folder / "local").iterdir()) == []
