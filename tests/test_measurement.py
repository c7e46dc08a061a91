"""Steady state, devices, energy: from raw samples to the figures of a cell."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shardmark.measurement import telemetry
from shardmark.measurement.clocks import Phases, StepClock
from shardmark.measurement.devices import (
    foreign_processes,
    read_samples,
    summarise_cell,
    summarise_device,
)
from shardmark.measurement.steady_state import (
    is_stationary,
    measure_drift,
    percentile,
    summarise_steps,
)
from shardmark.measurement.telemetry import CpuProbe, rapl_energy_j, sampling
from shardmark.metrics import Device

GPU = {"index": 0, "node": "n", "kind": "gpu", "name": "GPU", "uuid": "GPU-1"}


def gpu_rows(seconds: float, watts: float, interval: float = 0.05) -> list[dict[str, Any]]:
    """A counter that moves every 100 ms, as an H200's does, sampled twice as often."""
    rows: list[dict[str, Any]] = []
    for index in range(int(seconds / interval) + 1):
        moment = index * interval
        tick = round(moment / interval) // 2 * 0.1
        rows.append(
            {
                "monotonic_s": moment,
                "utilization_pct": 90.0,
                "memory_used_bytes": 1e9 + index,
                "power_w": watts,
                "energy_j": 1000 + watts * tick,
                "sm_clock_mhz": 1980.0,
                "temperature_c": 50.0,
                "throttle_mask": 0.0,
            }
        )
    return rows


def idle_rows(watts: float) -> list[dict[str, Any]]:
    """Five seconds that end when the cell begins, at 0."""
    rows = gpu_rows(5, watts)
    return [row | {"idle": 1.0, "monotonic_s": (row["monotonic_s"] or 0) - 5} for row in rows]


def test_steps_are_timed_on_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        recorded_on: Any = "the current device"

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any = None) -> None:
            self.recorded_on = stream or self.recorded_on

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            assert self.recorded_on == end.recorded_on == torch.device("cuda", 1)
            return 7.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    clock = StepClock(torch.device("cuda", 1))
    clock.mark()
    assert clock.step_ms() == [7.0]


def test_the_energy_counter_gives_power_times_window() -> None:
    device = summarise_device(gpu_rows(10, 400), 2.0, 8.0, GPU)
    assert device.energy_counter_j == pytest.approx(2400, rel=1e-6)
    assert device.energy_integral_j == pytest.approx(2400, rel=1e-6)
    assert device.power_mean_w == pytest.approx(400)
    assert device.throttle_reasons == []
    assert device.energy_refused is None
    assert device.energy_disagreement_pct == pytest.approx(0, abs=1e-6)
    assert device.energy_ticks == 60


def test_the_counter_is_read_from_tick_to_tick() -> None:
    # Ticks of 0.5 s: a plain difference over a window that holds 8.4 of them would be off by 5 %.
    rows = gpu_rows(20, 400)
    for row in rows:
        row["energy_j"] = 1000 + 400 * ((row["monotonic_s"] or 0) // 0.5) * 0.5
    device = summarise_device(rows, 2.1, 6.3, GPU)
    assert device.energy_counter_j == pytest.approx(400 * 4.2, rel=1e-6)
    assert device.energy_ticks == 8


def test_the_disagreement_of_counter_and_integral_is_told() -> None:
    rows = [row | {"power_w": 420.0} for row in gpu_rows(10, 400)]
    device = summarise_device(rows, 2.0, 8.0, GPU)
    assert device.energy_disagreement_pct == pytest.approx(5.0)
    assert device.energy_integral_j == pytest.approx(2520)
    assert device.power_mean_w == pytest.approx(400)


def test_net_energy_is_less_what_the_idle_device_takes() -> None:
    device = summarise_device([*idle_rows(75), *gpu_rows(10, 400)], 2.0, 8.0, GPU)
    assert device.idle_power_w == pytest.approx(75)
    assert device.energy_counter_j == pytest.approx(2400)
    assert device.energy_net_j == pytest.approx((400 - 75) * 6)


def test_a_device_that_took_more_when_idle_has_no_net_energy() -> None:
    device = summarise_device([*idle_rows(500), *gpu_rows(10, 400)], 2.0, 8.0, GPU)
    assert (device.energy_net_j, device.idle_power_w) == (None, pytest.approx(500))


def test_a_device_not_seen_idle_has_no_net_energy() -> None:
    assert summarise_device(gpu_rows(10, 400), 2.0, 8.0, GPU).energy_net_j is None


def test_a_window_too_short_for_the_counter_has_no_energy_and_says_why() -> None:
    device = summarise_device(gpu_rows(10, 400), 2.0, 2.5, GPU)
    assert device.energy_counter_j is None
    assert device.power_mean_w is None
    assert device.energy_refused is not None
    assert "50 ms: uncertain by 1" in device.energy_refused
    assert summarise_cell([device], 10, 100).energy_refused == device.energy_refused
    assert device.utilization_pct == pytest.approx(90)


def test_a_counter_that_wrapped_tells_nothing() -> None:
    rows = gpu_rows(10, 400)
    for row in rows[100:]:
        row["energy_j"] = (row["energy_j"] or 0) - 2000
    device = summarise_device(rows, 2.0, 8.0, GPU)
    assert device.energy_counter_j is None
    assert device.energy_refused == "the energy counter ran backwards"


def test_a_device_without_a_counter_has_the_integral_alone() -> None:
    rows = [row | {"energy_j": None} for row in gpu_rows(10, 400)]
    device = summarise_device(rows, 2.0, 8.0, GPU)
    assert device.energy_refused == "the device has no energy counter that can be read"
    assert device.energy_integral_j == pytest.approx(2400)
    assert device.power_mean_w == pytest.approx(400)


def test_what_no_sample_saw_is_null() -> None:
    device = summarise_device(gpu_rows(1, 400), 50.0, 60.0, GPU)
    assert device.utilization_pct is None
    assert device.memory_used_peak_bytes is None
    assert device.samples == 0


def test_the_mean_weighs_time_not_samples() -> None:
    rows = gpu_rows(10, 400)
    busy = [dict(row, utilization_pct=0.0) for row in rows if (row["monotonic_s"] or 0) > 5]
    sparse = [row for row in rows if (row["monotonic_s"] or 0) <= 5][::20] + busy
    device = summarise_device(sparse, 0.0, 10.0, GPU)
    assert device.utilization_pct == pytest.approx(45, abs=5)


def test_one_device_that_does_not_know_makes_the_cells_energy_unknown() -> None:
    known = Device(**GPU, energy_counter_j=100.0, energy_net_j=60.0, power_mean_w=50.0)
    unknown = Device(**GPU)
    both = summarise_cell([known, known], items=10, items_per_epoch=1000)
    assert both.energy_per_item_j == 20
    assert both.energy_net_per_item_j == 12
    assert both.energy_per_epoch_j == 20_000
    assert summarise_cell([known, unknown], 10, 1000).energy_per_item_j is None
    assert summarise_cell([known, unknown], 10, 1000).energy_per_epoch_j is None
    assert summarise_cell([known, unknown], 10, 1000).power_w is None


def test_throttling_is_told_by_its_share_of_the_samples() -> None:
    rows = gpu_rows(10, 400)
    for row in rows[100:]:
        row["throttle_mask"] = float(0x20 | 0x4 | 0x1)
    device = summarise_device(rows, 0.0, 10.0, GPU)
    assert device.throttle_reasons == ["sw_power_cap", "sw_thermal_slowdown"]
    assert device.throttled_pct == pytest.approx(
        {"sw_power_cap": 50, "sw_thermal_slowdown": 50}, abs=1
    )


@pytest.mark.parametrize(
    ("idle", "listed", "foreign"),
    [
        # The cell's own are there, so the list hides some.
        (None, "-", None),
        (None, "700", None),
        (None, "10;11", 0),
        (None, "10;11;99", 1),
        # Of another namespace: by their number.
        (None, "700;701", 0),
        (None, "700;701;702", 1),
        # Says nothing of the window.
        (1.0, "-", None),
        (1.0, "99", 1),
        (None, None, None),
    ],
)
def test_processes_that_are_not_the_cells(
    idle: float | None, listed: str | None, foreign: int | None
) -> None:
    assert foreign_processes([{"idle": idle, "processes": listed}], {10, 11}) == foreign


def test_throughput_is_the_slowest_ranks() -> None:
    summary = summarise_steps([[10.0] * 100, [20.0] * 100], items=64)
    assert summary["items_per_s"] == pytest.approx(64 / 0.020)
    assert summary["slowest_rank"] == 1
    assert summary["step_ms_p50"] == 20


def test_percentiles_are_of_nearest_rank() -> None:
    assert [percentile([1, 2, 3, 4, 5], share) for share in (0.0, 0.5, 0.9, 0.99)] == [1, 3, 5, 5]
    assert percentile([float(n) for n in range(1, 101)], 0.9) == 90


def test_a_second_belongs_to_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("shardmark.measurement.clocks.time.perf_counter", lambda: now)
    phases = Phases(imports_s=1.0)
    with phases("training"):
        now += 2
        with phases("first_step"):
            now += 4
        assert phases.current == "training"
        now += 8
    now += 16
    assert phases.so_far() == {"imports": 1, "training": 10, "first_step": 4, "other": 16}


def test_a_failure_is_told_with_the_phase_it_was_in() -> None:
    phases = Phases()
    with pytest.raises(ValueError, match="boom"), phases("training"), phases("first_step"):
        raise ValueError("boom")
    assert phases.current == "first_step"


def test_drift_is_of_the_last_third_against_the_first() -> None:
    rising = measure_drift([10.0 + step / 100 for step in range(100)])
    assert rising.pct == pytest.approx(100 * (2 / 3) / 10.5, rel=0.01)
    assert rising.error_pct == pytest.approx(0, abs=1e-6)
    assert measure_drift([10.0] * 19) == (None, None)


def test_what_is_no_trend_is_within_the_error_of_the_drift() -> None:
    generator = random.Random(1)
    # A host that slows many steps in a row: AR(1) with 0.8, as seen in cells that wait for it.
    level, wandering = 0.0, []
    for _ in range(2000):
        level = 0.8 * level + generator.gauss(0, 1)
        wandering.append(20 + level)
    stragglers = [10.0] * 60 + [900.0]
    alternating = [10.0, 11.0] * 50
    windows = [wandering[begin : begin + 200] for begin in range(0, 2000, 200)]
    for steps in (*windows, stragglers, alternating):
        trend = measure_drift(steps)
        assert trend.pct is not None
        assert trend.error_pct is not None
        assert abs(trend.pct) < 4 * trend.error_pct


def test_warm_up_lasts_until_the_halves_agree() -> None:
    assert not is_stationary([100, 80, 60, 40, 30, 20])
    assert is_stationary([20, 21, 20, 20, 21, 20])
    assert not is_stationary([20.0])


def test_the_sampler_sees_a_busy_process_and_ends_with_its_parent(tmp_path: Path) -> None:
    target = tmp_path / "telemetry.csv"
    with sampling(target, 0.05, None, idle_s=0.1):
        begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = "import time; t = time.time()\nwhile time.time() - t < 3: pass"
        subprocess.run([sys.executable, "-c", busy], check=True)
        end, after = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    device = summarise_device(read_samples(target)["cpu"], begin, end, {**GPU, "kind": "cpu"})
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    share = 100 * used_s / (end - begin) / (os.cpu_count() or 1)
    assert device.utilization_pct == pytest.approx(share, rel=0.2)
    assert (device.memory_used_peak_bytes or 0) > 1e6


def test_the_devices_are_watched_idle_before_the_cell_begins(tmp_path: Path) -> None:
    target = tmp_path / "telemetry.csv"
    called = time.monotonic()
    with sampling(target, 0.05, None, idle_s=2.0):
        begin = time.monotonic()
        time.sleep(1)
    assert begin - called >= 3.0
    rows = read_samples(target)["cpu"]
    idle = [row["monotonic_s"] for row in rows if row["idle"]]
    assert max(idle) < begin
    # Not its first second, in which the device may still show the cell before.
    assert 1.2 < max(idle) - min(idle) < 2.5
    assert any(row["monotonic_s"] > begin and not row["idle"] for row in rows)


def test_rapl_is_null_where_it_cannot_be_read_and_a_sum_of_packages_where_it_can(
    tmp_path: Path,
) -> None:
    assert rapl_energy_j(tmp_path) is None
    for package, energy in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 2_000_000)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "energy_uj").write_text(str(energy))
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("9")
    assert rapl_energy_j(tmp_path) == pytest.approx(3.0)


def test_a_process_that_one_reading_misses_adds_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = CpuProbe(os.getpid())
    busy = [50.0]
    process = SimpleNamespace(
        pid=1,
        cpu_times=lambda: SimpleNamespace(user=busy[0], system=0.0),
        memory_info=lambda: SimpleNamespace(rss=2**20),
    )
    found = iter([[process], [], [process]])
    monkeypatch.setattr(probe, "_root", SimpleNamespace(children=lambda recursive: next(found)))
    clock = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(probe, "_cores", 2)
    list(probe.rows())
    assert [row["utilization_pct"] for row in probe.rows()] == [0.0]
    busy[0] = 51.0
    assert [row["utilization_pct"] for row in probe.rows()] == [50.0]


def test_the_first_sample_of_a_cpu_has_no_utilisation() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        probe = CpuProbe(os.getpid())
        [first] = probe.rows()
        time.sleep(0.3)
        [second] = probe.rows()
    finally:
        busy.kill()
        busy.wait()
    assert first["utilization_pct"] is None, "seconds spent before, over no time at all"
    assert 0 <= second["utilization_pct"] <= 110
