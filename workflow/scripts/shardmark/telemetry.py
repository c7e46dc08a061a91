"""One sampler process a node: what the cell's devices did, beside the training and not in it.

NVML where there are GPUs, psutil for the cell's processes where there are none. Samples carry the
monotonic clock, which is one for all processes of a node, so that they can be cut to the steady
window afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from shardmark.errors import UserError
from shardmark.tether import tethered

COLUMNS = (
    "monotonic_s",
    "device",
    "utilization_pct",
    "memory_used_bytes",
    "power_w",
    "energy_j",
    "sm_clock_mhz",
    "temperature_c",
    "throttle_mask",
)
_RAPL = Path("/sys/class/powercap")


class GpuProbe:
    """The GPUs with these UUIDs, through NVML."""

    def __init__(self, uuids: Sequence[str]) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handles = {uuid: pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a GPU; what a GPU cannot tell is left out."""
        nvml = self._nvml
        for uuid, handle in self._handles.items():
            yield {
                "monotonic_s": time.monotonic(),
                "device": uuid,
                "energy_j": self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle, 1e-3),
                "power_w": self._ask(nvml.nvmlDeviceGetPowerUsage, handle, 1e-3),
                "utilization_pct": self._ask(
                    lambda h: nvml.nvmlDeviceGetUtilizationRates(h).gpu, handle
                ),
                "memory_used_bytes": self._ask(
                    lambda h: nvml.nvmlDeviceGetMemoryInfo(h).used, handle
                ),
                "sm_clock_mhz": self._ask(
                    lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM), handle
                ),
                "temperature_c": self._ask(
                    lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU), handle
                ),
                "throttle_mask": self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle),
            }

    def _ask(self, question: Any, handle: Any, unit: float | None = None) -> float | int | None:
        try:
            answer: float | int = question(handle)
        except self._nvml.NVMLError:
            return None
        return answer if unit is None else answer * unit


class CpuProbe:
    """The cell's own processes: the descendants of its launcher, less this sampler."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._busy: dict[int, float] = {}
        self._then = time.monotonic()
        self._cores = psutil.cpu_count() or 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row: share of all cores, resident memory, and energy where RAPL is readable."""
        now = time.monotonic()
        busy: dict[int, float] = {}
        resident = 0
        for process in self._root.children(recursive=True):
            if process.pid == os.getpid():
                continue
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                busy[process.pid] = times.user + times.system
                resident += process.memory_info().rss
        spent = sum(seconds - self._busy.get(pid, 0.0) for pid, seconds in busy.items())
        elapsed = now - self._then
        self._busy, self._then = busy, now
        yield {
            "monotonic_s": now,
            "device": "cpu",
            "utilization_pct": 100 * spent / elapsed / self._cores if elapsed > 0 else None,
            "memory_used_bytes": resident,
            "energy_j": rapl_energy_j(),
        }


def rapl_energy_j(root: Path = _RAPL) -> float | None:
    """Energy counter of all processor packages, J; None where RAPL cannot be read."""
    total = None
    for package in sorted(root.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") != 1:  # a part of a package, counted in it already
            continue
        try:
            total = (total or 0.0) + int((package / "energy_uj").read_text()) * 1e-6
        except (OSError, ValueError):
            return None
    return total


def visible_gpus(count: int) -> list[str]:
    """UUIDs of the first ``count`` GPUs that CUDA would see here, in its order (by bus)."""
    import pynvml

    pynvml.nvmlInit()
    every = [
        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(pynvml.nvmlDeviceGetCount())
    ]
    choice = os.environ.get("CUDA_VISIBLE_DEVICES")
    if choice is None:
        return every[:count]
    chosen = []
    for part in filter(None, (part.strip() for part in choice.split(","))):
        if part.isdigit():
            chosen += every[int(part) : int(part) + 1]
        else:
            chosen += [uuid for uuid in every if uuid.startswith(part)]
    return chosen[:count]


def gpu_facts(uuid: str) -> dict[str, Any]:
    """What NVML says of a GPU that does not change while a cell runs."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    facts: dict[str, Any] = {
        "name": pynvml.nvmlDeviceGetName(handle),
        "memory_total_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    }
    with contextlib.suppress(pynvml.NVMLError):
        facts["power_limit_w"] = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    return facts


@contextlib.contextmanager
def sampling(target: Path, interval_s: float, gpus: Sequence[str] | None) -> Iterator[None]:
    """Sample into ``target`` (CSV) while inside, from a process of its own.

    Args:
        target: file to write.
        interval_s: seconds between samples.
        gpus: UUIDs of the GPUs to watch, or None for the processes this one starts.

    Raises:
        UserError: if the sampler ended before it was to.
    """
    command = [sys.executable, "-m", "shardmark.telemetry", "--output", str(target)]
    command += ["--interval", str(interval_s), "--parent", str(os.getpid())]
    if gpus is not None:
        command += ["--gpus", *gpus]
    scripts = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")]))
    sampler = subprocess.Popen(tethered(command), env=os.environ | {"PYTHONPATH": path})
    try:
        yield
        if sampler.poll() is not None:
            raise UserError(
                f"the sampler of the devices ended early, with exit code {sampler.returncode} (its "
                "last words are above), so there are no whole samples; run it again"
            )
    finally:
        sampler.terminate()
        sampler.wait()


def main() -> None:
    """Sample until ended, or until the process that wanted the samples is gone."""
    parser = argparse.ArgumentParser(description="samples the devices of one cell on one node")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--interval", type=float, required=True, help="seconds between samples")
    parser.add_argument("--parent", type=int, required=True, help="process whose cell is watched")
    parser.add_argument("--gpus", nargs="+", help="UUIDs; without them the cell's processes")
    arguments = parser.parse_args()
    probe = GpuProbe(arguments.gpus) if arguments.gpus else CpuProbe(arguments.parent)
    with arguments.output.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        due = time.monotonic()
        while os.getppid() == arguments.parent:
            table.writerows(probe.rows())
            file.flush()
            due += arguments.interval
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
