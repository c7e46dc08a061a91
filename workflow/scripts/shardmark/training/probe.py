"""A short speed test of each device before a cell trains.

It reveals a slow GPU, which would otherwise count against the strategy that ran on it. A cell's
figures are also compared with these measurements, not with a data sheet.
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
    """The size of a probe: side of the square matrices, bytes copied and reduced, repetitions."""

    side: int
    copy_bytes: int
    all_reduce_bytes: int
    repetitions: int


# Large enough to fill the device; all together take about a second.
GPU_SIZE = Size(side=8192, copy_bytes=2**30, all_reduce_bytes=2**26, repetitions=20)
CPU_SIZE = Size(side=256, copy_bytes=2**25, all_reduce_bytes=2**18, repetitions=5)


def probe(runtime: Runtime, precision: str) -> list[Probe]:
    """Probe the devices of this process; a collective.

    Args:
        runtime: this process.
        precision: the workload's precision, used to multiply matrices.

    Returns:
        one probe per device of this process.
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
    """The speed of a dense square product; TF32 is used if the process allows it.

    On a CPU, it is the speed in the cell's precision or in float32, whichever is higher. An AMD
    EPYC without instructions for bfloat16 multiplied at 1.3 GFLOP/s in bfloat16 and at 50 in
    float32 (one thread, torch 2.15), and a whole cell in bfloat16 was faster than the 1.3.
    """
    dtypes = {AUTOCAST_DTYPES.get(precision, torch.float32)}
    if device.type == "cpu":
        dtypes.add(torch.float32)
    return max(_product_tflops(device, dtype) for dtype in dtypes)


def _product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    size = _size(device)
    left, right = torch.randn(2, size.side, size.side, device=device).to(dtype)
    out = torch.empty_like(left)
    seconds = _median_s(device, lambda: torch.mm(left, right, out=out))
    return float(2 * size.side**3 / seconds / 1e12)


def _copy_gb_per_s(device: torch.device) -> float:
    """The speed of a copy within the device's memory, counting bytes read and bytes written."""
    size = _size(device)
    source = torch.zeros(size.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = _median_s(device, lambda: target.copy_(source))
    return 2 * size.copy_bytes / seconds / 1e9


def all_reduce_gb_per_s(runtime: Runtime) -> float | None:
    """The bus bandwidth of an all-reduce in GB/s, as nccl-tests defines it; a collective.

    It is 2 (n - 1) / n times the message size, divided by the time. None for a single rank, which
    has nothing to reduce.
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
