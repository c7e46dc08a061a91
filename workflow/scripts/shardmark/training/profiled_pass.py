"""A few traced steps after all that is timed: where the time of a step goes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from shardmark.measurement.step_split import DATA, STEP, split_of
from shardmark.metrics import StepSplit
from shardmark.training.runtime import Runtime
from shardmark.workload.data import Batch

# A profiler's first steps are slow.
UNTRACED_STEPS = 2
PROFILED_STEPS = 5


def profiled(
    runtime: Runtime,
    next_batches: Callable[[], list[Batch]],
    step: Callable[[list[Batch]], object],
) -> StepSplit:
    """This rank's split of a step; all ranks must take part.

    Args:
        runtime: this process among the others.
        next_batches: gives the micro-batches of the next step; what it takes is the loader's time.
        step: trains on them.
    """
    activities = [ProfilerActivity.CPU]
    if runtime.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    dist.barrier()
    with profile(activities=activities) as profiler:
        for index in range(UNTRACED_STEPS + PROFILED_STEPS):
            if index <= UNTRACED_STEPS:
                runtime.synchronise()
            name = STEP if index >= UNTRACED_STEPS else "warm-up"
            with record_function(name):
                with record_function(DATA):
                    micro_batches = next_batches()
                step(micro_batches)
        runtime.synchronise()
    with tempfile.TemporaryDirectory(prefix="shardmark-") as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return split_of(events, runtime.rank)
