"""make and workflow/environment.sh: what is installed, what is deleted, and what is passed on.

Stand-ins take the place of Python, pip and uv, and all of it runs in a copy of the project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from small_matrix import ROOT

# Every interpreter and tool of an environment: notes its arguments, one a line.
STAND_IN = """#!/bin/sh
for argument; do printf '%s\\n' "$argument" >> "$NOTE"; done
case "$1 $2" in
  "-m venv") for folder; do :; done
    mkdir -p "$folder/bin"
    for name in python python3 uv; do cp "$0" "$folder/bin/$name"; done ;;
  *_base_executable*) echo "$BASE" ;;
esac
[ ! -e "$NOTE.fail" ] || case "$1" in pip) exit 1 ;; esac
"""
ODD = 'a\'b "c" $d $(touch made) {e}; touch made'


class Checkout:
    """A copy of what make needs to install, in a folder with an odd name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "it's a $checkout"
        self.note = folder / "note"
        (self.folder / "workflow").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", self.folder)
        shutil.copy(ROOT / "workflow/environment.sh", self.folder / "workflow")
        for lock in ROOT.glob("requirements*.txt"):
            shutil.copy(lock, self.folder)
        self.python = folder / "bin dir/python3"
        self.python.parent.mkdir()
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make without any variable of the make that may run these tests."""
        self.note.write_text("")
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/nonexistent",
                "NOTE": str(self.note),
                "BASE": str(self.python),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def noted(self) -> list[str]:
        return self.note.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_folder_with_a_space_is_installed_into_and_its_first_word_is_left_alone(
    checkout: Checkout, tmp_path: Path
) -> None:
    mine = tmp_path / "a/mine"
    mine.parent.mkdir()
    mine.write_text("")
    for _ in range(2):  # what is there already is looked at too
        done = checkout.make("installed", f"VENV={tmp_path}/a dir/x y", "TORCH=site")
        assert done.returncode == 0, done.stdout
        (ready,) = (tmp_path / "a dir/x y").glob(".shardmark-site-*")
        ready.unlink()
    assert "--system-site-packages" in checkout.noted()
    assert mine.exists()
    assert (tmp_path / "a dir/x y/bin/uv").exists()


def test_what_is_installed_is_installed_once_and_an_interrupted_installation_anew(
    checkout: Checkout,
) -> None:
    failing = checkout.note.with_name("note.fail")
    failing.touch()
    assert checkout.make("installed").returncode != 0
    failing.unlink()
    left = checkout.folder / ".venv/left"
    left.touch()
    assert checkout.make("installed").returncode == 0
    assert "venv" in checkout.noted()
    assert not left.exists()
    assert checkout.make("installed").returncode == 0
    assert checkout.noted() == []
    (checkout.folder / "requirements.txt").write_text("another lock")
    assert checkout.make("installed").returncode == 0
    assert "venv" in checkout.noted()


def test_another_lock_is_installed_although_python3_is_the_one_of_the_old_environment(
    checkout: Checkout,
) -> None:
    checkout.make("installed")
    with (checkout.folder / "requirements.txt").open("a") as lock:
        lock.write("# another lock\n")
    again = checkout.make("installed", "PYTHON=python3")
    assert again.returncode == 0, again.stdout
    assert list((checkout.folder / ".venv").glob(".shardmark-lock-*"))
    assert "venv" in checkout.noted()


@pytest.mark.parametrize("target", ["installed", "clean"])
@pytest.mark.parametrize("name", ["mine", "my folder", ".", "..", "link", "link/", "-mine"])
def test_what_make_did_not_create_is_never_deleted(
    checkout: Checkout, target: str, name: str
) -> None:
    theirs = checkout.folder / "theirs"
    for folder in ("mine", "my folder", "-mine", "theirs"):
        (checkout.folder / folder).mkdir()
        (checkout.folder / folder / "file").touch()
    (theirs / ".shardmark").touch()
    (checkout.folder / "link").symlink_to(theirs)
    before = sorted(checkout.folder.rglob("*"))
    done = checkout.make(target, f"VENV={name}")
    assert sorted(checkout.folder.rglob("*")) == before
    if target == "installed" or "link" in name:
        assert done.returncode != 0
        assert "shardmark: " in done.stdout
        assert "name " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["VENV="], "VENV is empty"),
        (["VENV=a:b"], "no colon"),
        (["VENV=~/x"], "write the folder in full"),
        (["TORCH=none"], "TORCH=none: it is lock"),
        (["PYTHON=no such python"], "there is no no such python here"),
    ],
)
def test_what_cannot_be_installed_is_one_message_and_nothing_is_made(
    checkout: Checkout, arguments: list[str], words: str
) -> None:
    before = sorted(checkout.folder.rglob("*"))
    done = checkout.make("installed", *arguments)
    assert done.returncode != 0
    assert words in done.stdout
    assert done.stdout.count("shardmark: ") == 1
    assert sorted(checkout.folder.rglob("*")) == before


def test_clean_removes_what_make_created(checkout: Checkout) -> None:
    for name in (".venv", "an environment"):
        assert checkout.make("installed", f"VENV={name}").returncode == 0
        assert checkout.make("clean", f"VENV={name}").returncode == 0
        assert not (checkout.folder / name).exists()


def test_clean_leaves_the_byte_code_of_environments_that_make_did_not_create(
    checkout: Checkout,
) -> None:
    theirs = checkout.folder / "some tools/theirs"
    kept, removed = theirs / "lib/__pycache__", checkout.folder / "tests/more/__pycache__"
    for folder in (kept, removed):
        folder.mkdir(parents=True)
        (folder / "a.pyc").touch()
    (theirs / "pyvenv.cfg").touch()
    assert checkout.make("clean").returncode == 0
    assert (kept / "a.pyc").exists()
    assert not removed.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", f"CONFIG={ODD}"],
        ["status", f"CONFIG={ODD}"],
        ["fetch", f"CONFIG={ODD}"],
        ["rerun", f"METRICS={ODD}"],
        ["bench", f"ROUNDS={ODD}"],
        ["installed", f"VENV={ODD.replace('/', '')}"],
    ],
)
def test_a_variable_reaches_the_program_as_it_was_given(
    checkout: Checkout, arguments: list[str]
) -> None:
    assert checkout.make("installed").returncode == 0
    bin = checkout.folder / ".venv/bin"
    shutil.copy(bin / "python", bin / "snakemake")
    done = checkout.make(*arguments)
    assert done.returncode == 0, done.stdout
    assert any(line.endswith(ODD) for line in checkout.noted())
    assert not list(checkout.folder.rglob("made"))


def test_gpu_counts_are_a_list(checkout: Checkout) -> None:
    done = checkout.make("bench", "GPUS=1 2")
    assert done.returncode == 0, done.stdout
    assert checkout.noted()[-3:] == ["--gpus", "1", "2"]
