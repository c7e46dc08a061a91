"""Check Python, the packages and torch of this interpreter.

A separate process imports torch.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shardmark.doctor.finding import Finding
from shardmark.doctor.limited_run import run_limited
from shardmark.measurement import gpu_check
from shardmark.measurement.gpu_check import ask_torch, has_driver, why_too_few
from shardmark.strategies import PACKAGES

REPORTED_PACKAGES = ("snakemake", "snakemake-executor-plugin-slurm", *PACKAGES)


def check_packages(project: Path) -> Iterator[Finding]:
    """Compare the installed versions with those that the project requires.

    Args:
        project: its pyproject.toml.
    """
    required = tomllib.loads(project.read_text())["project"]
    version, range_ = platform.python_version(), required["requires-python"]
    is_supported = version in SpecifierSet(range_, prereleases=True)
    yield Finding(
        "ok" if is_supported else "FAIL",
        "python",
        f"{version} ({sys.executable})",
        "" if is_supported else f"the project needs {range_}: make PYTHON=python3.12 demo",
    )
    problems = []
    for requirement in map(Requirement, required["dependencies"]):
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    for problem in problems:
        yield Finding("FAIL", "packages", problem, "install from the lock: make demo does")
    if not problems:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in REPORTED_PACKAGES)
        yield Finding("ok", "packages", f"all that the project asks for; {versions}")


def check_torch(needed: int) -> Iterator[Finding]:
    """Check whether torch and torchvision import, and torch sees ``needed`` GPUs (0 on CPUs)."""
    torch_answer = ask_torch()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if reason := why_too_few(needed, torch_answer, driver=has_driver(), visible=visible):
        here = "on a cluster's nodes: make doctor SLURM=1" if shutil.which("sbatch") else ""
        yield Finding("FAIL", "torch", reason, here)
    elif not isinstance(torch_answer, str):
        build = f"CUDA {torch_answer.cuda}" if torch_answer.cuda else "for CPUs"
        yield Finding(
            "ok", "torch", f"{torch_answer.version}, {build}, sees {torch_answer.count} GPU(s)"
        )
    if isinstance(torch_answer, str):
        return
    program = "import torchvision; print(torchvision.__version__)"
    imported = run_limited([sys.executable, "-c", program], "the import", gpu_check.ASK_S)
    if imported.returncode:
        message = (imported.stderr.strip().splitlines() or ["no message"])[-1]
        advice = "install the torchvision that was built for this torch"
        yield Finding("FAIL", "torchvision", f"cannot be imported ({message})", advice)
    else:
        yield Finding("ok", "torchvision", imported.stdout.strip())
