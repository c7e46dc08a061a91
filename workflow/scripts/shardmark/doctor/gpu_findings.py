"""Check this machine's GPUs through NVML: their number, links and state. Imports no torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from shardmark.doctor.finding import Finding
from shardmark.errors import UserError
from shardmark.measurement.device_faults import FAULTS, MOST_IDLE_MEMORY_BYTES
from shardmark.measurement.devices import THROTTLE_REASONS
from shardmark.measurement.environment import driver_and_topology
from shardmark.measurement.telemetry import GpuProbe, gpu_facts, limit_answer_time, visible_gpus


def check_gpus(needed: int) -> Iterator[Finding]:
    """Check the driver and the GPUs; ``needed`` is what the largest cell asks for per node."""
    try:
        yield from check_answers(needed)
    except UserError as error:
        mig = "MIG" in str(error)
        advice = "" if mig else "run on a node with GPUs, or set cluster.device to cpu"
        yield Finding("FAIL", "GPUs", str(error), advice)


def check_answers(needed: int) -> Iterator[Finding]:
    """Check what the driver answers.

    Raises:
        UserError: if it does not answer, or a GPU is split into slices.
    """
    uuids = visible_gpus(needed)
    machine = driver_and_topology()
    yield Finding("ok", "driver", str(machine["driver"]))
    facts = {uuid: gpu_facts(uuid) for uuid in uuids}
    names = Counter(str(fact["name"]) for fact in facts.values())
    models = ", ".join(f"{number} x {name}" for name, number in names.items()) or "none"
    if len(uuids) < needed:
        advice = "check CUDA_VISIBLE_DEVICES, cluster.gpus_per_node and the job's GPU request"
        yield Finding("FAIL", "GPUs", f"{models}, and the largest cell needs {needed} here", advice)
    elif len(names) > 1:
        advice = "compare on GPUs of one model: a constraint in profiles/slurm/config.yaml"
        yield Finding("warn", "GPUs", models, advice)
    else:
        yield Finding("ok", "GPUs", models)
    yield from check_topology(machine["topology"], len(uuids))
    for row in sample_gpus(uuids):
        uuid = str(row["device"])
        yield from check_state(uuid, facts[uuid], row)


@limit_answer_time
def sample_gpus(uuids: Sequence[str]) -> list[dict[str, Any]]:
    """Return one sample of each GPU."""
    return list(GpuProbe(uuids).rows())


def check_topology(pairs: list[dict[str, Any]], gpus: int) -> Iterator[Finding]:
    """Check the links between the machine's GPUs; ``pairs`` comes from driver_and_topology."""
    if gpus < 2:
        return
    links = Counter("NVLink" if pair["nvlink"] else f"PCIe, {pair['path']}" for pair in pairs)
    counts = ", ".join(f"{number} pairs by {link}" for link, number in links.most_common())
    if len(links) > 1:
        advice = "cells of fewer GPUs than a node has depend on which they get; take whole nodes"
        yield Finding("warn", "topology", counts, advice)
    else:
        yield Finding("ok", "topology", counts)


def check_state(uuid: str, facts: dict[str, Any], row: dict[str, Any]) -> Iterator[Finding]:
    """Check whether anything in a GPU's state would distort its figures.

    Args:
        uuid: the GPU.
        facts: its gpu_facts.
        row: a sample of it, taken while no cell runs.
    """
    subject, memory = "GPU state", row.get("memory_used_bytes")
    limit, default = row.get("power_limit_w"), facts.get("power_limit_default_w")
    if limit is not None and default is not None and limit < default:
        problem = f"{uuid} is held at {limit:.0f} W, of its own {default:.0f} W"
        yield Finding(
            "warn", subject, problem, "ask for its own power limit; such cells are labelled"
        )
    answers = {
        "why its clocks are low": row.get("throttle_mask"),
        "its power limit": limit,
        "its own power limit": default,
        "its memory errors (no ECC?)": row.get("ecc_errors"),
        "the memory in use": memory,
        "the processes on it": row.get("processes"),
        "its energy": row.get("energy_j"),
    }
    if unanswered := [name for name, answer in answers.items() if answer is None]:
        problem = f"{uuid}: the driver does not tell {', '.join(unanswered)}"
        advice = "a newer driver may; cells name what could not be checked without it"
        yield Finding("warn", subject, problem, advice)
    reasons = int(row.get("throttle_mask") or 0)
    slow = [name for bit, name in THROTTLE_REASONS.items() if reasons & bit and name in FAULTS]
    if slow:
        problem = f"{uuid} is slowed down by {', '.join(slow)}"
        yield Finding("warn", subject, problem, "leave this node out, and tell the administrators")
    if row.get("ecc_errors"):
        problem = f"{uuid} has {row['ecc_errors']} uncorrected memory errors"
        yield Finding("warn", subject, problem, "leave this node out, and tell the administrators")
    if memory is not None and memory > MOST_IDLE_MEMORY_BYTES:
        problem = f"{uuid} has {memory / 2**20:.0f} MiB in use by something else"
        yield Finding("warn", subject, problem, "take GPUs of your own; such cells are excluded")
    lowered = lowered_and_default_mhz(uuid)
    if lowered is not None:
        problem = f"{uuid} has its SM clock set to {lowered[0]} MHz, of its own {lowered[1]} MHz"
        yield Finding("warn", subject, problem, "nvidia-smi --reset-applications-clocks")


@limit_answer_time
def lowered_and_default_mhz(uuid: str) -> tuple[int, int] | None:
    """Return a GPU's SM application clock and its default, MHz; None if it is not lowered."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        target, default = (
            int(pynvml.nvmlDeviceGetClock(handle, pynvml.NVML_CLOCK_SM, kind))
            for kind in (
                pynvml.NVML_CLOCK_ID_APP_CLOCK_TARGET,
                pynvml.NVML_CLOCK_ID_APP_CLOCK_DEFAULT,
            )
        )
        if target < default:
            return target, default
    return None
