"""Split the time of a step into parts that add up to it, from a trace of torch.profiler.

Every moment of the traced steps belongs to one of four parts: the device computes; it only
communicates (communication that overlaps with compute is hidden and costs nothing); it makes or
awaits data; or it is idle because the host has not launched work in time. This module does not
import torch: it reads the trace's JSON.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shardmark.metrics import StepSplit

STEP = "shardmark: step"
DATA = "shardmark: data"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
# Names of compute and communication records on a CPU. Other records (autograd nodes, optimizers)
# span both, and the time between them.
_COMPUTE_OF_CPU = ("aten::", "fsdp::")
_COMMUNICATION = ("nccl", "gloo:", "c10d::")

Interval = tuple[float, float]


class Range(NamedTuple):
    """A named part of the traced steps on the host's clock, nanoseconds since the epoch."""

    name: str
    begin_ns: int
    end_ns: int


def with_ranges(trace: Mapping[str, Any], ranges: Iterable[Range]) -> list[dict[str, Any]]:
    """Return the events of a trace plus its named ranges, in the form that ``split_of`` reads.

    torch records ranges only together with its operators, which slows the host, so the ranges are
    added here. A kernel belongs to the making of a batch if its launch, which has the same
    correlation number, was within a range named DATA.

    Args:
        trace: as torch.profiler exports it; its times are microseconds after
            ``baseTimeNanoseconds``.
        ranges: named parts, on the same host's clock.
    """
    events: list[dict[str, Any]] = list(trace["traceEvents"])
    base = int(trace["baseTimeNanoseconds"])
    on_host = [
        {
            "ph": "X",
            "cat": "user_annotation",
            "name": each.name,
            "ts": (each.begin_ns - base) / 1000,
            "dur": (each.end_ns - each.begin_ns) / 1000,
        }
        for each in ranges
    ]
    data = union(_interval(each) for each in on_host if each["name"] == DATA)
    begins = [begin for begin, _ in data]
    launched = {
        event.get("args", {}).get("correlation")
        for event in events
        if event.get("cat") in _LAUNCHES
        and (place := bisect.bisect_right(begins, float(event["ts"])))
        and float(event["ts"]) <= data[place - 1][1]
    }
    on_device = [
        event | {"cat": "gpu_user_annotation", "name": DATA}
        for event in events
        if event.get("cat") in _ON_GPU and event.get("args", {}).get("correlation") in launched
    ]
    return [*events, *on_host, *on_device]


def split_of(
    events: Iterable[Mapping[str, Any]], rank: int, *, needs_gpu: bool = False
) -> StepSplit:
    """Split the steps of a trace.

    On a GPU this reads the device's own records; the projection of the data range onto the device
    separates its kernels from those of the model. Without a GPU, torch's operators of all threads
    are the compute.

    Args:
        events: ``traceEvents`` of the trace, with times in microseconds. Each step is a range named
            STEP, and the making of its batch is a range named DATA within it. The device was idle
            when the first step began.
        rank: the rank that recorded the trace.
        needs_gpu: whether the steps ran on a GPU; then the trace must contain its work.

    Raises:
        ValueError: if the trace has no step, or no kernel although it needs some.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    steps = _named(complete, STEP, "user_annotation")
    if not steps:
        raise ValueError("no step is in the trace")
    host_data = _named(complete, DATA, "user_annotation")
    on_gpu = [event for event in complete if event.get("cat") in _ON_GPU]
    if needs_gpu and not on_gpu:
        raise ValueError("no kernel is in the trace; does another tool trace the GPU?")
    work = on_gpu or [event for event in complete if _is_work_of_a_cpu(event)]
    device_data = _named(complete, DATA, "gpu_user_annotation") if on_gpu else host_data
    communicates = union(_interval(event) for event in work if _is_communication(event))
    computes = union(_interval(event) for event in work if not _is_communication(event))
    data = intersection(computes, union(device_data))
    begin = min(start for start, _ in steps)
    end = max([stop for _, stop in steps] + [stop for _, stop in map(_interval, work)])
    whole = [(begin, end)]
    compute = difference(intersection(computes, whole), data)
    communication = intersection(communicates, whole)
    exposed = difference(communication, compute)
    busy = union([*compute, *exposed])
    # Includes the host's ranges: a device that is idle while a batch is made or awaited waits for
    # data.
    in_data = difference(intersection(union([*data, *host_data]), whole), busy)
    gaps = difference(whole, union([*busy, *in_data]))
    each = 1000 * len(steps)
    return StepSplit(
        rank=rank,
        steps=len(steps),
        step_ms=(end - begin) / each,
        compute_ms=length(compute) / each,
        exposed_communication_ms=length(exposed) / each,
        data_ms=length(in_data) / each,
        host_gap_ms=length(gaps) / each,
        communication_ms=length(communication) / each,
    )


def _named(events: Sequence[Mapping[str, Any]], name: str, category: str) -> list[Interval]:
    return [
        _interval(event)
        for event in events
        if event.get("name") == name and event.get("cat") == category
    ]


def _interval(event: Mapping[str, Any]) -> Interval:
    begin = float(event["ts"])
    return begin, begin + float(event["dur"])


def _is_work_of_a_cpu(event: Mapping[str, Any]) -> bool:
    return str(event["name"]).startswith((*_COMPUTE_OF_CPU, *_COMMUNICATION))


def _is_communication(event: Mapping[str, Any]) -> bool:
    name = str(event["name"]).lower()
    return any(sign in name for sign in _COMMUNICATION)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals into disjoint ones, in the order of time."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > begin:
            merged.append((begin, end))
    return merged


def intersection(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """Return the time in both; each argument is a ``union``."""
    common = []
    first = second = 0
    while first < len(one) and second < len(other):
        begin = max(one[first][0], other[second][0])
        end = min(one[first][1], other[second][1])
        if begin < end:
            common.append((begin, end))
        if one[first][1] < other[second][1]:
            first += 1
        else:
            second += 1
    return common


def difference(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """Return the time in the first but not in the second; each argument is a ``union``."""
    edges = [float("-inf"), *(edge for interval in other for edge in interval), float("inf")]
    outside = list(zip(edges[::2], edges[1::2], strict=True))
    return intersection(one, outside)


def length(intervals: Iterable[Interval]) -> float:
    """Return the total length of disjoint intervals."""
    return sum(end - begin for begin, end in intervals)
