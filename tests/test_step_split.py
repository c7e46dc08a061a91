"""Where the time of a step goes: traces with a known answer, and a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import forked_ranks
from real_cells import cell_named
from shardmark.measurement.step_split import (
    DATA,
    STEP,
    Range,
    difference,
    intersection,
    split_of,
    union,
    with_ranges,
)
from shardmark.metrics import StepSplit


def event(category: str, name: str, begin_ms: float, end_ms: float) -> dict[str, Any]:
    duration = 1000 * (end_ms - begin_ms)
    return {"ph": "X", "cat": category, "name": name, "ts": 1000 * begin_ms, "dur": duration}


def parts(split: StepSplit) -> tuple[float, float, float, float]:
    return (
        split.compute_ms,
        split.exposed_communication_ms,
        split.data_ms,
        split.host_gap_ms,
    )


def assert_adds_up(split: StepSplit) -> None:
    assert sum(parts(split)) == pytest.approx(split.step_ms, rel=1e-9)


GPU_STEP = [
    event("user_annotation", STEP, 0, 10),
    event("user_annotation", DATA, 0, 1),
    event("gpu_user_annotation", DATA, 1, 2),
    event("kernel", "index_kernel", 1, 2),  # makes the batch
    event("kernel", "conv", 2, 6),
    event("kernel", "ncclDevKernel_AllReduce", 5, 9),  # hidden for one millisecond of four
    event("kernel", "sgd", 9.5, 11),
    event("cpu_op", "aten::conv2d", 0, 10),  # the host's time is not the device's
]


def test_a_step_on_a_gpu_is_split() -> None:
    split = split_of(GPU_STEP, rank=3)
    assert_adds_up(split)
    assert (split.rank, split.steps, split.step_ms) == (3, 1, 11)
    assert parts(split) == (4 + 1.5, 3, 2, 0.5)
    assert split.communication_ms == 4


def test_waiting_for_a_batch_is_data_and_not_a_gap() -> None:
    split = split_of(
        [
            event("user_annotation", STEP, 0, 10),
            event("user_annotation", DATA, 0, 6),
            event("kernel", "conv", 7, 10),
        ],
        rank=0,
    )
    assert parts(split) == (3, 0, 6, 1)


def test_a_batch_made_while_the_device_computes_costs_nothing() -> None:
    split = split_of(
        [
            event("user_annotation", STEP, 0, 10),
            event("user_annotation", DATA, 4, 8),
            event("kernel", "conv", 0, 10),
        ],
        rank=0,
    )
    assert parts(split) == (10, 0, 0, 0)


def test_ranges_by_the_hosts_clock_find_their_kernels_by_the_launch() -> None:
    def kernel(name: str, begin_ms: float, end_ms: float, launched: int) -> dict[str, Any]:
        return event("kernel", name, begin_ms, end_ms) | {"args": {"correlation": launched}}

    def launch(at_ms: float, number: int) -> dict[str, Any]:
        call = event("cuda_runtime", "cudaLaunchKernel", at_ms, at_ms + 0.01)
        return call | {"args": {"correlation": number}}

    base_ns = 1_795_660_274_000_000_000
    trace = {
        "baseTimeNanoseconds": base_ns,
        "traceEvents": [
            launch(0.5, 1),
            launch(1.5, 2),
            launch(2, 3),
            launch(3, 4),
            kernel("index_kernel", 1, 2, 1),
            kernel("conv", 2, 6, 2),
            kernel("ncclDevKernel_AllReduce", 5, 9, 3),
            kernel("sgd", 9.5, 11, 4),
        ],
    }
    ranges = [
        Range("warm-up", base_ns - 20_000_000, base_ns - 10_000_000),
        Range(DATA, base_ns, base_ns + 1_000_000),
        Range(STEP, base_ns, base_ns + 10_000_000),
    ]
    split = split_of(with_ranges(trace, ranges), rank=0)
    assert parts(split) == parts(split_of(GPU_STEP, rank=0))


def test_several_steps_give_their_mean() -> None:
    second = [one | {"ts": one["ts"] + 11_000} for one in GPU_STEP]
    split = split_of([*GPU_STEP, *second], rank=0)
    assert (split.steps, split.step_ms) == (2, 11)
    assert parts(split) == (5.5, 3, 2, 0.5)


def test_what_spans_work_on_a_cpu_is_not_work() -> None:
    split = split_of(
        [
            event("user_annotation", STEP, 0, 10),
            event("cpu_op", "torch::autograd::AccumulateGrad", 0, 10),
            event("cpu_op", "aten::conv2d", 1, 3),
            event("user_annotation", "gloo:all_reduce", 2, 7),
        ],
        rank=0,
    )
    assert parts(split) == (2, 4, 0, 4)


def test_a_gpus_trace_without_kernels_says_nothing() -> None:
    # Another tool that traces the GPU takes them all: no waiting for the host.
    ranges = [one for one in GPU_STEP if one["cat"] == "user_annotation"]
    with pytest.raises(ValueError, match="no kernel is in the trace"):
        split_of(ranges, rank=0, needs_gpu=True)


def test_launches_without_a_number_are_let_pass() -> None:
    trace = {"baseTimeNanoseconds": 0, "traceEvents": [event("cuda_runtime", "cudaLaunch", 0, 1)]}
    assert len(with_ranges(trace, [Range(STEP, 0, 10)])) == 2


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="no step"):
        split_of([event("kernel", "conv", 0, 1)], rank=0)


def test_sets_of_moments() -> None:
    assert union([(3, 4), (0, 2), (1, 2.5), (5, 5)]) == [(0, 2.5), (3, 4)]
    assert intersection([(0, 2), (3, 6)], [(1, 4), (5, 9)]) == [(1, 2), (3, 4), (5, 6)]
    assert difference([(0, 10)], [(1, 2), (4, 12)]) == [(0, 1), (2, 4)]


def test_a_real_cell_is_profiled_outside_its_window(tmp_path: Path) -> None:
    metrics = forked_ranks.run_cell(
        cell_named("ddp", 2, {"profile": True, "steady_min_s": 2.0, "steady_max_s": 2.0}), tmp_path
    )
    assert metrics.status == "ok", metrics.failure
    assert [split.rank for split in metrics.profile] == [0, 1]
    for split in metrics.profile:
        print(split)
        assert_adds_up(split)
        assert split.steps == 5
        assert split.compute_ms > 0
        assert split.data_ms > 0
        assert 0 < split.exposed_communication_ms <= split.communication_ms
    times = metrics.time_s
    assert times is not None
    assert (times.profile_s or 0) > 0
    assert metrics.throughput is not None
    steady = (times.steady_s or 0) / metrics.throughput.steps
    assert metrics.throughput.step_ms_mean == pytest.approx(1000 * steady, rel=0.1)
