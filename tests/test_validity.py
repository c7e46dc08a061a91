"""Device faults exclude a cell and labels do not; simulated telemetry triggers each of them.

A rule whose reading is missing, or contradicts another one, is unknown.
"""

from __future__ import annotations

from typing import Any

import pytest

from gpu_matrix import settings_of
from real_cells import cell_named
from result_tables import row_of
from shardmark.cells import Cell
from shardmark.measurement.device_faults import DEVICE_FAULTS
from shardmark.measurement.devices import summarise_cell, summarise_device
from shardmark.measurement.labels import LABELS
from shardmark.measurement.rules import Peers
from shardmark.measurement.validity import judge, names_of_rules, unchecked_rules
from shardmark.metrics import HostUse, Metrics, Probe, StepSplit, Throughput
from shardmark.results.exclusion import why_excluded
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome
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
        "items_per_s": 1000.0,
        "items_per_s_per_gpu": 1000.0,
        "step_ms_mean": 10.0,
        "step_ms_p50": 10.0,
        "step_ms_p90": 10.0,
        "step_ms_p99": 10.0,
        "steps": 1000,
        "window_s": 10.0,
        "warmup_steps": 10,
        "warmup_converged": True,
        "slowest_rank": 0,
        "half_width_pct": 0.5,
        "drift_pct": 0.4,
        "drift_error_pct": 0.1,
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


def judged_among(metrics: Metrics, others: list[Metrics]) -> Metrics:
    return judge(metrics, Peers(others))


def excluded(metrics: Metrics) -> str:
    return why_excluded(PlannedCell(metrics.cell, Outcome.OK, metrics), "passed")


def assert_excluded(metrics: Metrics, rule: str, words: str) -> None:
    judgement = judge(metrics)
    print(judgement.device_faults)
    assert excluded(judgement) == rule
    assert words in judgement.device_faults[0]


def assert_labelled(metrics: Metrics, rule: str, words: str) -> None:
    judgement = judge(metrics)
    print(judgement.labels)
    assert names_of_rules(judgement.labels) == [rule]
    assert words in judgement.labels[0]
    assert (judgement.device_faults, excluded(judgement)) == ([], ""), "a label excludes nothing"


def test_a_calm_cell_has_no_fault_and_no_label_and_nothing_of_it_is_unknown() -> None:
    calm = judge(result())
    assert (calm.device_faults, calm.labels, calm.unknown) == ([], [], [])


NULLS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "no reasons to throttle, as from a driver that has no such question": (
        {"throttle_mask": None},
        {},
        ["throttled could not be checked: the driver reports reasons rarely or not (GPU 0 of n1)"],
    ),
    "no power limit where power is capped": (
        {"throttle_mask": 4.0, "power_limit_w": None},
        {},
        [
            "power-capped could not be checked: power is capped, and the driver does not report "
            "the limit (GPU 0 of n1)",
            "low power limit could not be checked: power is capped, and the driver does not report "
            "whether below the GPU's default (GPU 0 of n1)",
        ],
    ),
    "no power limit where nothing is capped": ({"power_limit_w": None}, {}, []),
    "no list of processes": (
        {"processes": None},
        {},
        [
            "shared GPU could not be checked: the driver does not list all its processes, "
            "for example inside a container (GPU 0 of n1)"
        ],
    ),
    "a list that lacks the cell's own process": (
        {"processes": "-"},
        {},
        [
            "shared GPU could not be checked: the driver does not list all its processes, "
            "for example inside a container (GPU 0 of n1)"
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
            "ECC errors could not be checked: it has no ECC, or the driver does not count "
            "errors throughout (GPU 0 of n1)"
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
            "energy could not be checked: it drew more power before the cell began than in the "
            "window (GPU 0 of n1)"
        ],
    ),
}


@pytest.mark.parametrize("what", NULLS)
def test_a_reading_that_is_missing_is_said_and_not_taken_for_fine(what: str) -> None:
    window, before, unknown = NULLS[what]
    judgement = judge(result(telemetry(window, before)))
    assert judgement.unknown == unknown
    assert (judgement.device_faults, excluded(judgement)) == ([], ""), "unknown excludes nothing"
    row = row_of(judgement)
    assert row.unknown == ";".join(unchecked_rules(unknown))
    assert row.unknown_reasons == "; ".join(unknown)


def test_an_error_counter_that_was_read_once_or_began_anew_tells_no_errors() -> None:
    for values in ({99: 0.0}, {60: 7.0, 99: 0.0}):
        rows = [row | {"ecc_errors": None} for row in telemetry()]
        for place, value in values.items():
            rows[place]["ecc_errors"] = value
        judgement = judge(result(rows))
        assert judgement.device_faults == []
        assert unchecked_rules(judgement.unknown) == ["ECC errors"]


def test_reasons_known_for_half_of_the_window_are_not_known() -> None:
    rows = telemetry()
    for row in rows[::2]:
        row["throttle_mask"] = None
    assert unchecked_rules(judge(result(rows)).unknown) == ["throttled"]


def test_a_sampler_that_stood_still_leaves_unknown_what_happened_then() -> None:
    rows = [row for row in telemetry() if not 12 < row["monotonic_s"] < 15]
    judgement = judge(result(rows))
    assert judgement.unknown == [
        "telemetry missing could not be checked: one gap between samples lasted 30 % of the window "
        "(GPU 0 of n1)"
    ]


def test_a_gpu_without_samples_leaves_all_of_it_unknown() -> None:
    judgement = judge(result([]))
    names = ["throttled", "shared GPU", "telemetry missing", "ECC errors", "low clocks", "energy"]
    assert unchecked_rules(judgement.unknown) == names
    assert judgement.unknown[0] == (
        "throttled could not be checked: no sample fell into the window (GPU 0 of n1)"
    )


def test_equal_answers_of_several_gpus_are_said_once() -> None:
    one = result(telemetry({"throttle_mask": None}))
    other = one.devices[0].model_copy(update={"index": 1})
    both = judge(one.model_copy(update={"devices": [*one.devices, other]}))
    assert both.unknown == [
        "throttled could not be checked: the driver reports reasons rarely or not (all 2 GPUs)"
    ]


def test_too_few_steps_to_see_a_drift_are_said() -> None:
    few = {"half_width_pct": None, "drift_pct": None, "drift_error_pct": None}
    judgement = judge(result(steps=19, **few))
    assert judgement.unknown == [
        f"{name} could not be checked: the window's 19 steps are too few"
        for name in ("imprecise", "drift")
    ]


def test_rules_that_need_other_cells_are_unknown_where_there_are_none() -> None:
    cell = probed(780)
    assert judge(cell).unknown == [], "a cell that has just ended has no others yet"
    assert judged_among(cell, [cell]).unknown == [
        "low clocks could not be checked: no other GPU of that name ran the same strategy and GPU "
        "count (GPU 0 of n1)",
        "slow probe could not be checked: no other cell ran on such GPUs in this precision",
    ]
    assert judged_among(cell, [cell, probed(785)]).unknown == []
    without = cell.model_copy(update={"probes": []})
    other = probed(785).model_copy(update={"probes": []})
    assert judged_among(without, [cell, other]).unknown == [
        "slow probe could not be checked: the cell has no probe"
    ]
    unlike = judged_among(loaded(1000), [control(1000, "fsdp")])
    assert unchecked_rules(unlike.unknown) == ["low clocks", "input-bound"]
    alike = judged_among(loaded(1000), [control(1000)])
    assert "input-bound" not in unchecked_rules(alike.unknown)


def test_a_cell_that_failed_leaves_nothing_unknown() -> None:
    failed = result([]).model_copy(update={"status": "failed"})
    assert judge(failed).unknown == []


def test_what_was_recorded_before_it_was_asked_for_is_unknown() -> None:
    old = result().model_copy(update={"host": [], "profile": []})
    assert unchecked_rules(judge(old).unknown) == [
        "host wait",
        "CPU quota",
        "shared CPUs",
    ]


def test_a_counter_and_power_that_contradict_each_other_give_no_energy() -> None:
    # A GH200, whose counter is of the whole module: four times the power of the GPU.
    rows = telemetry({"power_w": 100.0})
    judgement = judge(result(rows))
    words = (
        "energy counter and power of GPU 0 of n1 contradict each other: the integral of power is "
        "off by 75 %, more than 10 %"
    )
    assert judgement.labels == [f"energy: {words}"]
    assert excluded(judgement) == "", "a label excludes nothing"
    (device,) = judgement.devices
    cell = summarise_cell(judgement.devices, items=10, items_per_epoch=100)
    assert (cell.energy_per_item_j, cell.energy_per_epoch_j, cell.power_w) == (None, None, None)
    assert cell.energy_net_per_item_j is None
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
    assert summarise_cell(both, 10, 100).energy_per_item_j is None
    near = [one.model_copy(update={"energy_disagreement_pct": 9.0}) for one in both]
    assert summarise_cell(near, 10, 100).energy_per_item_j is not None


def hosted(*ranks: dict[str, Any]) -> Metrics:
    """A cell of a rank each, whose hosts differ from the calm one so."""
    host = [HostUse(**HOST | {"rank": rank} | changes) for rank, changes in enumerate(ranks)]
    return result().model_copy(update={"host": host})


def test_a_cpu_quota_that_ran_out_is_a_label() -> None:
    # A container held to half a CPU.
    throttled = {"cpu_quota": 0.5, "cpu_periods": 97, "cpu_periods_throttled": 94}
    judgement = judge(hosted({}, throttled))
    assert judgement.labels == ["CPU quota: its quota of 0.5 CPUs ran out in 94 of 97 periods"]
    assert (judgement.device_faults, judgement.unknown) == ([], [])
    row = row_of(judgement)
    assert row.cpu_throttled_pct == pytest.approx(100 * 94 / 97)
    assert judge(hosted({"cpu_quota": 8.0, "cpu_periods": 97})).labels == []


def test_a_quota_that_nobody_can_read_is_unknown() -> None:
    judgement = judge(hosted({}, {"cpu_periods": None, "cpu_periods_throttled": None}))
    assert judgement.unknown == [
        "CPU quota could not be checked: the control groups of a rank could not be read"
    ]
    assert row_of(judgement).cpu_throttled_pct is None


def test_ranks_that_share_a_cpu_are_labelled() -> None:
    bound = {"cpus": 1, "cpu_list": "0"}
    assert judge(hosted(bound, bound)).labels == ["shared CPUs: 2 ranks share 1 CPU"]
    assert judge(hosted(bound, {"cpus": 1, "cpu_list": "1"})).labels == []


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
    assert_excluded(result(rows), "throttled", f"{reason} for 100 % of the window")


def test_a_single_throttled_sample_of_two_hundred_does_not() -> None:
    rows = telemetry()
    rows[-60]["throttle_mask"] = float(0x40)
    assert judge(result(rows)).device_faults == []


def capped(limit_w: float, default_w: float = 700.0) -> Metrics:
    """A cell whose GPU always runs at its power limit."""
    rows = telemetry({"throttle_mask": float(0x4), "power_limit_w": limit_w})
    return result(rows, default_limit_w=default_w)


def test_a_gpu_that_is_power_capped_below_its_peers_is_excluded() -> None:
    low, high = capped(400), capped(700)
    judgement = judged_among(low, [low, high, capped(700)])
    assert excluded(judgement) == "power-capped"
    assert judgement.device_faults == [
        "power-capped: GPU 0 of n1 was limited to 400 W for 100 % of the window; "
        "the limit of its peers is 700 W"
    ]
    assert judged_among(high, [low, high, capped(700)]).device_faults == []


def test_a_power_limit_that_all_gpus_have_is_a_label() -> None:
    assert_labelled(
        capped(400), "low power limit", "limited to 400 W instead of its default 700 W for 100 %"
    )
    judgement = judged_among(capped(400), [capped(400)])
    assert (judgement.device_faults, names_of_rules(judgement.labels)) == ([], ["low power limit"])
    assert judge(capped(400, default_w=400)).labels == []
    assert judge(result(telemetry({"power_limit_w": 400.0}))).labels == [], "it is not reached"


def test_a_power_limit_without_peers_is_unknown() -> None:
    alone = judged_among(capped(700), [])
    assert "power-capped" in unchecked_rules(alone.unknown)
    assert "power-capped" not in unchecked_rules(judged_among(capped(700), [capped(700)]).unknown)


def clocked(*clocks_mhz: float, strategy: str = "ddp") -> Metrics:
    """A cell with a GPU for each clock."""
    metrics = result(cell=cell_named(strategy))
    (device,) = metrics.devices
    devices = [
        device.model_copy(update={"index": index, "sm_clock_mean_mhz": clock})
        for index, clock in enumerate(clocks_mhz)
    ]
    return metrics.model_copy(update={"devices": devices})


def test_clocks_far_below_those_of_peers_are_a_device_fault() -> None:
    slow = clocked(1500, 1980)
    judgement = judged_among(slow, [slow, clocked(1980, 1950)])
    assert judgement.device_faults == [
        "low clocks: GPU 0 of n1 ran at 1500 MHz, 24 % below the 1980 MHz of its peers under the "
        "same load"
    ]
    assert excluded(judgement) == "low clocks"
    assert judge(slow).device_faults, "a cell's own GPUs are peers too"
    assert judged_among(clocked(1800), [clocked(1980)]).device_faults == [], "within 10 %"


def test_only_gpus_under_the_same_load_are_peers() -> None:
    # A strategy that keeps the GPU busy runs at lower clocks under the same power limit.
    busy, idle = clocked(1500), clocked(1980, strategy="fsdp")
    judgement = judged_among(busy, [busy, idle])
    assert judgement.device_faults == []
    assert "low clocks" in unchecked_rules(judgement.unknown)


def test_another_process_shares_the_gpu() -> None:
    rows = telemetry({"processes": "10;99"})
    assert_excluded(result(rows), "shared GPU", "1 processes that are not the cell's")


def test_a_process_before_the_cell_began_shares_the_gpu() -> None:
    rows = telemetry(before={"processes": "99"})
    assert_excluded(result(rows), "shared GPU", "1 processes that are not the cell's")


def test_memory_in_use_before_the_cell_began_shares_the_gpu() -> None:
    rows = telemetry(before={"memory_used_bytes": 2**30, "processes": None})
    assert_excluded(result(rows), "shared GPU", "1024 MiB in use before the cell began")


def test_load_before_the_cell_began_shares_the_gpu() -> None:
    rows = telemetry(before={"utilization_pct": 80.0, "processes": None})
    assert_excluded(result(rows), "shared GPU", "busy for 80 % of the time before the cell began")


def test_a_gpu_without_a_sample_is_excluded() -> None:
    assert_excluded(result([]), "telemetry missing", "GPU 0 of n1 has no sample")


def test_uncorrected_memory_errors_exclude() -> None:
    rows = telemetry()
    for row in rows[-60:]:
        row["ecc_errors"] = 2.0
    assert_excluded(result(rows), "ECC errors", "2 uncorrected memory errors")


def test_a_window_that_its_cap_ended_is_labelled_and_counts() -> None:
    words = "after 10.0 s the mean step is known to within 2.5 %, not to within the 1 % asked for"
    assert_labelled(result(half_width_pct=2.5), "imprecise", words)
    assert judge(result(half_width_pct=1.0)).labels == []


@pytest.mark.parametrize(("drift", "words"), [(7.25, "7.2 % slower"), (-6.0, "6.0 % faster")])
def test_a_trend_of_the_steps_is_a_label(drift: float, words: str) -> None:
    assert_labelled(result(drift_pct=drift, drift_error_pct=1.0), "drift", words)


def test_a_drift_within_its_error_or_under_one_percent_is_no_label() -> None:
    assert judge(result(drift_pct=7.0, drift_error_pct=2.0)).labels == []
    assert judge(result(drift_pct=0.9, drift_error_pct=0.01)).labels == []


def test_a_window_of_steps_that_update_nothing_is_not_the_same_training() -> None:
    # ZeRO under fp16 on two H100, whose loss scale never became lower.
    settings = settings_of(result().cell)
    training = result().model_copy(update={"effective_config": settings})
    assert excluded(judge(training)) == ""
    idle = settings.model_copy(update={"optimizer": None, "skipped_steps": 12})
    judgement = judge(training.model_copy(update={"effective_config": idle}))
    assert (excluded(judgement), judgement.device_faults) == ("not training", [])
    (label,) = judgement.labels
    assert "the loss scaler had skipped 12 steps" in label


@pytest.mark.parametrize(
    ("skipped", "of", "counts"), [(1, 20, True), (2, 200, True), (3, 200, False), (20, 20, False)]
)
def test_a_window_whose_steps_are_skipped_is_not_the_same_training(
    skipped: int, of: int, counts: bool
) -> None:
    judgement = judge(result(skipped_steps=skipped, steps=of))
    assert excluded(judgement) == ("" if counts else "not training")
    assert judgement.labels == (
        []
        if counts
        else [
            f"not training: the loss scaler skipped {skipped} of the {of} timed steps, and a step "
            "without an update is faster"
        ]
    )


def test_a_window_that_ran_no_compiled_code_is_not_compiled() -> None:
    # torch 2.11 after an inspected step: the window ran uncompiled, at the speed of plain DDP.
    assert excluded(judge(result(compiled_calls=3))) == ""
    judgement = judge(result(compiled_calls=0))
    assert (excluded(judgement), judgement.device_faults) == ("not compiled", [])
    (label,) = judgement.labels
    assert label.startswith("not compiled")


def test_allocations_that_had_to_be_tried_again_are_a_label() -> None:
    full = result().devices[0].model_copy(update={"torch_allocation_retries": 3})
    metrics = result().model_copy(update={"devices": [full]})
    assert_labelled(metrics, "full memory", "an allocation failed 3 times")


def control(items_per_s: float, strategy: str = "ddp", **dataset: Any) -> Metrics:
    fed = {"name": "synthetic", "train_images": 64, "test_images": 16} | dataset
    return result(cell=cell_named(strategy, dataset=fed), items_per_s=items_per_s)


def loaded(items_per_s: float) -> Metrics:
    return control(items_per_s, name="cifar10")


def test_a_cell_slower_than_its_synthetic_control_is_input_bound() -> None:
    (reason,) = judged_among(loaded(1000), [loaded(1000), control(1080)]).labels
    assert reason.startswith("input-bound: the same training on synthetic images is 8.0 % faster")


def test_prefetched_images_are_held_against_those_on_the_device() -> None:
    prefetched = control(1000, loader="dataloader")
    assert judged_among(prefetched, [control(1080)]).labels != []
    assert judged_among(control(1000), [control(1080)]).labels == []


def test_only_the_same_training_is_a_control() -> None:
    cell = loaded(1000)
    assert judged_among(cell, [control(1040)]).labels == [], "within 5 %"
    assert judged_among(cell, [control(2000, strategy="fsdp")]).labels == []
    assert judged_among(cell, [control(2000, image_size=64)]).labels == []
    assert judged_among(cell, [control(2000, loader="dataloader")]).labels == []


def test_several_controls_count_by_their_median() -> None:
    assert judged_among(loaded(1000), [control(x) for x in (900, 1010, 3000)]).labels == []


def probed(tflops: float, name: str = "H200") -> Metrics:
    probe = Probe(
        device=0, uuid="u", matmul_tflops=tflops, copy_gb_per_s=4000, all_reduce_gb_per_s=None
    )
    cell = cell_named("ddp").model_copy(update={"device": "cuda"})
    judgement = result(cell=cell)
    device = judgement.devices[0].model_copy(update={"name": name})
    return judgement.model_copy(update={"probes": [probe], "devices": [device]})


def test_a_gpu_slower_than_the_others_of_its_kind_is_seen() -> None:
    slow = probed(680)
    (reason,) = judged_among(slow, [slow, probed(780), probed(782)]).labels
    assert reason == (
        "slow probe: 680.0 TFLOP/s in the probe, 13 % below the 781.0 of 2 other cells"
    )
    assert judged_among(probed(730), [probed(780)]).labels == [], "within 10 %"
    assert judged_among(slow, [probed(990, name="H100")]).labels == []


def test_a_cell_that_failed_has_neither_faults_nor_labels() -> None:
    failed = result([], drift_pct=50.0).model_copy(update={"status": "diverged"})
    judgement = judge(failed)
    assert (judgement.device_faults, judgement.labels) == ([], [])


def test_every_rule_says_when_it_applies() -> None:
    names = [rule.name for rule in (*DEVICE_FAULTS, *LABELS)]
    assert len(set(names)) == len(names)
    assert all(rule.condition for rule in (*DEVICE_FAULTS, *LABELS))


def test_these_faults_and_no_others_exclude_a_cell() -> None:
    assert [rule.name for rule in DEVICE_FAULTS] == [
        "throttled",
        "power-capped",
        "shared GPU",
        "telemetry missing",
        "ECC errors",
        "low clocks",
    ]
