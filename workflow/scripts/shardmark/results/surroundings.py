"""What was recorded around a cell and can change its speed: CPUs, threads, versions, variables.

The strategies of a comparison should have it all alike. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shardmark.metrics import HostUse, Metrics

UNKNOWN = "unknown"
# CUDA_VISIBLE_DEVICES names what a job was given. What OMP_NUM_THREADS did, torch's threads say.
# DeepSpeed alone reads DS_ACCELERATOR, and its scripts set it.
_NOT_COMPARED = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "OMP_NUM_THREADS")
_VERSIONS = ("python", "torch", "torchvision", "numpy")
_ENVIRONMENT = {
    "torch_cuda": "CUDA of torch",
    "cudnn": "cuDNN",
    "nccl": "NCCL",
    "driver": "driver",
    "backend": "backend",
    "kernel": "kernel",
    "cpu": "processor",
    "cpu_cores": "CPUs of the machine",
}


@dataclass(frozen=True)
class Fact:
    """One thing that was recorded.

    Attributes:
        label: in words.
        values: the different ones in a cell, of its ranks.
        shared_out: whether ranks get equal parts of what their node has, so that a process that has
            all replicas gets all of it.
    """

    label: str
    values: Callable[[Metrics], list[Any]]
    shared_out: bool = False


def facts_of(results: Iterable[Metrics]) -> list[Fact]:
    """What there is to compare, each variable that a cell had among it."""
    variables = {name for one in results for name in one.environment.get("variables", {})}
    return [
        Fact("CPU threads of torch in a rank", _of_ranks(lambda use: use.torch_threads), True),
        Fact("CPUs that a rank may run on", _of_ranks(lambda use: use.cpus), True),
        Fact("CPU quota", _of_ranks(_quota)),
        *[Fact(f"version of {name}", _version(name)) for name in _VERSIONS],
        *[Fact(label, _environment(key)) for key, label in _ENVIRONMENT.items()],
        *[
            Fact(name, _variable(name))
            for name in sorted(variables)
            if name not in _NOT_COMPARED and not name.startswith("SLURM_")
        ],
    ]


def _of_ranks(value: Callable[[HostUse], Any]) -> Callable[[Metrics], list[Any]]:
    def values(metrics: Metrics) -> list[Any]:
        each = [value(use) for use in metrics.host] or [None]
        return list(dict.fromkeys(UNKNOWN if one is None else one for one in each))

    return values


def _quota(use: HostUse) -> str | None:
    if use.cpu_periods is None:
        return None
    return "none" if use.cpu_quota is None else f"{use.cpu_quota:g} CPUs"


def _version(name: str) -> Callable[[Metrics], list[Any]]:
    return lambda metrics: [metrics.environment.get("versions", {}).get(name)]


def _environment(key: str) -> Callable[[Metrics], list[Any]]:
    return lambda metrics: [metrics.environment.get(key)]


def _variable(name: str) -> Callable[[Metrics], list[Any]]:
    return lambda metrics: [metrics.environment.get("variables", {}).get(name, "not set")]
