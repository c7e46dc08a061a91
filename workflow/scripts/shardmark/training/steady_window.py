"""The steady window: timed steps until their mean is precise, after a warm-up until they settle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.distributed as dist

from shardmark.config.schema import Measure
from shardmark.measurement.clocks import Phases, StepClock
from shardmark.measurement.garbage import collections_so_far, collector_paused
from shardmark.measurement.host import host_use, read_host
from shardmark.measurement.steady_state import BATCHES, half_width_pct, is_stationary
from shardmark.metrics import HostUse
from shardmark.training.probe import uuid_of
from shardmark.training.runtime import Runtime
from shardmark.training_result import TorchMemory

# Factor on the estimated number of steps, so that steps faster than estimated still fill a window.
WINDOW_MARGIN = 1.1
# Factors by which a window that is not precise yet grows.
LEAST_GROWTH, MOST_GROWTH = 1.25, 2.0


class Window(NamedTuple):
    """One process's steady window.

    Attributes:
        warmup_ms: times of the warm-up steps.
        converged: whether the warm-up became stationary; False if it reached its maximum length.
        steady_ms: times of the window's steps; every rank takes the same number.
        begin_s: start of the window on this machine's monotonic clock.
        end_s: end of the window on the same clock.
        torch_memory: torch's memory on each of this process's GPUs.
        host: this process's host during the window.
        gc_collections: runs of Python's garbage collector during the window.
    """

    warmup_ms: list[float]
    converged: bool
    steady_ms: list[float]
    begin_s: float
    end_s: float
    torch_memory: list[TorchMemory]
    host: HostUse
    gc_collections: int


def measure_window(
    runtime: Runtime, settings: Measure, phases: Phases, take: Callable[[], object]
) -> Window:
    """Warm up, then time a window until its mean step is precise.

    All ranks end at the same step: after each part of the window, the rank that needs most further
    steps decides. This takes one all-reduce of a number, outside all steps. Most windows have one
    part.

    Args:
        runtime: this process; all processes measure together.
        settings: the limits of the window and of the warm-up, and the precision to reach.
        phases: measures the time of both, as ``warmup`` and ``steady``.
        take: takes one training step.
    """
    with ExitStack() as until_the_end:
        with phases("warmup"):
            warmup, converged = _warm_up(runtime, settings, take)
            if not settings.collect_garbage:
                until_the_end.enter_context(collector_paused())
            dist.barrier()
        with phases("steady"):
            return _time_window(runtime, settings, warmup, converged, take)


def _time_window(
    runtime: Runtime,
    settings: Measure,
    warmup: list[float],
    converged: bool,
    take: Callable[[], object],
) -> Window:
    # Estimate from a fast step, not a typical one, and add a margin: the window must not be shorter
    # than its minimum.
    recent = sorted(warmup[-settings.warmup_min_steps :])
    step_s = recent[len(recent) // 10] / 1000
    count = _most_steps(runtime, steps_to_fill(settings.steady_min_s, step_s))
    for device in runtime.gpus:
        torch.cuda.reset_peak_memory_stats(device)
    dist.barrier()
    runtime.synchronise()
    memory = _allocated_and_retries(runtime)
    collections, host = collections_so_far(), read_host()
    steps_ms: list[float] = []
    begin = time.monotonic()
    while count:
        # A clock for each part: the time to decide whether another part follows is in no step.
        clock = StepClock(runtime.device)
        _take(take, clock, count)
        steps_ms += clock.step_ms()
        end = time.monotonic()
        count = _most_steps(runtime, further_steps(steps_ms, end - begin, settings))
    return Window(
        warmup_ms=warmup,
        converged=converged,
        steady_ms=steps_ms,
        begin_s=begin,
        end_s=end,
        torch_memory=_torch_memory(runtime, memory),
        host=host_use(runtime.rank, host, read_host(), torch.get_num_threads()),
        gc_collections=collections_so_far() - collections,
    )


def _most_steps(runtime: Runtime, steps: int) -> int:
    """Return the largest number of steps that any rank needs; every rank then takes so many."""
    return int(runtime.largest_over_ranks(steps))


def steps_to_fill(missing_s: float, step_s: float) -> int:
    """Return the number of steps that fill the rest of the shortest window, with a margin."""
    return max(1, math.ceil(WINDOW_MARGIN * missing_s / step_s))


def further_steps(steps_ms: Sequence[float], lasted_s: float, settings: Measure) -> int:
    """Return how many steps a window still needs; 0 if it is precise or has its maximum length.

    The half-width shrinks with the root of the number of steps. Each decision lengthens the
    window by at least a quarter, so decisions are few, and at most doubles it, in case the estimate
    is bad.

    Args:
        steps_ms: times of all steps of the window so far.
        lasted_s: its length so far.
        settings: its minimum and maximum length, and the precision to reach.
    """
    step_s = lasted_s / len(steps_ms)
    if lasted_s < settings.steady_min_s:
        return steps_to_fill(settings.steady_min_s - lasted_s, step_s)
    half_width = half_width_pct(steps_ms)
    if half_width is None:
        wanted = BATCHES - len(steps_ms)
    elif half_width <= settings.steady_half_width_pct:
        return 0
    else:
        factor = (half_width / settings.steady_half_width_pct) ** 2
        wanted = math.ceil(len(steps_ms) * (min(max(factor, LEAST_GROWTH), MOST_GROWTH) - 1))
    left_s = settings.steady_max_s - lasted_s
    return min(wanted, math.ceil(left_s / step_s)) if left_s > 0 else 0


def _warm_up(
    runtime: Runtime, settings: Measure, take: Callable[[], object]
) -> tuple[list[float], bool]:
    """Take steps until their times are stationary; return the times in ms, and whether they are."""
    warmup: list[float] = []
    stationary = False
    while not stationary and len(warmup) < settings.warmup_max_steps:
        part = max(settings.warmup_min_steps, len(warmup))
        part = min(part, settings.warmup_max_steps - len(warmup))
        clock = StepClock(runtime.device)
        _take(take, clock, part)
        warmup += clock.step_ms()
        stationary = bool(runtime.rank0_decides(float(is_stationary(warmup))))
    return warmup, stationary


def _take(take: Callable[[], object], clock: StepClock, count: int) -> None:
    for _ in range(count):
        take()
        clock.mark()


def _allocated_and_retries(runtime: Runtime) -> list[tuple[int, int]]:
    """Bytes that torch's allocator has allocated, and its retries, on each of the process's GPUs.

    If an allocation fails, the allocator frees all memory that it caches, and retries.
    """
    return [
        (torch.cuda.memory_allocated(device), torch.cuda.memory_stats(device)["num_alloc_retries"])
        for device in runtime.gpus
    ]


def _torch_memory(runtime: Runtime, at_begin: list[tuple[int, int]]) -> list[TorchMemory]:
    now = zip(runtime.gpus, at_begin, _allocated_and_retries(runtime), strict=True)
    return [
        TorchMemory(
            uuid=uuid_of(torch.device("cuda", device)),
            allocated=torch.cuda.max_memory_allocated(device),
            reserved=torch.cuda.max_memory_reserved(device),
            growth=allocated - allocated_before,
            retries=retries - retries_before,
        )
        for device, (allocated_before, retries_before), (allocated, retries) in now
    ]
