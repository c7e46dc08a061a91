"""Record what a cell ran on and with: versions, machine, devices."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from shardmark.measurement.telemetry import limit_answer_time
from shardmark.metrics import Environment, Provenance
from shardmark.strategies import PACKAGES

_PACKAGES = (
    "torch",
    "torchvision",
    *PACKAGES,
    "snakemake",
    "snakemake-executor-plugin-slurm",
    "nvidia-ml-py",
    "numpy",
    "pandas",
)
# Only variables that change how a cell runs; others may contain a secret.
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "LD_PRELOAD",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
_PREFIXES = (
    "CUDNN_",
    "FI_",
    "GLOO_",
    "KMP_",
    "NCCL_",
    "OMP_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_",
    "UCX_",
)
# Where a cache is does not change how a cell runs.
_FOLDERS = ("_DIR", "_HOME")
_SLURM = ("SLURM_JOB_ID", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES")


def software_versions(packages: Sequence[str] = ()) -> dict[str, str | None]:
    """Return installed versions of what can change a result; None for a missing package.

    Args:
        packages: those that a strategy of the user's own uses.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def host_environment(packages: Sequence[str] = ()) -> Environment:
    """Return facts about the machine: name, kernel, processor, cores, memory."""
    return {
        "host": platform.node(),
        "kernel": platform.release(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "memory_total_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": software_versions(packages),
        "variables": variables(),
    }


def variables() -> dict[str, str]:
    """Return the environment variables that change how a cell runs, and those of its Slurm job."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in _VARIABLES
        or name in _SLURM
        or (name.startswith(_PREFIXES) and not name.endswith(_FOLDERS))
    }


def torch_environment(device: Any, backend: str, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return what only a rank knows: CUDA, cuDNN, NCCL, devices, their topology, variables."""
    import torch

    environment: dict[str, Any] = {
        "backend": backend,
        "torch_cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        # The rank's own versions: in a container they differ from the launcher's.
        "versions": software_versions(packages),
        "variables": variables(),
    }
    if device.type == "cuda":
        backends: Any = torch.backends
        nccl: Any = torch.cuda.nccl
        environment |= {
            "cudnn": backends.cudnn.version(),
            "cudnn_benchmark": backends.cudnn.benchmark,
            "nccl": ".".join(map(str, nccl.version())),
            "gpu": torch.cuda.get_device_name(device),
        } | driver_and_topology()
    return environment


@limit_answer_time
def driver_and_topology() -> dict[str, Any]:
    """Return the driver's version, and how each pair of this machine's GPUs is connected.

    A connection is NVML's name for the nearest common ancestor in the PCI tree, and whether NVLink
    joins the two.
    """
    import pynvml

    pynvml.nvmlInit()
    ancestors = {
        value: name.removeprefix("NVML_TOPOLOGY_").lower()
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_TOPOLOGY_")
    }
    handles = [
        pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
    ]
    pairs = []
    for (one, first), (other, second) in itertools.combinations(enumerate(handles), 2):
        path = nvlink = None
        with contextlib.suppress(pynvml.NVMLError):
            path = ancestors[pynvml.nvmlDeviceGetTopologyCommonAncestor(first, second)]
            status = pynvml.nvmlDeviceGetP2PStatus(first, second, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            nvlink = status == pynvml.NVML_P2P_STATUS_OK
        pairs.append({"gpus": [one, other], "path": path, "nvlink": nvlink})
    return {"driver": pynvml.nvmlSystemGetDriverVersion(), "topology": pairs}


def provenance(root: Path) -> Provenance:
    """Return which code ran, and how it was started; git's values are null if git fails.

    ``git_diff_sha256`` is the checksum of ``git diff HEAD``, None if nothing was changed. ``locks``
    has the checksums of the files that pin every package.
    """
    diff = _git(root, "diff", "HEAD", "--binary")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
        "git_diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "locks": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.glob("requirements*.txt"))
        },
        "command": [sys.executable, *sys.argv],
        "folder": str(Path.cwd()),
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            encoding="utf-8",
            # The diff may contain files in another encoding.
            errors="backslashreplace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), None)
