"""Measure the host while steps are timed, to explain why a device waits for it. No torch import."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmark.measurement.cpus import CpuGroup, as_ranges, read_groups
from shardmark.metrics import HostUse

_TASKS = Path("/proc/self/task")
_PRESSURE = Path("/proc/pressure/cpu")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Prefix of torch's backward threads, one per device (torch/csrc/autograd/engine.cpp).
_AUTOGRAD = "pt_autograd_"


@dataclass(frozen=True)
class HostReading:
    """Counters of this process and its machine at one moment.

    Attributes:
        wall_s: the monotonic clock.
        launching_cpu_s: CPU time of the threads that give the device its work: this thread, and
            autograd's.
        process_cpu_s: CPU time of all threads of the process, including those that have ended.
        involuntary_switches: how often the kernel took the CPU away from a launching thread.
        pressure_s: time since boot in which some task of the machine waited for a CPU; None if the
            kernel does not count it (Linux before 4.20, or without CONFIG_PSI).
        cpu_groups: the control groups of this process that have a CPU quota; None if they cannot be
            read.
    """

    wall_s: float
    launching_cpu_s: float
    process_cpu_s: float
    involuntary_switches: int
    pressure_s: float | None
    cpu_groups: Mapping[str, CpuGroup] | None = None


def read_host() -> HostReading:
    """Read the counters; call it from the thread that trains."""
    own = threading.get_native_id()
    launching_s, switches = time.thread_time(), _involuntary_switches(_TASKS / str(own))
    for task in _TASKS.iterdir():
        try:
            if (task / "comm").read_text().startswith(_AUTOGRAD):
                launching_s += _cpu_s(task)
                switches += _involuntary_switches(task)
        except OSError:  # the thread has ended meanwhile
            continue
    return HostReading(
        wall_s=time.monotonic(),
        launching_cpu_s=launching_s,
        process_cpu_s=time.process_time(),
        involuntary_switches=switches,
        pressure_s=_pressure_s(),
        cpu_groups=read_groups(),
    )


def host_use(
    rank: int, begin: HostReading, end: HostReading, torch_threads: int | None = None
) -> HostUse:
    """Return one rank's CPU use between two readings, both made by the thread that trains."""
    wall_s = end.wall_s - begin.wall_s
    pressure = None
    if begin.pressure_s is not None and end.pressure_s is not None:
        pressure = 100 * (end.pressure_s - begin.pressure_s) / wall_s
    return HostUse(
        rank=rank,
        launching_cpu_pct=100 * (end.launching_cpu_s - begin.launching_cpu_s) / wall_s,
        process_cpu_pct=100 * (end.process_cpu_s - begin.process_cpu_s) / wall_s,
        involuntary_switches_per_s=(end.involuntary_switches - begin.involuntary_switches) / wall_s,
        cpu_pressure_pct=pressure,
        cpus=len(os.sched_getaffinity(0)),
        cpu_list=as_ranges(os.sched_getaffinity(0)),
        torch_threads=torch_threads,
        **_quota_use(begin.cpu_groups, end.cpu_groups),
    )


def _quota_use(
    begin: Mapping[str, CpuGroup] | None, end: Mapping[str, CpuGroup] | None
) -> dict[str, Any]:
    """Return the use of the quota that ran out most often, or of the smallest if none ran out."""
    if begin is None or end is None or begin.keys() != end.keys():
        return {}
    uses = [
        {
            "cpu_quota": group.quota,
            "cpu_periods": group.periods - begin[name].periods,
            "cpu_periods_throttled": group.throttled - begin[name].throttled,
        }
        for name, group in end.items()
    ]
    none = {"cpu_periods": 0, "cpu_periods_throttled": 0}
    return max(
        uses, key=lambda use: (use["cpu_periods_throttled"], -use["cpu_quota"]), default=none
    )


def _cpu_s(task: Path) -> float:
    # Fields 14 and 15 of proc(5). They follow the name, which is in brackets and may have spaces.
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _involuntary_switches(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("nonvoluntary_ctxt"))


def _pressure_s(path: Path = _PRESSURE) -> float | None:
    try:
        some = path.read_text().splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6
