"""Sample what the cell's devices do, in one process per node that is separate from the training.

Samples come from NVML on GPUs, and from psutil for the cell's processes on CPUs. They carry the
monotonic clock, which all processes of a node share, so they can be cut to the steady window
afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, ParamSpec, TypeVar

import psutil

from shardmark.command import one_message
from shardmark.disk import require_room
from shardmark.errors import UserError
from shardmark.processes.ending import end
from shardmark.processes.tether import tether

P = ParamSpec("P")
T = TypeVar("T")

# The columns of telemetry.csv, and what each means.
SAMPLE_COLUMNS = {
    "monotonic_s": "time on the clock of windows in metrics.json",
    "device": "UUID of the GPU; cpu for the cell's processes",
    "idle": "1 where the device was idle before the cell began, else 0",
    "utilization_pct": "NVML's utilisation; of a CPU, the share of all cores",
    "memory_used_bytes": "memory in use; of a CPU, the resident memory of the cell's processes",
    "power_w": "power",
    "energy_j": "the energy counter",
    "sm_clock_mhz": "clock of the multiprocessors",
    "temperature_c": "temperature",
    "throttle_mask": "NVML's reasons for lower clocks, as bits",
    "power_limit_w": "limit of the power",
    "ecc_errors": "counter of uncorrected memory errors",
    "processes": "ids of the processes on the device; - where there are none",
}
# Interval for values that change rarely and that NVML is slow to return.
SLOW_S = 1.0
# NVML averages utilisation, so a device reads as busy for this long after its last work.
SETTLING_S = 1.0
# A driver that has not answered by then hangs. Waking GPUs takes it only seconds.
ANSWER_S = 60.0
# Time limit for the sampler to start and settle (on top of the idle time), and to end.
BEGIN_S = 60.0
END_S = 5.0
_RAPL = Path("/sys/class/powercap")


def limit_answer_time(ask: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function that asks NVML, so that it raises UserError if the driver does not answer.

    The asking thread is abandoned: nothing can interrupt a call that hangs in the driver.
    """

    @functools.wraps(ask)
    def ask_in_thread(*arguments: P.args, **named: P.kwargs) -> T:
        answers: list[T] = []
        errors: list[Exception] = []

        def answer() -> None:
            try:
                answers.append(ask(*arguments, **named))
            except Exception as error:
                errors.append(error)

        thread = Thread(target=answer, daemon=True)
        thread.start()
        thread.join(ANSWER_S)
        if errors:
            raise errors[0]
        if not answers:
            raise UserError(
                f"{node_name()}: the NVIDIA driver has not answered for {ANSWER_S:.0f} s, so no "
                "GPU can be measured here; if nvidia-smi hangs there too, restart the node"
            )
        return answers[0]

    return ask_in_thread


class GpuProbe:
    """Reads the GPUs with these UUIDs through NVML."""

    def __init__(self, uuids: Sequence[str]) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handles = {uuid: pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
        self._slow_due = time.monotonic()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per GPU, without values that it does not support or that are not due."""
        nvml = self._nvml
        slow = time.monotonic() >= self._slow_due
        if slow:
            self._slow_due += SLOW_S
        for uuid, handle in self._handles.items():
            # Take the time right after reading the counter: it dates the counter's ticks.
            energy = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle, 1e-3)
            row = {
                "monotonic_s": time.monotonic(),
                "device": uuid,
                "energy_j": energy,
                "power_w": self._ask(nvml.nvmlDeviceGetPowerUsage, handle, 1e-3),
                "utilization_pct": self._ask(
                    lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu, handle
                ),
                "memory_used_bytes": self._ask(memory_used, handle),
                "sm_clock_mhz": self._ask(
                    lambda gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM), handle
                ),
                "temperature_c": self._ask(
                    lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
                    handle,
                ),
                "throttle_mask": self._throttle_mask(handle),
            }
            yield row | self._slow_answers(handle) if slow else row

    def _slow_answers(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        uncorrected = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        return {
            "power_limit_w": self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle, 1e-3),
            "ecc_errors": self._ask(
                lambda gpu: nvml.nvmlDeviceGetTotalEccErrors(
                    gpu, uncorrected, nvml.NVML_VOLATILE_ECC
                ),
                handle,
            ),
            # None if the driver cannot say, "-" if there are none.
            "processes": processes
            if processes is None
            else ";".join(str(process.pid) for process in processes) or "-",
        }

    def _throttle_mask(self, handle: Any) -> Any:
        """Return the mask of throttle reasons; older drivers only know the query's old name."""
        mask = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if mask is not None:
            return mask
        return self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)

    def _ask(self, question: Any, handle: Any, unit: float | None = None) -> Any:
        try:
            answer = question(handle)
        except self._nvml.NVMLError:
            return None
        return answer if unit is None else answer * unit


def memory_used(handle: Any) -> int:
    """Return the bytes in use on a GPU, without the driver's own where NVML reports those."""
    import pynvml

    try:
        used = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used
    except pynvml.NVMLError:
        used = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    return int(used)


@limit_answer_time
def gpu_facts(uuid: str) -> dict[str, Any]:
    """Return the properties of a GPU that do not change while a cell runs, from NVML."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    facts: dict[str, Any] = {
        "name": pynvml.nvmlDeviceGetName(handle),
    }
    with contextlib.suppress(pynvml.NVMLError):  # a GPU that shares the host's memory has none
        facts["memory_total_bytes"] = pynvml.nvmlDeviceGetMemoryInfo(handle).total
    with contextlib.suppress(pynvml.NVMLError):
        default = pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)
        facts["power_limit_default_w"] = default / 1000
    with contextlib.suppress(pynvml.NVMLError):
        facts["sm_clock_limit_mhz"] = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
    return facts


class CpuProbe:
    """Reads the cell's own processes: the descendants of its launcher, without this sampler."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._busy: dict[int, float] = {}
        self._then = time.monotonic()
        self._cores = psutil.cpu_count() or 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row: share of all cores, resident memory, and energy if RAPL is readable."""
        processes = self._root.children(recursive=True)
        now = time.monotonic()  # just before the times are read; the list takes longer
        busy: dict[int, float] = {}
        resident = 0
        for process in processes:
            if process.pid == os.getpid():
                continue
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                busy[process.pid] = times.user + times.system
                resident += process.memory_info().rss
        # A process whose number an earlier one had may have less than that one.
        spent = sum(max(0.0, seconds - self._busy.get(pid, 0.0)) for pid, seconds in busy.items())
        # The first call has no earlier CPU times to compare with, and almost no time has elapsed.
        elapsed = now - self._then if self._busy else 0.0
        # One reading may miss a process. Its earlier CPU time must not count in the next.
        self._busy, self._then = self._busy | busy, now
        yield {
            "monotonic_s": now,
            "device": "cpu",
            "utilization_pct": 100 * spent / elapsed / self._cores if elapsed > 0 else None,
            "memory_used_bytes": resident,
            "energy_j": rapl_energy_j(),
        }


def rapl_energy_j(root: Path = _RAPL) -> float | None:
    """Return the energy counter of all processor packages, J; None if RAPL cannot be read."""
    total = None
    for package in sorted(root.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") != 1:  # a part of a package, which includes it
            continue
        try:
            total = (total or 0.0) + int((package / "energy_uj").read_text()) * 1e-6
        except (OSError, ValueError):
            return None
    return total


@limit_answer_time
def visible_gpus(count: int | None = None) -> list[str]:
    """Return UUIDs of the first ``count`` GPUs that CUDA would see, or all, in bus order.

    Raises:
        UserError: if there is no driver, or one of the GPUs is split into slices (MIG).
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        every = [
            str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError as error:
        raise UserError(
            f"{node_name()}: no NVIDIA driver answers ({error}), so no GPU can be measured here"
        ) from None
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = every if setting is None else []
    for part in filter(None, (part.strip() for part in (setting or "").split(","))):
        if part.startswith("MIG"):
            raise UserError(_mig_message(part))
        if part.isdigit():
            chosen += every[int(part) : int(part) + 1]
        else:
            chosen += [uuid for uuid in every if uuid.startswith(part)]
    for uuid in chosen[:count]:
        if is_sliced(pynvml.nvmlDeviceGetHandleByUUID(uuid)):
            raise UserError(_mig_message(uuid))
    return chosen[:count]


@limit_answer_time
def gpu_indices(uuids: Sequence[str]) -> str:
    """Return the CUDA_VISIBLE_DEVICES for these GPUs, with devices numbered in bus order.

    CUDA accepts UUIDs too, but DeepSpeed raises a ValueError for them.
    """
    import pynvml

    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    return ",".join(str(pynvml.nvmlDeviceGetIndex(handle)) for handle in handles)


def is_sliced(handle: Any) -> bool:
    """Whether a GPU is in MIG mode."""
    import pynvml

    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # a GPU without MIG
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_message(gpu: str) -> str:
    return (
        f"{node_name()}: {gpu} is a GPU in MIG mode: its slices share power, clocks and memory, "
        "which NVML tells of the whole GPU only, so what is measured on one would not be its "
        "cell's; ask for whole GPUs"
    )


def node_name() -> str:
    """Return Slurm's name for this node, or the machine's own name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


@contextlib.contextmanager
def sampling(
    target: Path, interval_s: float, gpus: Sequence[str] | None, idle_s: float = 0.0
) -> Iterator[None]:
    """Sample into ``target`` (CSV) from a separate process while the context is open.

    Args:
        target: file to write.
        interval_s: seconds between samples.
        gpus: UUIDs of the GPUs to sample, or None to sample the processes that this one starts.
        idle_s: seconds for which the idle devices are sampled before the context opens, after
            ``SETTLING_S``; 0: not at all.

    Raises:
        UserError: if the sampler did not start, or ended too early.
    """
    command = [sys.executable, "-m", "shardmark.measurement.telemetry", "--output", str(target)]
    command += ["--interval", str(interval_s), "--parent", str(os.getpid())]
    command += ["--idle", str(idle_s)]
    if gpus is not None:
        command += ["--gpus", *gpus]
    scripts = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")]))
    sampler = subprocess.Popen(
        tether(command), env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    try:
        if idle_s:
            assert sampler.stdout is not None
            # Wait for its first line, or for end of file if it failed.
            readable, _, _ = select.select([sampler.stdout], [], [], idle_s + BEGIN_S)
            if not readable:
                raise UserError(
                    f"{node_name()}: the sampler of the devices has not begun within "
                    f"{idle_s + BEGIN_S:.0f} s: it was stopped, or the driver does not answer"
                )
        yield
        if sampler.poll() is not None:
            require_room(target.parent)
            raise UserError(
                f"the sampler of the devices ended early, with exit code {sampler.returncode} (its "
                "last words are above), so there are no whole samples; run it again"
            )
    finally:
        end(sampler, END_S)


@one_message
def main() -> None:
    """Sample until terminated, or until the parent process is gone.

    Prints a line when the idle time is over.
    """
    parser = argparse.ArgumentParser(description="samples the devices of one cell on one node")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--interval", type=float, required=True, help="seconds between samples")
    parser.add_argument("--parent", type=int, required=True, help="process whose cell is watched")
    parser.add_argument("--gpus", nargs="+", help="UUIDs; without them the cell's processes")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds before the cell begins")
    arguments = parser.parse_args()
    probe = GpuProbe(arguments.gpus) if arguments.gpus else CpuProbe(arguments.parent)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, SAMPLE_COLUMNS)
        writer.writeheader()
        begin = due = time.monotonic()
        idle = arguments.idle > 0
        while os.getppid() == arguments.parent:
            elapsed = time.monotonic() - begin
            if idle and elapsed >= SETTLING_S + arguments.idle:
                idle = False
                print("the cell may begin", flush=True)
            settled = idle and elapsed >= SETTLING_S
            writer.writerows(row | {"idle": int(settled)} for row in probe.rows())
            file.flush()
            due += arguments.interval
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
