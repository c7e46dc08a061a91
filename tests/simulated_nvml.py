"""GPUs that NVML tells of, on a machine without any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest


@dataclass
class Gpu:
    """One of them; ``nvlink`` joins it to every other that has it too."""

    name: str = "NVIDIA H200"
    mig: bool | None = None
    nvlink: bool = True
    power_limit_w: float = 700
    throttle_mask: int = 0
    ecc_errors: int = 0
    memory_used: int = 0
    clock_mhz: int | None = None
    older_driver: bool = False
    ecc: bool = True


def simulate(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu]) -> None:
    """Let NVML tell of these, whose handles are their places and whose UUIDs are GPU-0, ..."""

    def mig_mode(handle: int) -> tuple[int, int]:
        if gpus[handle].mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(bool(gpus[handle].mig)), 0

    def clock(handle: int, kind: int, which: int) -> int:
        lowered = gpus[handle].clock_mhz
        if lowered is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return lowered if which == pynvml.NVML_CLOCK_ID_APP_CLOCK_TARGET else 1980

    def linked(one: int, other: int, which: int) -> int:
        return pynvml.NVML_P2P_STATUS_OK if gpus[one].nvlink and gpus[other].nvlink else 1

    def memory(handle: int, version: object = None) -> SimpleNamespace:
        return SimpleNamespace(total=141 * 2**30, used=gpus[handle].memory_used)

    def reasons(handle: int) -> int:
        if gpus[handle].older_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return gpus[handle].throttle_mask

    def ecc_errors(handle: int, kind: int, counter: int) -> int:
        if not gpus[handle].ecc:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpus[handle].ecc_errors

    answers: dict[str, Callable[..., Any]] = {
        "Init": lambda: None,
        "SystemGetDriverVersion": lambda: "580.65",
        "DeviceGetCount": lambda: len(gpus),
        "DeviceGetHandleByIndex": lambda index: index,
        "DeviceGetIndex": lambda handle: handle,
        "DeviceGetUUID": lambda handle: f"GPU-{handle}",
        "DeviceGetHandleByUUID": lambda uuid: int(uuid[-1]),
        "DeviceGetName": lambda handle: gpus[handle].name,
        "DeviceGetMemoryInfo": memory,
        "DeviceGetMigMode": mig_mode,
        "DeviceGetTopologyCommonAncestor": lambda one, other: pynvml.NVML_TOPOLOGY_SYSTEM,
        "DeviceGetP2PStatus": linked,
        "DeviceGetClock": clock,
        "DeviceGetMaxClockInfo": lambda handle, kind: 1980,
        "DeviceGetClockInfo": lambda handle, kind: 345,
        "DeviceGetTemperature": lambda handle, kind: 40,
        "DeviceGetTotalEnergyConsumption": lambda handle: 0,
        "DeviceGetPowerUsage": lambda handle: 75_000,
        "DeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=0),
        "DeviceGetCurrentClocksEventReasons": reasons,
        "DeviceGetCurrentClocksThrottleReasons": lambda handle: gpus[handle].throttle_mask,
        "DeviceGetComputeRunningProcesses": lambda handle: [],
        "DeviceGetEnforcedPowerLimit": lambda handle: gpus[handle].power_limit_w * 1000,
        "DeviceGetPowerManagementDefaultLimit": lambda handle: 700_000,
        "DeviceGetTotalEccErrors": ecc_errors,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)
