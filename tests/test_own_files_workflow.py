"""Files of the user's own in a real Snakemake: their checks come first, an edit reruns their cells.

Stand-ins take the place of the scripts that train and that aggregate.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from own_files import ONE_ALL_REDUCE, TRAINING
from test_workflow import CELL, CONFIG, WORKLOAD, Project, copy_project

MATRIX = f"""
run: t
matrix:
  workloads: [small, mine]
  strategies: [ddp, by_hand]
  gpus: [2]
  seeds: [1]
cluster: {{device: cpu}}
strategies:
  by_hand: {{file: by_hand.py}}
workloads:
  small: {WORKLOAD.format(0.1)}
  mine:
    file: training.py
    dataset: {{samples: 256}}
    batch: {{global: 16}}
    optimizer: {{learning_rate: 0.1}}
    precision: fp32
"""
CELLS = {
    (workload, strategy): CELL.format(workload, strategy, 2, 1)
    for workload in ("small", "mine")
    for strategy in ("ddp", "by_hand")
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = copy_project(tmp_path_factory.mktemp("whole"))
    (project.folder / CONFIG).write_text(MATRIX)
    (project.folder / "training.py").write_text("from parts.layers import WIDTH\n" + TRAINING)
    parts = project.folder / "parts"
    parts.mkdir()
    (parts / "__init__.py").write_text("")
    (parts / "layers.py").write_text("from .sizes import WIDTH\n")
    (parts / "sizes.py").write_text("WIDTH = 16\n")
    shutil.copy(ONE_ALL_REDUCE, project.folder / "by_hand.py")
    result = project.matrix()
    assert result.returncode == 0, result.stdout
    assert len(project.ran()) == 4
    return project.folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(whole, tmp_path / "project", symlinks=True)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "edited"),
    [
        ("training.py", "mine"),
        ("parts/layers.py", "mine"),
        ("parts/sizes.py", "mine"),
        ("by_hand.py", "by_hand"),
    ],
)
def test_an_edit_reruns_the_cells_of_the_file_and_only_those(
    file: str, edited: str, project: Project
) -> None:
    assert "train" not in project.planned()
    project.edit(file)
    planned = project.planned()
    assert planned["train"] == {path for names, path in CELLS.items() if edited in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("training.py", ('reduction="sum")', 'reduction="sum").item()'), "loss returned a float"),
        ("training.py", ("def loss(", "def loss "), "the file raised SyntaxError"),
        ("by_hand.py", ("self.optimizer = task", "optimizer = task"), "left self.optimizer as a"),
        ("by_hand.py", ("def step(", "def step "), "the file raised SyntaxError"),
    ],
)
def test_a_mistake_ends_before_any_job_of_its_cells(
    file: str, change: tuple[str, str], message: str, project: Project
) -> None:
    path = project.folder / file
    text = path.read_text()
    path.write_text(text.replace(*change))
    (project.folder / "ran.log").unlink(missing_ok=True)
    result = project.matrix()
    assert result.returncode != 0
    # Once per workload that the file takes part in.
    said = {line.strip() for line in result.stdout.splitlines() if "shardmark: " in line}
    (line,) = said
    assert line.startswith(f"shardmark: {file}: ")
    assert message in line
    assert "Traceback" not in result.stdout
    assert project.ran() == []
    path.write_text(text)
    assert project.planned() == {}, "an undone mistake costs nothing"


@pytest.mark.slow
def test_a_missing_record_of_a_check_repeats_no_cell(project: Project) -> None:
    cells = [CELLS["mine", "ddp"], CELLS["mine", "by_hand"]]
    project.ran()
    records = list((project.folder / "results/t/checks").glob("mine*.txt"))
    assert len(records) == 2
    for record in records:
        record.unlink()
    (project.folder / cells[0]).unlink()
    done = project.matrix(*cells)
    assert done.returncode == 0, done.stdout
    assert "[mine] training.py: checked on one batch" in done.stdout
    assert project.ran() == ["mine ddp gpus2 seed1"]
    assert sum(record.exists() for record in records) == 1, "no cell of by_hand ran"
