"""What a cell ran on and with: versions, machine, devices."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "torchvision",
    "deepspeed",
    "fairscale",
    "snakemake",
    "snakemake-executor-plugin-slurm",
    "nvidia-ml-py",
    "numpy",
    "pandas",
)
# Only variables that change how a cell runs; anything else may hold a secret.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR")
_PREFIXES = ("NCCL_", "GLOO_", "TORCH_NCCL_")
_SLURM = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES")


def software_versions() -> dict[str, str | None]:
    """Installed versions of what can change a result; None where a package is missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def host_environment() -> dict[str, Any]:
    """The machine: name, kernel, processor, cores, memory."""
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "memory_total_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": software_versions(),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in _VARIABLES or name in _SLURM or name.startswith(_PREFIXES)
        },
    }


def torch_environment(device: Any, backend: str) -> dict[str, Any]:
    """What only a process with torch knows: CUDA, cuDNN, NCCL, devices, threads."""
    import torch

    found: dict[str, Any] = {
        "backend": backend,
        "torch_cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        backends: Any = torch.backends
        nccl: Any = torch.cuda.nccl
        found |= {
            "cudnn": backends.cudnn.version(),
            "cudnn_benchmark": backends.cudnn.benchmark,
            "nccl": ".".join(map(str, nccl.version())),
            "gpu": torch.cuda.get_device_name(device),
        }
    return found


def provenance(root: Path) -> dict[str, Any]:
    """The commit the code stands at, and whether it was changed since; null outside git."""
    return {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "command": [sys.executable, *sys.argv],
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), None)
