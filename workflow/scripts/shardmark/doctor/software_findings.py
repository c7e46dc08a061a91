"""Check Python, the packages and torch of this interpreter.

A separate process imports torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shardmark.doctor.finding import Finding
from shardmark.measurement.gpu_check import ask_torch, has_driver, why_too_few
from shardmark.strategies import PACKAGES

SHOWN = ("snakemake", "snakemake-executor-plugin-slurm", *PACKAGES)


def python_and_packages(project: Path) -> Iterator[Finding]:
    """Compare the installed versions with those that the project requires.

    Args:
        project: its pyproject.toml.
    """
    asked = tomllib.loads(project.read_text())["project"]
    version, range_ = platform.python_version(), asked["requires-python"]
    good = version in SpecifierSet(range_, prereleases=True)
    yield Finding(
        "ok" if good else "FAIL",
        "python",
        f"{version} ({sys.executable})",
        "" if good else f"the project needs {range_}: make PYTHON=python3.12 demo",
    )
    wrong = []
    for requirement in map(Requirement, asked["dependencies"]):
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    for one in wrong:
        yield Finding("FAIL", "packages", one, "install from the lock: make demo does")
    if not wrong:
        shown = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
        yield Finding("ok", "packages", f"all that the project asks for; {shown}")


def torch_build(needed: int) -> Iterator[Finding]:
    """Check whether torch and torchvision import, and torch sees ``needed`` GPUs (0 on CPUs)."""
    said = ask_torch()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if reason := why_too_few(needed, said, driver=has_driver(), visible=visible):
        here = "on a cluster's nodes: make doctor SLURM=1" if shutil.which("sbatch") else ""
        yield Finding("FAIL", "torch", reason, here)
    elif not isinstance(said, str):
        build = f"CUDA {said.cuda}" if said.cuda else "for CPUs"
        yield Finding("ok", "torch", f"{said.version}, {build}, sees {said.count} GPU(s)")
    if isinstance(said, str):
        return
    ask = "import torchvision; print(torchvision.__version__)"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        advice = "install the torchvision that was built for this torch"
        yield Finding("FAIL", "torchvision", f"cannot be imported ({last})", advice)
    else:
        yield Finding("ok", "torchvision", asked.stdout.strip())
