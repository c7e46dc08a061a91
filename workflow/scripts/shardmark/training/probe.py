"""A short probe of each device before a cell trains: what it can do today.

A GPU that is slow shows here, and is not blamed on the strategy that ran on it; and a cell's
figures are held against these, not against a data sheet.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from shardmark.measurement.clocks import StepClock
from shardmark.metrics import Probe
from shardmark.training.runtime import Runtime
from shardmark.workload.precision import AUTOCAST_DTYPES

WARM_UP = 3


@dataclass(frozen=True)
class Size:
    """How much a probe does: side of square matrices, bytes copied and reduced, repetitions."""

    side: int
    copy_bytes: int
    all_reduce_bytes: int
    repetitions: int


# Large enough to fill the device, short enough to be a second together.
GPU_SIZE = Size(side=8192, copy_bytes=2**30, all_reduce_bytes=2**26, repetitions=20)
CPU_SIZE = Size(side=256, copy_bytes=2**25, all_reduce_bytes=2**18, repetitions=5)


def probe(runtime: Runtime, precision: str) -> list[Probe]:
    """Probe the devices of this process; a collective.

    Args:
        runtime: this process.
        precision: the workload's, in which matrices are multiplied.

    Returns:
        One for each device of this process.
    """
    if runtime.device.type == "cpu":
        devices = [runtime.device]
    elif len(runtime.replicas) > 1 and not runtime.shared_device:
        devices = [torch.device("cuda", index) for index in runtime.replicas]
    else:
        devices = [runtime.device]
    reduced = all_reduce_gb_per_s(runtime)
    return [
        Probe(
            device=device.index or 0,
            uuid=uuid_of(device),
            matmul_tflops=_matmul_tflops(device, precision),
            copy_gb_per_s=_copy_gb_per_s(device),
            all_reduce_gb_per_s=reduced,
        )
        for device in devices
    ]


def uuid_of(device: torch.device) -> str | None:
    """The GPU's UUID as NVML writes it; None for a CPU."""
    if device.type == "cpu":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _size(device: torch.device) -> Size:
    return CPU_SIZE if device.type == "cpu" else GPU_SIZE


def _matmul_tflops(device: torch.device, precision: str) -> float:
    """Of a dense square product; TF32 is whatever the process has allowed."""
    size = _size(device)
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    left, right = torch.randn(2, size.side, size.side, device=device).to(dtype)
    out = torch.empty_like(left)
    seconds = _median_s(device, lambda: torch.mm(left, right, out=out))
    return float(2 * size.side**3 / seconds / 1e12)


def _copy_gb_per_s(device: torch.device) -> float:
    """Bytes read and written, within the device's memory."""
    size = _size(device)
    source = torch.zeros(size.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = _median_s(device, lambda: target.copy_(source))
    return 2 * size.copy_bytes / seconds / 1e9


def all_reduce_gb_per_s(runtime: Runtime) -> float | None:
    """Bus bandwidth as nccl-tests has it: 2 (n - 1) / n of the message over the time, GB/s.

    A collective; None where a single rank has nothing to reduce.
    """
    ranks = runtime.world_size
    if ranks == 1:
        return None
    size = _size(runtime.device)
    message = torch.zeros(size.all_reduce_bytes // 4, device=runtime.device)
    seconds = _median_s(runtime.device, lambda: dist.all_reduce(message))
    return 2 * (ranks - 1) / ranks * size.all_reduce_bytes / seconds / 1e9


def _median_s(device: torch.device, work: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        work()
    clock = StepClock(device)
    for _ in range(_size(device).repetitions):
        work()
        clock.mark()
    return statistics.median(clock.step_ms()) / 1000
