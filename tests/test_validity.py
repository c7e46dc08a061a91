"""Each rule that marks a cell as suspect, fired by simulated telemetry; and none without cause."""

from __future__ import annotations

from typing import Any

import pytest

from real_cells import cell_named
from shardmark.cells import Cell
from shardmark.measurement.devices import summarise_device
from shardmark.measurement.validity import RULES, judged
from shardmark.metrics import Metrics, Probe, Throughput
from test_measurement import gpu_rows

KNOWN = {"index": 0, "node": "n1", "kind": "gpu", "name": "GPU", "uuid": "GPU-1"}
CALM = {"processes": "10", "power_limit_w": 700.0, "ecc_errors": 0.0}
CALM_BEFORE = {
    "idle": 1.0,
    "processes": "-",
    "utilization_pct": 0.0,
    "memory_used_bytes": 4 * 2**20,
    "power_w": 75.0,
}


def telemetry(
    window: dict[str, Any] | None = None, before: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Five idle seconds and twenty busy ones of one GPU; what is given stands in every row."""
    calm = [row | CALM | (window or {}) for row in gpu_rows(20, 400)]
    idle = [row | CALM_BEFORE | (before or {}) for row in gpu_rows(5, 75)]
    shifted = [row | {"monotonic_s": row["monotonic_s"] + 6} for row in calm]
    return [*idle, *shifted]


def result(
    rows: list[dict[str, Any]] | None = None,
    cell: Cell | None = None,
    default_limit_w: float = 700,
    **measured: Any,
) -> Metrics:
    steady: dict[str, Any] = {
        "images_per_s": 1000.0,
        "images_per_s_per_gpu": 1000.0,
        "step_ms_mean": 10.0,
        "step_ms_p50": 10.0,
        "step_ms_p90": 10.0,
        "step_ms_p99": 10.0,
        "steps": 1000,
        "window_s": 10.0,
        "window_complete": True,
        "warmup_steps": 10,
        "warmup_converged": True,
        "slowest_rank": 0,
        "drift_pct": 0.4,
    }
    device = summarise_device(
        telemetry() if rows is None else rows,
        10.0,
        20.0,
        KNOWN | {"power_limit_default_w": default_limit_w},
        [10],
    )
    return Metrics(
        cell=cell or cell_named("ddp"),
        cell_sha256="",
        code_sha256="",
        status="ok",
        throughput=Throughput(**steady | measured),
        devices=[device],
    )


def assert_suspect(found: Metrics, rule: str, words: str) -> None:
    judgement = judged(found)
    print(judgement.validity_reasons)
    assert judgement.validity == "suspect"
    assert [reason.split(":")[0] for reason in judgement.validity_reasons] == [rule]
    assert words in judgement.validity_reasons[0]


def test_a_calm_cell_is_valid() -> None:
    assert judged(result()).validity_reasons == []


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (0x8, "hw_slowdown"),
        (0x20, "sw_thermal_slowdown"),
        (0x40, "hw_thermal_slowdown"),
        (0x80, "hw_power_brake_slowdown"),
    ],
)
def test_heat_and_faults_throttle(mask: int, reason: str) -> None:
    rows = telemetry({"throttle_mask": float(mask)})
    assert_suspect(result(rows), "throttled", f"{reason} for 100 % of the window")


def test_a_single_throttled_sample_of_two_hundred_does_not() -> None:
    rows = telemetry()
    rows[-60]["throttle_mask"] = float(0x40)
    assert judged(result(rows)).validity == "valid"


def test_the_power_cap_throttles_below_the_devices_own_limit_only() -> None:
    capped = telemetry({"throttle_mask": float(0x4), "power_limit_w": 400.0})
    assert_suspect(result(capped), "throttled", "held at 400 W, of its own 700 W, for 100 %")
    assert judged(result(capped, default_limit_w=400)).validity == "valid"
    assert judged(result(telemetry({"power_limit_w": 400.0}))).validity == "valid"


def test_another_process_shares_the_gpu() -> None:
    rows = telemetry({"processes": "10;99"})
    assert_suspect(result(rows), "shared GPU", "1 processes that are not the cell's")


def test_a_process_before_the_cell_began_shares_the_gpu() -> None:
    rows = telemetry(before={"processes": "99"})
    assert_suspect(result(rows), "shared GPU", "1 processes that are not the cell's")


def test_memory_in_use_before_the_cell_began_shares_the_gpu() -> None:
    rows = telemetry(before={"memory_used_bytes": 2**30, "processes": None})
    assert_suspect(result(rows), "shared GPU", "1024 MiB in use before the cell began")


def test_load_before_the_cell_began_shares_the_gpu() -> None:
    rows = telemetry(before={"utilization_pct": 80.0, "processes": None})
    assert_suspect(result(rows), "shared GPU", "busy for 80 % of the time before the cell began")


def test_a_gpu_that_nobody_watched_is_suspect() -> None:
    assert_suspect(result([]), "unwatched", "GPU 0 of n1 was not watched")


def test_uncorrected_memory_errors_are_suspect() -> None:
    rows = telemetry()
    for row in rows[-60:]:
        row["ecc_errors"] = 2.0
    assert_suspect(result(rows), "memory errors", "2 uncorrected memory errors")


@pytest.mark.parametrize(("drift", "words"), [(7.25, "7.2 % slower"), (-6.0, "6.0 % faster")])
def test_drifting_steps_are_suspect(drift: float, words: str) -> None:
    assert_suspect(result(drift_pct=drift), "drifting", words)


def test_a_short_window_is_suspect() -> None:
    short = result(window_s=0.2, window_complete=False)
    assert_suspect(short, "window too short", "0.20 s long, of the 0.3 s asked for")


def control(images_per_s: float, strategy: str = "ddp", **dataset: Any) -> Metrics:
    fed = {"name": "synthetic", "train_images": 64, "test_images": 16} | dataset
    return result(cell=cell_named(strategy, dataset=fed), images_per_s=images_per_s)


def loaded(images_per_s: float) -> Metrics:
    return control(images_per_s, name="cifar10")


def test_a_cell_slower_than_its_synthetic_control_is_input_bound() -> None:
    (reason,) = judged(loaded(1000), [loaded(1000), control(1080)]).validity_reasons
    assert reason.startswith("input-bound: the same training on synthetic images is 8.0 % faster")


def test_prefetched_images_are_held_against_those_on_the_device() -> None:
    prefetched = control(1000, loader="dataloader")
    assert judged(prefetched, [control(1080)]).validity == "suspect"
    assert judged(control(1000), [control(1080)]).validity == "valid"


def test_only_the_same_training_is_a_control() -> None:
    cell = loaded(1000)
    assert judged(cell, [control(1040)]).validity == "valid", "within 5 %"
    assert judged(cell, [control(2000, strategy="fsdp")]).validity == "valid"
    assert judged(cell, [control(2000, image_size=64)]).validity == "valid"
    assert judged(cell, [control(2000, loader="dataloader")]).validity == "valid"


def test_several_controls_count_by_their_median() -> None:
    assert judged(loaded(1000), [control(x) for x in (900, 1010, 3000)]).validity == "valid"


def probed(tflops: float, name: str = "H200") -> Metrics:
    probe = Probe(
        device=0, uuid="u", matmul_tflops=tflops, copy_gb_per_s=4000, all_reduce_gb_per_s=None
    )
    cell = cell_named("ddp").model_copy(update={"device": "cuda"})
    found = result(cell=cell)
    device = found.devices[0].model_copy(update={"name": name})
    return found.model_copy(update={"probes": [probe], "devices": [device]})


def test_a_gpu_slower_than_the_others_of_its_kind_is_seen() -> None:
    slow = probed(680)
    (reason,) = judged(slow, [slow, probed(780), probed(782)]).validity_reasons
    assert reason == ("slow GPU: 680.0 TFLOP/s in the probe, 13 % under the 781.0 of 2 other cells")
    assert judged(probed(730), [probed(780)]).validity == "valid", "within 10 %"
    assert judged(slow, [probed(990, name="H100")]).validity == "valid"


def test_a_cell_that_failed_is_no_suspect() -> None:
    failed = result(drift_pct=50.0).model_copy(update={"status": "diverged"})
    assert judged(failed).validity == "valid"


def test_every_rule_says_when_it_fires() -> None:
    assert [rule.name for rule in RULES] == [
        "throttled",
        "shared GPU",
        "unwatched",
        "memory errors",
        "drifting",
        "window too short",
    ]
    assert all(rule.says for rule in RULES)
