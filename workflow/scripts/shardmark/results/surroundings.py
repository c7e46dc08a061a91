"""The surroundings of a cell that can change its speed: CPUs, threads, versions, variables.

They should be the same for all strategies of a comparison. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shardmark.metrics import HostUse, Metrics
from shardmark.strategies import PACKAGES

UNKNOWN = "unknown"
NOT_SET = "not set"
# CUDA_VISIBLE_DEVICES depends on which GPUs a job was given. The number of torch's threads already
# shows the effect of OMP_NUM_THREADS. Only DeepSpeed reads DS_ACCELERATOR, and its scripts set it.
_NOT_COMPARED = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "OMP_NUM_THREADS")
_VERSIONS = ("python", "torch", "torchvision", "numpy", *PACKAGES)
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
class ComparedFact:
    """One recorded fact that is compared between cells.

    Attributes:
        label: its name, in words.
        values: returns the distinct values of a cell's ranks.
        shared_out: whether ranks get equal shares of what their node has, so that a process with
            all replicas gets all of it.
    """

    label: str
    values: Callable[[Metrics], list[Any]]
    shared_out: bool = False


def facts_to_compare(results: Iterable[Metrics]) -> list[ComparedFact]:
    """Return all facts to compare, including each environment variable that any cell had."""
    return [
        ComparedFact(
            "CPU threads of torch in a rank", _of_ranks(lambda use: use.torch_threads), True
        ),
        ComparedFact("CPUs that a rank may run on", _of_ranks(lambda use: use.cpus), True),
        ComparedFact("CPU quota", _of_ranks(_quota)),
        *[ComparedFact(f"version of {name}", _version(name)) for name in _VERSIONS],
        *[ComparedFact(label, _environment(key)) for key, label in _ENVIRONMENT.items()],
        ComparedFact("connections between GPUs of a node", _connections),
        *[ComparedFact(name, _variable(name)) for name in variables_to_compare(results)],
    ]


def variables_to_compare(results: Iterable[Metrics]) -> list[str]:
    """Return each environment variable that any cell had, except what only its job decides."""
    variables = {name for one in results for name in one.environment.get("variables", {})}
    return [
        name
        for name in sorted(variables)
        if name not in _NOT_COMPARED and not name.startswith("SLURM_")
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


def _connections(metrics: Metrics) -> list[Any]:
    """Return the connections between a node's GPUs: NVLink, or the nearest common part of PCI."""
    pairs = metrics.environment.get("topology", [])
    names = {"NVLink" if pair.get("nvlink") else pair.get("path") or UNKNOWN for pair in pairs}
    return [", ".join(sorted(map(str, names))) or None]


def _variable(name: str) -> Callable[[Metrics], list[Any]]:
    return lambda metrics: [metrics.environment.get("variables", {}).get(name, NOT_SET)]
