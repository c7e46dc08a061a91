"""Checks of the user's own files whose code ends, leaves or holds up the process that checks it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from own_files import ROOT, TRAINING, config_with, own_workload
from processes_that_end import lives
from saved_cells import saved
from shardmark.errors import UserError
from shardmark.launching.guarded_check import write_check
from shardmark.own_file import load_class
from shardmark.workload.own import Training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os._exit(0)", "its code must not end the process, but did (exit code 0)"),
        ("import os; os._exit(1)", "its code must not end the process, but did (exit code 1)"),
        ("import os; os.kill(os.getpid(), 11)", "its code must not end the process, but did (SIGS"),
        ("import os; os.kill(os.getpid(), 9)", "something else ended its check (SIGKILL). If mem"),
        ("raise SystemExit(0)", "line 1: the file raised SystemExit: 0"),
        ("class E(Exception): __str__ = None\nraise E", "the file raised E: (an exception that"),
    ],
)
def test_code_that_ends_the_check_is_one_message(code: str, words: str, tmp_path: Path) -> None:
    file, output = tmp_path / "mine.py", tmp_path / "checked.txt"
    file.write_text(f"{code}\n{TRAINING}")
    config = saved(config_with(own_workload(file), ["ddp"]))
    command = [sys.executable, str(ROOT / "workflow/scripts/check_training.py")]
    command += ["--config", str(config), "--workload", "w", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"shardmark: {file}: ")
    assert words in line
    assert not output.exists()


def test_a_check_that_does_not_end_is_ended_with_what_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"

    def check() -> str:
        child.write_text(str(os.fork() or os.getpid()))
        while True:
            time.sleep(60)

    with pytest.raises(UserError, match=r"mine\.py: its check was ended after 2 s"):
        write_check("mine.py", check, tmp_path / "checked.txt", limit_s=2.0)
    assert not psutil.Process().children()
    assert not psutil.pid_exists(int(child.read_text()))


def test_a_check_ends_with_the_command_that_wanted_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    file = tmp_path / "mine.py"
    file.write_text(
        f"import os, pathlib, time\npathlib.Path({str(child)!r}).write_text(str(os.getpid()))\n"
        f"time.sleep(600)\n{TRAINING}"
    )
    config = saved(config_with(own_workload(file), ["ddp"]))
    command = [sys.executable, str(ROOT / "workflow/scripts/check_training.py")]
    command += ["--config", str(config), "--workload", "w", "--output", str(tmp_path / "checked")]
    with subprocess.Popen(command) as process:
        while not (child.exists() and child.read_text()):
            time.sleep(0.1)
        process.kill()
    deadline = time.monotonic() + 10
    while lives(int(child.read_text())):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.1)


def test_a_check_writes_where_it_was_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def check() -> str:
        os.chdir("/")
        return "checked"

    write_check("mine.py", check, Path("checked.txt"))
    assert (tmp_path / "checked.txt").read_text() == "checked"


def test_a_file_does_not_change_the_folder_that_paths_are_relative_to(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"import os\nos.chdir('/')\n{TRAINING}")
    before = Path.cwd()
    load_class(str(file), Training)  # type: ignore[type-abstract]
    assert Path.cwd() == before
