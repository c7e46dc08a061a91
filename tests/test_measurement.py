"""Steady state, devices, energy: from raw samples to the figures of a cell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardmark.clocks import Phases
from shardmark.devices import read_samples, summarise_cell, summarise_device
from shardmark.metrics import Device
from shardmark.steady_state import is_stationary, percentile, summarise_steps
from shardmark.telemetry import rapl_energy_j, sampling

GPU = {"index": 0, "node": "n", "kind": "gpu", "name": "GPU", "uuid": "GPU-1"}


def gpu_rows(seconds: float, watts: float, interval: float = 0.05) -> list[dict[str, float | None]]:
    """A counter that moves every 100 ms, as an H200's does, sampled twice as often."""
    rows: list[dict[str, float | None]] = []
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


def test_the_energy_counter_gives_power_times_window() -> None:
    device = summarise_device(gpu_rows(10, 400), 2.0, 8.0, GPU)
    assert device.energy_counter_j == pytest.approx(2400, rel=1e-6)
    assert device.energy_integral_j == pytest.approx(2400, rel=1e-6)
    assert device.power_mean_w == pytest.approx(400)
    assert device.throttle_reasons == []


def test_a_window_too_short_for_the_counter_has_no_energy() -> None:
    device = summarise_device(gpu_rows(10, 400), 2.0, 2.5, GPU)
    assert device.energy_counter_j is None
    assert device.power_mean_w is None
    assert device.utilization_pct == pytest.approx(90)


def test_a_counter_that_wrapped_tells_nothing() -> None:
    rows = gpu_rows(10, 400)
    for row in rows[100:]:
        row["energy_j"] = (row["energy_j"] or 0) - 2000
    assert summarise_device(rows, 2.0, 8.0, GPU).energy_counter_j is None


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
    known = Device(**GPU, energy_counter_j=100.0, power_mean_w=50.0)
    unknown = Device(**GPU)
    assert summarise_cell([known, known], 10).energy_per_image_j == 20
    assert summarise_cell([known, unknown], 10).energy_per_image_j is None
    assert summarise_cell([known, unknown], 10).power_w is None


def test_throughput_is_the_slowest_ranks() -> None:
    found = summarise_steps([[10.0] * 100, [20.0] * 100], images=64)
    assert found["images_per_s"] == pytest.approx(64 / 0.020)
    assert found["slowest_rank"] == 1
    assert found["step_ms_p50"] == 20


def test_percentiles_are_of_nearest_rank() -> None:
    assert [percentile([1, 2, 3, 4, 5], share) for share in (0.0, 0.5, 0.9, 0.99)] == [1, 3, 5, 5]
    assert percentile([float(n) for n in range(1, 101)], 0.9) == 90


def test_a_second_belongs_to_one_phase() -> None:
    begin = time.perf_counter()
    phases = Phases(imports_s=1.0)
    with phases("training"):
        time.sleep(0.02)
        with phases("first_step"):
            time.sleep(0.03)
        assert phases.current == "training"
        time.sleep(0.02)
    time.sleep(0.01)
    found = phases.so_far()
    assert sum(found.values()) == pytest.approx(1.0 + time.perf_counter() - begin, abs=1e-3)
    for name, seconds in (("training", 0.04), ("first_step", 0.03), ("other", 0.01)):
        assert seconds <= found[name] < seconds + 0.01


def test_a_failure_is_told_with_the_phase_it_was_in() -> None:
    phases = Phases()
    with pytest.raises(ValueError, match="boom"), phases("training"), phases("first_step"):
        raise ValueError("boom")
    assert phases.current == "first_step"


def test_warm_up_lasts_until_the_halves_agree() -> None:
    assert not is_stationary([100, 80, 60, 40, 30, 20])
    assert is_stationary([20, 21, 20, 20, 21, 20])
    assert not is_stationary([20.0])


def test_the_sampler_sees_a_busy_process_and_ends_with_its_parent(tmp_path: Path) -> None:
    target = tmp_path / "telemetry.csv"
    begin = time.monotonic()
    with sampling(target, 0.05, None):
        busy = "import time; t = time.time()\nwhile time.time() - t < 3: pass"
        subprocess.run([sys.executable, "-c", busy], check=True)
    rows = read_samples(target)["cpu"]
    device = summarise_device(rows, begin + 1.5, time.monotonic(), {**GPU, "kind": "cpu"})
    share = 100 / (os.cpu_count() or 1)
    assert device.utilization_pct is not None
    assert 0.3 * share < device.utilization_pct < 1.4 * share
    assert (device.memory_used_peak_bytes or 0) > 1e6


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
