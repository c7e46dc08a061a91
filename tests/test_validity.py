"""Each rule that marks a cell as suspect, fired by simulated telemetry; and none without cause.

A reading that is missing or contradicts another one is said to be unknown, never taken for fine.
"""

from __future__ import annotations

from typing import Any

import pytest

from gpu_matrix import settings_of
from real_cells import cell_named
from result_tables import row_of
from shardmark.cells import Cell
from shardmark.measurement.devices import summarise_cell, summarise_device
from shardmark.measurement.labels import cell_labels
from shardmark.measurement.validity import RULES, judged, unchecked_rules
from shardmark.metrics import HostUse, Metrics, Probe, StepSplit, Throughput
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


HOST = {
    "rank": 0,
    "launching_cpu_pct": 90.0,
    "process_cpu_pct": 95.0,
    "involuntary_switches_per_s": 0.0,
    "cpu_pressure_pct": 0.0,
    "cpus": 2,
    "cpu_list": "0-1",
    "cpu_periods": 0,
    "cpu_periods_throttled": 0,
}
BUSY = StepSplit(
    rank=0,
    steps=5,
    step_ms=10,
    compute_ms=10,
    exposed_communication_ms=0,
    data_ms=0,
    host_gap_ms=0,
    communication_ms=0,
)


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
        host=[HostUse(**HOST)],
        profile=[BUSY],
    )


def assert_suspect(found: Metrics, rule: str, words: str) -> None:
    judgement = judged(found)
    print(judgement.validity_reasons)
    assert judgement.validity == "suspect"
    assert [reason.split(":")[0] for reason in judgement.validity_reasons] == [rule]
    assert words in judgement.validity_reasons[0]


def test_a_calm_cell_is_valid_and_nothing_of_it_is_unknown() -> None:
    calm = judged(result())
    assert (calm.validity_reasons, calm.unknown, cell_labels(calm)) == ([], [], [])


NULLS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "no reasons to throttle, as from a driver that has no such question": (
        {"throttle_mask": None},
        {},
        ["throttled could not be checked: the driver reports no reasons, or rarely (GPU 0 of n1)"],
    ),
    "no power limit where power is capped": (
        {"throttle_mask": 4.0, "power_limit_w": None},
        {},
        [
            "throttled could not be checked: power is capped, and the driver does not say whether "
            "below the GPU's own limit (GPU 0 of n1)"
        ],
    ),
    "no power limit where nothing is capped": ({"power_limit_w": None}, {}, []),
    "no list of processes": (
        {"processes": None},
        {},
        [
            "shared GPU could not be checked: the driver does not list all processes on it, as in "
            "a container that hides them (GPU 0 of n1)"
        ],
    ),
    "a list that lacks the cell's own process": (
        {"processes": "-"},
        {},
        [
            "shared GPU could not be checked: the driver does not list all processes on it, as in "
            "a container that hides them (GPU 0 of n1)"
        ],
    ),
    "never seen idle": (
        {},
        {"idle": 0.0},
        [
            "shared GPU could not be checked: its memory and load before the cell began are not "
            "known (GPU 0 of n1)"
        ],
    ),
    "no ECC": (
        {"ecc_errors": None},
        {"ecc_errors": None},
        [
            "memory errors could not be checked: it has no ECC, or the driver does not count its "
            "errors through (GPU 0 of n1)"
        ],
    ),
    "no energy counter": (
        {"energy_j": None},
        {},
        [
            "energy could not be checked: the device has no energy counter that can be read "
            "(GPU 0 of n1)"
        ],
    ),
    "no power": (
        {"power_w": None},
        {"power_w": None},
        [
            "energy could not be checked: nothing confirms the counter: the window is under 2 s, "
            "or power cannot be read (GPU 0 of n1)"
        ],
    ),
    "more power before the cell than in it": (
        {},
        {"power_w": 500.0, "energy_j": None},
        [
            "energy could not be checked: it took more power before the cell began than in the "
            "window (GPU 0 of n1)"
        ],
    ),
}


@pytest.mark.parametrize("what", NULLS)
def test_a_reading_that_is_missing_is_said_and_not_taken_for_fine(what: str) -> None:
    window, before, unknown = NULLS[what]
    found = judged(result(telemetry(window, before)))
    assert found.unknown == unknown
    assert (found.validity, found.validity_reasons) == ("valid", []), "unknown excludes nothing"
    assert row_of(found).unknown == "; ".join(unknown)


def test_an_error_counter_that_was_read_once_or_began_anew_tells_no_errors() -> None:
    for values in ({99: 0.0}, {60: 7.0, 99: 0.0}):
        rows = [row | {"ecc_errors": None} for row in telemetry()]
        for place, value in values.items():
            rows[place]["ecc_errors"] = value
        found = judged(result(rows))
        assert found.validity_reasons == []
        assert unchecked_rules(found.unknown) == ["memory errors"]


def test_reasons_known_for_half_of_the_window_are_not_known() -> None:
    rows = telemetry()
    for row in rows[::2]:
        row["throttle_mask"] = None
    assert unchecked_rules(judged(result(rows)).unknown) == ["throttled"]


def test_a_sampler_that_stood_still_leaves_unknown_what_happened_then() -> None:
    rows = [row for row in telemetry() if not 12 < row["monotonic_s"] < 15]
    found = judged(result(rows))
    assert found.unknown == [
        "unwatched could not be checked: no sample for 30 % of the window on end (GPU 0 of n1)"
    ]


def test_a_gpu_without_samples_leaves_all_of_it_unknown() -> None:
    found = judged(result([]))
    names = ["throttled", "shared GPU", "unwatched", "memory errors", "energy"]
    assert unchecked_rules(found.unknown) == names
    assert found.unknown[0] == (
        "throttled could not be checked: no sample fell into the window (GPU 0 of n1)"
    )


def test_equal_answers_of_several_gpus_are_said_once() -> None:
    one = result(telemetry({"throttle_mask": None}))
    other = one.devices[0].model_copy(update={"index": 1})
    both = judged(one.model_copy(update={"devices": [*one.devices, other]}))
    assert both.unknown == [
        "throttled could not be checked: the driver reports no reasons, or rarely (all 2 GPUs)"
    ]


def test_too_few_steps_to_see_a_drift_are_said() -> None:
    found = judged(result(steps=20, drift_pct=None))
    assert found.unknown == ["drifting could not be checked: the window's 20 steps are too few"]


def test_rules_that_need_other_cells_are_unknown_where_there_are_none() -> None:
    cell = probed(780)
    assert judged(cell).unknown == [], "a cell that has just ended has no others yet"
    assert judged(cell, [cell]).unknown == [
        "slow GPU could not be checked: no other cell ran on such GPUs in this precision",
    ]
    assert judged(cell, [cell, probed(785)]).unknown == []
    without = cell.model_copy(update={"probes": []})
    assert judged(without, [cell]).unknown == [
        "slow GPU could not be checked: the cell has no probe"
    ]
    assert unchecked_rules(judged(loaded(1000), [control(1000, "fsdp")]).unknown) == ["input-bound"]
    assert judged(loaded(1000), [control(1000)]).unknown == []


def test_a_cell_that_failed_leaves_nothing_unknown() -> None:
    failed = result([]).model_copy(update={"status": "failed"})
    assert judged(failed).unknown == []


def test_what_was_recorded_before_it_was_asked_for_is_unknown() -> None:
    old = result().model_copy(update={"host": [], "profile": []})
    assert unchecked_rules(judged(old).unknown) == [
        "waiting for the host",
        "CPU quota",
        "sharing of CPUs",
    ]


def test_a_counter_and_power_that_contradict_each_other_give_no_energy() -> None:
    # A GH200, whose counter is of the whole module: four times the power of the GPU.
    rows = telemetry({"power_w": 100.0})
    found = judged(result(rows))
    words = (
        "energy counter and power of GPU 0 of n1 contradict each other: the integral of power is "
        "off by 75 %, more than 10 %"
    )
    assert cell_labels(found) == [words]
    assert found.validity == "valid", "a label excludes nothing"
    (device,) = found.devices
    cell = summarise_cell(found.devices, images=10, images_per_epoch=100)
    assert (cell.energy_per_image_j, cell.energy_per_epoch_j, cell.power_w) == (None, None, None)
    assert cell.energy_net_per_image_j is None
    assert cell.energy_refused == words
    assert cell.energy_disagreement_pct == pytest.approx(-75)
    assert device.energy_counter_j == pytest.approx(4000), "the reading itself is kept"


def test_gpus_that_disagree_in_opposite_directions_do_not_cancel_out() -> None:
    (calm,) = result().devices
    both = [
        calm.model_copy(
            update={"energy_disagreement_pct": pct, "energy_integral_j": 4000 * (1 + pct / 100)}
        )
        for pct in (20.0, -20.0)
    ]
    assert summarise_cell(both, 10, 100).energy_per_image_j is None
    near = [one.model_copy(update={"energy_disagreement_pct": 9.0}) for one in both]
    assert summarise_cell(near, 10, 100).energy_per_image_j is not None


def hosted(*ranks: dict[str, Any]) -> Metrics:
    """A cell of a rank each, whose hosts differ from the calm one so."""
    host = [HostUse(**HOST | {"rank": rank} | changes) for rank, changes in enumerate(ranks)]
    return result().model_copy(update={"host": host})


def test_a_cpu_quota_that_ran_out_is_a_label() -> None:
    # A container held to half a CPU.
    throttled = {"cpu_quota": 0.5, "cpu_periods": 97, "cpu_periods_throttled": 94}
    found = judged(hosted({}, throttled))
    assert cell_labels(found) == ["its quota of 0.5 CPUs ran out in 94 of 97 periods"]
    assert (found.validity, found.unknown) == ("valid", [])
    row = row_of(found)
    assert row.cpu_throttled_pct == pytest.approx(100 * 94 / 97)
    assert cell_labels(hosted({"cpu_quota": 8.0, "cpu_periods": 97})) == []


def test_a_quota_that_nobody_can_read_is_unknown() -> None:
    found = judged(hosted({}, {"cpu_periods": None, "cpu_periods_throttled": None}))
    assert found.unknown == [
        "CPU quota could not be checked: the control groups of a rank could not be read"
    ]
    assert row_of(found).cpu_throttled_pct is None


def test_ranks_that_share_a_cpu_are_labelled() -> None:
    bound = {"cpus": 1, "cpu_list": "0"}
    assert cell_labels(hosted(bound, bound)) == ["2 ranks share 1 CPU"]
    assert cell_labels(hosted(bound, {"cpus": 1, "cpu_list": "1"})) == []


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


def test_a_window_of_steps_that_update_nothing_is_suspect() -> None:
    # ZeRO under fp16 on two H100, whose loss scale never became lower.
    settings = settings_of(result().cell)
    training = result().model_copy(update={"effective_config": settings})
    assert judged(training).validity == "valid"
    idle = settings.model_copy(update={"optimizer": None, "skipped_steps": 12})
    suspect = training.model_copy(update={"effective_config": idle})
    assert_suspect(suspect, "not training", "the loss scaler left out 12 steps")


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
        "not training",
    ]
    assert all(rule.says for rule in RULES)
