"""What the host did meanwhile: counters with a known answer, and those of real cells."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest

from parity_cases import ROOT
from real_cells import cell_named, metrics_of_run
from result_tables import row_of
from run_cell import run_cell
from shardmark.measurement import host
from shardmark.measurement.garbage import collections_so_far, collector_paused
from shardmark.measurement.host import host_use, read_host
from shardmark.measurement.labels import host_wait_pct
from shardmark.measurement.validity import judge
from shardmark.metrics import StepSplit


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_thread_that_sleeps_launches_nothing_and_one_that_works_always_does() -> None:
    begin = read_host()
    time.sleep(0.3)
    middle = read_host()
    wall, worked = time.monotonic(), time.thread_time()
    spin(0.3)
    worked_pct = 100 * (time.thread_time() - worked) / (time.monotonic() - wall)
    end = read_host()
    assert host_use(3, begin, middle).rank == 3
    assert host_use(0, begin, middle).launching_cpu_pct < 10
    # Less than all of the time where other processes want this core too.
    busy = host_use(0, middle, end)
    assert busy.launching_cpu_pct == pytest.approx(worked_pct, abs=10)
    assert busy.process_cpu_pct >= 0.9 * busy.launching_cpu_pct


@pytest.mark.parametrize(("name", "counts"), [("pt_autograd_0", True), ("pt_nccl_watchdg", False)])
def test_autograds_threads_count_and_others_do_not(name: str, counts: bool) -> None:
    ready, worked, over = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        ready.set()
        spin(0.4)
        worked.set()
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    begin = read_host()
    worked.wait()
    use = host_use(0, begin, read_host())
    wall_s = time.monotonic() - begin.wall_s
    over.set()
    thread.join()
    # However little of a core a busy machine left to the thread.
    worked_pct = 100 * 0.4 / wall_s
    assert (use.launching_cpu_pct > worked_pct / 2) == counts, use
    assert use.process_cpu_pct > worked_pct / 2


def test_a_kernel_that_counts_no_pressure_is_null_and_not_zero(tmp_path: Path) -> None:
    assert host._pressure_s(tmp_path / "cpu") is None
    file = tmp_path / "pressure"
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull total=7\n")
    assert host._pressure_s(file) == 2.5
    begin = host.HostReading(0.0, 0.0, 0.0, 0, 1.0)
    assert host_use(0, begin, host.HostReading(2.0, 1.0, 1.0, 4, None)).cpu_pressure_pct is None
    use = host_use(0, begin, host.HostReading(2.0, 1.0, 1.0, 4, 1.5))
    assert (use.cpu_pressure_pct, use.involuntary_switches_per_s) == (25, 2)


def test_no_collection_while_the_collector_is_paused() -> None:
    def litter() -> int:
        before = collections_so_far()
        for _ in range(100_000):
            cycle: list[object] = []
            cycle.append(cycle)
        return collections_so_far() - before

    assert litter() > 0
    with collector_paused():
        assert litter() == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled(), "a strategy that switched it off itself keeps it off"
    gc.enable()


def test_a_cell_records_its_host_and_keeps_the_collector_out_of_its_window() -> None:
    metrics = metrics_of_run("ddp", launched=True)
    assert [use.rank for use in metrics.host] == [0, 1]
    assert all(use.launching_cpu_pct > 1 for use in metrics.host)
    assert metrics.throughput is not None
    assert metrics.throughput.gc_collections == 0
    row = row_of(metrics)
    assert row.launching_cpu_pct == max(use.launching_cpu_pct for use in metrics.host)
    assert row.gc_collections == 0


@pytest.mark.slow
def test_the_collector_can_be_let_into_the_window_and_is_counted(tmp_path: Path) -> None:
    # However few steps a busy machine takes in a window: the collector runs all the time.
    script = tmp_path / "train_fsdp2.py"
    train = ROOT / "workflow/scripts" / script.name
    script.write_text(
        f"import gc, runpy; gc.set_threshold(1); runpy.run_path({str(train)!r}, None, '__main__')"
    )
    cell = cell_named("fsdp2", 1, {"collect_garbage": True})
    metrics = run_cell(cell, tmp_path, script=script)
    assert metrics.throughput is not None
    assert (metrics.throughput.gc_collections or 0) > 0


def split(rank: int, host_gap_ms: float, exposed_ms: float) -> StepSplit:
    return StepSplit(
        rank=rank,
        steps=5,
        step_ms=100,
        compute_ms=100 - host_gap_ms - exposed_ms,
        exposed_communication_ms=exposed_ms,
        data_ms=0,
        host_gap_ms=host_gap_ms,
        communication_ms=exposed_ms,
    )


# Of the window only: whatever else this machine did meanwhile, no label but the host's.
STEADY = {"half_width_pct": 0.5, "drift_pct": 0.0}


def test_the_rank_that_waits_longest_for_its_host_says_how_much_of_a_step_is_waiting() -> None:
    metrics = metrics_of_run("ddp", launched=True)
    assert metrics.throughput is not None
    throughput = metrics.throughput.model_copy(update={"step_ms_mean": 100.0} | STEADY)
    metrics = metrics.model_copy(update={"throughput": throughput})
    # FSDP2 on two H100: rank 0 communicates for half of its step, which is waiting for rank 1.
    profile = [split(0, host_gap_ms=1, exposed_ms=56), split(1, host_gap_ms=59, exposed_ms=1)]
    slow = judge(metrics.model_copy(update={"profile": profile}))
    label = "host wait: the device waits for its host during 59 % of a step"
    assert slow.labels == [label]
    row = row_of(slow)
    assert (row.host_wait_pct, row.exposed_communication_pct) == (59, 1)
    # The bar of the step is that rank's, too.
    parts = (row.compute_ms, row.exposed_communication_ms, row.data_ms, row.host_wait_ms)
    assert parts == pytest.approx((40, 1, 0, 59))
    assert (row.labels, row.label_reasons) == ("host wait", label)
    # Tracing made these steps twice as long.
    timed = throughput.model_copy(update={"step_ms_mean": 50.0})
    traced = slow.model_copy(update={"throughput": timed})
    assert row_of(traced).exposed_communication_pct == 2
    fast = metrics.model_copy(update={"profile": [split(0, host_gap_ms=9, exposed_ms=20)]})
    assert judge(fast).labels == []
    unknown = metrics.model_copy(update={"profile": []})
    assert judge(unknown).labels == []
    assert row_of(unknown).host_wait_pct is None


def test_what_tracing_adds_is_no_waiting() -> None:
    # DDP on two H100: a timed step of 40.1 ms, a traced one of 43.9 ms with 5.0 ms of gaps.
    metrics = metrics_of_run("ddp", launched=True)
    assert metrics.throughput is not None
    throughput = metrics.throughput.model_copy(update={"step_ms_mean": 40.1} | STEADY)
    traced = split(0, host_gap_ms=5.0, exposed_ms=0.3).model_copy(update={"step_ms": 43.9})
    result = metrics.model_copy(update={"throughput": throughput, "profile": [traced]})
    assert host_wait_pct(result) == pytest.approx(100 * 1.2 / 40.1)
    assert row_of(result).host_wait_ms == pytest.approx(1.2)
    assert judge(result).labels == []
    slower = traced.model_copy(update={"step_ms": 99.0})
    assert host_wait_pct(result.model_copy(update={"profile": [slower]})) == 0
