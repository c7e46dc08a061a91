"""A site's set-up, variables, image and local disk: real processes; Apptainer is stood in for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import run_cell
from shardmark.cells import Cell, parity_case
from shardmark.config.schema import CellSite
from shardmark.errors import UserError
from shardmark.launching.launch import Ended, launch
from shardmark.launching.site import (
    SCRATCH_VARIABLE,
    command_at_site,
    site_environment,
    why_not_at_site,
)
from small_matrix import ROOT, cell_at, matrix
from test_workflow import CONFIG, copy_project

STAND_INS = ROOT / "tests/stand_ins"
WRITE_VARIABLES = """
import json, os, pathlib, sys, tempfile
variables = dict(os.environ) | {"temporary": tempfile.gettempdir()}
pathlib.Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(variables))
"""


def rank_variables(cell: Cell, folder: Path) -> list[dict[str, str]]:
    """The variables that each rank of a cell finds."""
    ended = run_script(cell, folder)
    assert ended.exit_code == 0, ended.log_tail
    files = [folder / f"rank{rank}.json" for rank in range(cell.gpus)]
    return [json.loads(file.read_text()) for file in files]


def run_script(cell: Cell, folder: Path) -> Ended:
    script = folder / "script.py"
    script.write_text(WRITE_VARIABLES)
    return launch(script, [str(folder)], cell, folder)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, where there is an Apptainer to run it."""
    bin = Path(sys.executable).parent
    monkeypatch.setenv("PATH", os.pathsep.join([str(STAND_INS), str(bin), os.environ["PATH"]]))
    monkeypatch.setenv("APPTAINER_NOTE", str(tmp_path / "note"))
    file = tmp_path / "torch.sif"
    file.touch()
    return file


def test_setup_and_variables_reach_every_rank_and_the_sites_own_come_last(tmp_path: Path) -> None:
    cell = cell_at(
        gpus=2,
        site__setup="echo a module says hello\nexport FROM_SETUP='two words' BOTH=setup",
        site__environment={"NCCL_SOCKET_IFNAME": "ib0", "BOTH": "site"},
    )
    for variables in rank_variables(cell, tmp_path):
        assert variables["FROM_SETUP"] == "two words"
        assert variables["NCCL_SOCKET_IFNAME"] == "ib0"
        assert variables["BOTH"] == "site"
    assert "FROM_SETUP" not in os.environ


def test_a_setup_that_fails_is_one_message_and_no_result(tmp_path: Path) -> None:
    cell = cell_at(site__setup="echo no such module >&2\nfalse\necho not reached >&2")
    ended = run_script(cell, tmp_path)
    with pytest.raises(UserError, match=r"failed with exit code 1 on .*: line 2 \(false\) failed;"):
        run_cell.find_failure(cell, ended)
    assert any("no such module" in line for line in ended.log_tail)
    assert not (tmp_path / "rank0.json").exists()


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ("true\nset -u\necho $NOPE", "line 3: NOPE: unbound variable"),
        ("true\nno_such_command x\n", r"line 2 \(no_such_command x\) failed"),
        ("for i in 1; do\n  false\ndone", r"line 2 \(false\) failed"),
        ("true\nif then\n", "line 2: `if then'"),
        ("true\n. /no/such/activate", r"line 2 \(\. /no/such/activate\) failed"),
        ("HERE=/no\nsource $HERE/such", r"line 2 \(source \$HERE/such\) failed"),
        ("export A=1\nexit 0", "exited on .* before its last line"),
    ],
)
def test_what_is_wrong_in_a_setup_is_named_by_its_own_line(setup: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        site_environment(CellSite(setup=setup), os.environ)


def test_a_file_that_a_setup_sources_may_end_with_a_test(tmp_path: Path) -> None:
    sourced = tmp_path / "modules.sh"
    sourced.write_text("export FIRST=1\nfalse\nexport SECOND=2\n[ -d /no/such ] && . /no/such\n")
    site = CellSite(setup=f". {sourced}\n[ -d /no/such ] && false\nexport THIRD=3")
    variables = site_environment(site, os.environ)
    assert (variables["FIRST"], variables["SECOND"], variables["THIRD"]) == ("1", "2", "3")


def test_what_a_setup_says_is_in_the_log(tmp_path: Path) -> None:
    ended = run_script(cell_at(site__setup="echo a module says hello"), tmp_path)
    assert any("a module says hello" in line for line in ended.log_tail)


def test_what_a_setup_leaves_running_holds_nothing_up(tmp_path: Path) -> None:
    begin = time.monotonic()
    ended = run_script(cell_at(site__setup="sleep 60 &\nexport A=1"), tmp_path)
    assert ended.exit_code == 0
    assert time.monotonic() - begin < 30
    (line,) = [line for line in ended.log_tail if "left running" in line]
    left = re.search(r"site\.setup: left running on .*: \w+ \((\d+)\)", line)
    assert left
    assert not psutil.pid_exists(int(left[1]))


def test_ranks_run_in_the_image_with_the_folders_they_need(image: Path, tmp_path: Path) -> None:
    cell = cell_at(gpus=2, site__container=str(image))
    assert len(rank_variables(cell, tmp_path)) == 2
    call = (tmp_path / "note").read_text().splitlines()
    assert call[0] == "exec"
    assert call[call.index(str(image)) + 1] == "python3"
    assert "--nv" not in call, "the cell is on CPUs"
    for folder in (ROOT, tmp_path, ROOT / "config"):
        assert f"--bind={folder}" in call
    with_gpus = command_at_site(cell.site, [sys.executable, "x.py"], cuda=True, folders=[])
    assert "--nv" in with_gpus
    assert with_gpus[-3:] == [str(image), "python3", "x.py"]


@pytest.mark.slow
def test_a_cell_trains_in_an_image_and_its_result_names_the_sites_variables(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"site__container": str(image), "site__environment": {"MY_SWITCH": "on"}}
    # Of a kind that is recorded where it is no secret.
    monkeypatch.setenv("NCCL_PASSWORD", "open sesame")
    named["site__secret_environment"] = ["NCCL_PASSWORD"]
    metrics = run_cell.run_cell(cell_at(**named), tmp_path / "cell")
    assert metrics.status == "ok", metrics.failure
    assert metrics.environment["variables"]["MY_SWITCH"] == "on"
    assert metrics.cell.site.container == str(image)
    assert metrics.cell.site.secret_environment == ["NCCL_PASSWORD"]
    assert "open sesame" not in metrics.model_dump_json()


def test_a_secret_reaches_every_rank_and_defines_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_TOKEN", "from outside")
    setup = "export SECOND_TOKEN='from setup'"
    secret = ["FIRST_TOKEN", "SECOND_TOKEN"]
    cell = cell_at(gpus=2, site__setup=setup, site__secret_environment=secret)
    for variables in rank_variables(cell, tmp_path):
        assert (variables["FIRST_TOKEN"], variables["SECOND_TOKEN"]) == (
            "from outside",
            "from setup",
        )
    for file in (tmp_path / "plan.json", tmp_path / "node0.json"):
        assert "from outside" not in file.read_text()
    assert cell.fingerprint() == cell_at(gpus=2, site__setup=setup).fingerprint()
    one = cell_at(gpus=2, site__secret_environment=secret)
    assert one.fingerprint() == cell_at(gpus=2).fingerprint()


def test_a_secret_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    cell = cell_at(site__secret_environment=["PATH", "A_TOKEN"])
    words = "site.secret_environment: A_TOKEN not set on .*; export it where Snakemake is started"
    with pytest.raises(UserError, match=words):
        run_cell.find_failure(cell, run_script(cell, tmp_path))
    with pytest.raises(UserError, match=words):
        why_not_at_site(cell.site)


def test_caches_and_temporary_files_are_on_the_local_disk_and_gone_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, folder = tmp_path / "local", tmp_path / "cell"
    folder.mkdir()
    monkeypatch.setenv("DISK", str(local))
    monkeypatch.setenv(SCRATCH_VARIABLE, "$DISK/cells")
    (variables,) = rank_variables(cell_at(), folder)
    names = ("TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "temporary")
    for name in names:
        assert Path(variables[name]).is_relative_to(local / "cells")
    assert list((local / "cells").iterdir()) == []
    monkeypatch.setenv(SCRATCH_VARIABLE, "$NO_SUCH_DISK/cells")
    with pytest.raises(UserError, match=r"site.scratch: \$NO_SUCH_DISK/cells names a variable"):
        run_cell.find_failure(cell_at(), run_script(cell_at(), folder))


def test_what_can_change_a_result_defines_it_and_where_caches_lie_does_not() -> None:
    plain = cell_at()
    assert "site" not in plain.defining()
    assert cell_at(site__scratch="/local").fingerprint() == plain.fingerprint()
    for changed in ({"setup": "true"}, {"environment": {"NCCL_ALGO": "Ring"}}):
        assert cell_at(site=changed).fingerprint() != plain.fingerprint()
        case = parity_case(matrix(site=changed), "small", "ddp", 1)
        assert case.fingerprint() != parity_case(matrix(), "small", "ddp", 1).fingerprint()


def test_setup_may_bring_apptainer(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    bare = CellSite(container=str(image))
    assert "there is no apptainer on the PATH of" in why_not_at_site(bare)
    assert why_not_at_site(CellSite(container=str(image), setup=f"PATH={STAND_INS}:$PATH")) == ""


def test_a_node_that_cannot_run_the_image_makes_no_failed_cell(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_at(site__container=str(image))
    image.unlink()
    with pytest.raises(UserError, match=r"torch\.sif is not there on"):
        run_cell.find_failure(cell, run_script(cell, tmp_path))
    image.touch()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match="there is no apptainer on the PATH of"):
        run_cell.find_failure(cell, run_script(cell, tmp_path))


def test_the_setup_runs_once_a_node_and_homes_packages_stay_out(
    image: Path, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    cell = cell_at(gpus=2, site__container=str(image), site__setup=f"echo once >> {count}")
    for variables in rank_variables(cell, tmp_path):
        assert variables["PYTHONNOUSERSITE"] == "1"
    assert count.read_text() == "once\n"


def test_the_oracles_process_enters_the_site_once(image: Path, tmp_path: Path) -> None:
    script = tmp_path / "enter.py"
    script.write_text(
        "import os, sys\nfrom shardmark.config.schema import CellSite\n"
        "from shardmark.launching.site import enter\n"
        f"site = CellSite(container={str(image)!r}, setup='export A=1', environment={{'B': '2'}})\n"
        "enter(site, cuda=False, folders=[])\n"
        "print(sys.argv[1], os.environ['A'], os.environ['B'])\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "workflow/scripts")}
    done = subprocess.run(
        [sys.executable, str(script), "given"], env=env, capture_output=True, text=True
    )
    assert done.stdout == "given 1 2\n", done.stderr
    assert "exec" in (tmp_path / "note").read_text().splitlines()


def test_no_apptainer_is_said_before_any_job(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    (project.folder / "torch.sif").touch()
    with (project.folder / CONFIG).open("a") as file:
        file.write("site: {container: torch.sif, setup: 'PATH=/usr/bin:/bin'}\n")
    done = project.matrix()
    assert done.returncode == 1
    assert "site.container: there is no apptainer on the PATH" in done.stdout
    assert "Traceback" not in done.stdout
    assert project.ran() == []
