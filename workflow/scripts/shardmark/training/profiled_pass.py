"""Traces a few steps after the timed ones, to show where the time of a step goes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from shardmark.measurement.garbage import collector_paused
from shardmark.measurement.step_split import DATA, STEP, Range, split_of, with_ranges
from shardmark.metrics import StepSplit
from shardmark.training.runtime import Runtime
from shardmark.workload.contract import Inputs

# The first steps under a profiler are slow.
UNTRACED_STEPS = 2
PROFILED_STEPS = 5
# The name under which torch's compiler calls its code where gradients are needed
# (torch/_functorch/_aot_autograd).
COMPILED = "CompiledFunction"


def count_compiled_calls(runtime: Runtime, take: Callable[[], object]) -> int:
    """Count how often a step runs compiled code on this rank; a collective.

    The compiler may give up without an error, and the step then runs uncompiled.

    Args:
        runtime: this process.
        take: takes one training step.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        take()
        runtime.synchronise()
    return sum(event.count for event in profiler.key_averages() if event.key == COMPILED)


def profile_steps(
    runtime: Runtime,
    next_batches: Callable[[], list[Inputs]],
    step: Callable[[list[Inputs]], object],
) -> StepSplit | None:
    """Profile a few steps, and split the time of a step on this rank; a collective.

    The result is None if the trace is unusable.

    On a GPU, the trace records the device's work and the calls that launched it, but not torch's
    operators. Recording those takes the host so long that a strategy that waits for its host would
    look slower than it is (FSDP2 on two H100: a timed step of 63 ms took 80 ms).

    Args:
        runtime: this process.
        next_batches: returns the micro-batches of the next step; its time is the loader's time.
        step: trains on the micro-batches.
    """
    on_gpu = runtime.device.type == "cuda"
    ranges: list[Range] = []

    @contextmanager
    def record_range(name: str) -> Iterator[None]:
        begin = time.time_ns()
        yield
        ranges.append(Range(name, begin, time.time_ns()))

    dist.barrier()
    with (
        collector_paused(),
        profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler,
    ):
        for index in range(UNTRACED_STEPS + PROFILED_STEPS):
            if index <= UNTRACED_STEPS:
                runtime.synchronise()
            with record_range(STEP if index >= UNTRACED_STEPS else "warm-up"):
                with record_range(DATA):
                    micro_batches = next_batches()
                step(micro_batches)
        runtime.synchronise()
    try:
        with tempfile.TemporaryDirectory(prefix="shardmark-") as folder:
            trace = Path(folder, "trace.json")
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())
        return split_of(with_ranges(events, ranges), runtime.rank, needs_gpu=on_gpu)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        # The timings are complete without the profile.
        print(f"rank {runtime.rank}: no profile: {type(error).__name__}: {error}", flush=True)
        return None
