"""shellcheck over every shell text of the project: scripts, rules, recipes, a site's set-up."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from own_files import ONE_ALL_REDUCE, TRAINING, own_workload
from shardmark.launching.site import setup_script
from small_matrix import ROOT
from test_workflow import CONFIG, MATRIX, copy_project

pytestmark = pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="needs shellcheck (apt-get install shellcheck)"
)


def check(text: str, shell: str = "bash") -> None:
    """Fail with what shellcheck says of a text."""
    command = ["shellcheck", f"--shell={shell}", "--format=gcc", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    numbered = "\n".join(f"{n} {line}" for n, line in enumerate(text.splitlines(), 1))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{numbered}"


def scripts() -> Iterator[Path]:
    """The files that begin as a shell's scripts do."""
    for folder in (".ci", "benchmarks", "config", "profiles", "tests", "workflow"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes()[:40]):
                yield path


SCRIPTS = [path.relative_to(ROOT).as_posix() for path in scripts()]


def test_all_scripts_are_found() -> None:
    assert SCRIPTS == [
        ".ci/run",
        "profiles/slurm/controller.sbatch",
        "tests/slurm/install.sh",
        "tests/stand_ins/apptainer",
        "workflow/environment.sh",
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_sound(name: str) -> None:
    text = (ROOT / name).read_text()
    check(text, "bash" if "bash" in text.splitlines()[0] else "sh")


def targets() -> list[str]:
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    return phony[1].replace("\\\n", " ").split()


@pytest.mark.parametrize("target", targets())
def test_a_recipe_is_sound(target: str) -> None:
    given = ["CONFIG=a", "METRICS=a", "GPUS=1 2", "ROUNDS=1", "SLURM=1", "WATCH=1"]
    recipe = subprocess.check_output(
        ["make", "--dry-run", "--no-print-directory", target, *given], cwd=ROOT, text=True
    )
    # As .SHELLFLAGS has it; the variables come from make.
    check('set -euo pipefail\n: "${GPUS=}" "${METRICS=}"\n' + recipe)


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ("a b", ["a b"]),
        ("c  d", ["c", "d"]),
        ("c", ["c"]),
        ("c missing", ["c missing"]),
        ("", []),
    ],
)
def test_make_takes_one_overlay_or_several(given: str, files: list[str], tmp_path: Path) -> None:
    for name in ("a b", "c", "d"):
        (tmp_path / name).touch()
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    makefile = (ROOT / "Makefile").read_text().replace("plan: installed", "plan:")
    (tmp_path / "Makefile").write_text(f"{makefile}\nexport PATH := {tmp_path}:$(PATH)\n")
    said = subprocess.check_output(
        ["make", "--no-print-directory", "plan", f"CONFIG={given}"], cwd=tmp_path, text=True
    ).splitlines()
    assert said[1:] == (["--configfile", *files] if files else [])


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A command of each rule that a matrix or a report runs, as Snakemake gives it to the shell."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    text = MATRIX.replace("device: cpu", "device: cpu, block: pinned")
    images = "name: synthetic, train_images: 64, test_images: 16"
    text = text.replace(images, "name: cifar10", 1)
    name = yaml.safe_load(text)["matrix"]["workloads"][0]
    (project.folder / "training.py").write_text(TRAINING)
    matrix = yaml.safe_load(text)
    matrix["workloads"]["mine"] = own_workload(Path("training.py"))
    matrix["matrix"]["workloads"].append("mine")
    matrix["strategies"] = {"by_hand": {"file": str(ONE_ALL_REDUCE)}}
    matrix["matrix"]["strategies"].append("by_hand")
    matrix["largest_batch"] = {"workloads": [name], "most": 2}
    (project.folder / CONFIG).write_text(yaml.safe_dump(matrix))
    plan = project.matrix("-n", "-p").stdout + project.run("report", "-n", "-p").stdout
    commands = re.findall(r"rule (\w+):\n(?:    .*\n)*Shell command: (.*)\n", plan)
    return {rule: command for rule, command in commands if command != "None"}


def test_the_command_of_every_rule_is_sound(commands: dict[str, str]) -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    named = re.findall(r"^ *rule (\w+):\n(?:(?! *rule ).*\n)*? *shell:", rules, re.M)
    assert commands.keys() == set(named)
    check("\n".join(commands.values()))


def test_what_stands_around_a_set_up_is_sound() -> None:
    script = setup_script("export A=1")
    watch = script.split("'")[1]
    check(watch)
    check(script.replace(watch, "true"))
