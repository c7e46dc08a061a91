"""Check whether torch sees the GPUs that cells need, and if not, why.

This module imports torch only in a separate process, and only when needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel

from shardmark.errors import UserError
from shardmark.measurement.telemetry import gpu_facts, visible_gpus

# If the driver is too old, torch only warns; it raises the reason when CUDA is initialised.
_ASK_TORCH = """
import json, warnings
warnings.simplefilter("ignore")
import torch
error = None
try:
    torch.cuda.init()
except Exception as exception:
    error = str(exception)
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "hip": torch.version.hip,
    "count": torch.cuda.device_count() if error is None else 0,
    "error": error,
}))
"""


ROCM = (
    "torch {version} is a build for ROCm {hip}: energy, power, clocks and memory are read through "
    "NVML, which knows no GPU of AMD's, so nothing would be measured; run on NVIDIA GPUs"
)


# GPU memory per rank of the parity gate: a CUDA context, the libraries' workspaces and a small
# network. Our choice, not measured.
GATE_RANK_BYTES = 2 * 2**30


def count_gate_ranks() -> int:
    """Return how many ranks of the parity gate fit this machine's GPUs at once; 0 without NVML."""
    try:
        gpus = [gpu_facts(uuid)["memory_total_bytes"] for uuid in visible_gpus()]
    except UserError:
        return 0
    return sum((memory or 0) // GATE_RANK_BYTES for memory in gpus)


# Importing torch from a slow file system takes minutes.
ASK_S = 300.0


class TorchCuda(BaseModel):
    """What torch reports: its version, its CUDA version, the GPUs it sees, or why it sees none."""

    version: str
    cuda: str | None
    hip: str | None = None
    count: int
    error: str | None


def ask_torch() -> TorchCuda | str:
    """Return what torch reports, or the last line of output if its import fails."""
    command = [sys.executable, "-c", _ASK_TORCH]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except subprocess.TimeoutExpired:
        return f"it took more than {ASK_S:.0f} s"
    if finished.returncode:
        return (finished.stderr.strip().splitlines() or ["no message"])[-1]
    return TorchCuda.model_validate(json.loads(finished.stdout.splitlines()[-1]))


def why_too_few(needed: int, answer: TorchCuda | str, *, driver: bool, visible: str | None) -> str:
    """Return why ``needed`` GPUs are not available, and what to do; empty if they are.

    Args:
        needed: GPUs of the largest cell.
        answer: what ``ask_torch`` returned.
        driver: whether an NVIDIA driver is installed here.
        visible: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    if isinstance(answer, str):
        return f"torch cannot be imported ({answer})"
    if answer.hip:
        return ROCM.format(version=answer.version, hip=answer.hip)
    if answer.count >= needed:
        return ""
    if answer.count:
        limit = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        return (
            f"torch sees {answer.count} GPU(s){limit}, and the largest cell needs {needed}; "
            "leave larger counts out of matrix.gpus"
        )
    if answer.cuda is None:
        return (
            f"torch {answer.version} is a build for CPUs only; install a CUDA build, or keep the "
            "machine's own torch with: make TORCH=site"
        )
    if not driver:
        return (
            f"this machine has no NVIDIA driver (torch {answer.version} is built for CUDA "
            f"{answer.cuda}); run on a machine with GPUs, or set cluster.device to cpu"
        )
    if visible is not None and not visible.strip():
        return "CUDA_VISIBLE_DEVICES is set and empty, which hides every GPU"
    return (
        f"the driver does not serve torch {answer.version}, which is built for CUDA {answer.cuda}: "
        f"{answer.error or 'no GPU found'}"
    )


def has_driver() -> bool:
    """Whether an NVIDIA driver is installed here."""
    return Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))


def why_no_gpus(needed: int) -> str:
    """Return why this machine cannot run a cell of ``needed`` GPUs; empty if it can."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if reason := why_too_few(needed, ask_torch(), driver=has_driver(), visible=visible):
        return reason
    try:
        visible_gpus(needed)
    except UserError as error:
        return str(error)
    return ""
