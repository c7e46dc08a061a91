"""Cells: what defines them, and the order in which they start."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import yaml

from shardmark.cells import (
    Cell,
    _sha256,
    cells_of,
    oracle_cases,
    parity_case,
    recorded_fingerprint,
    sizes_of,
    start_order,
)
from small_matrix import ROOT, cell_at, matrix

STRATEGIES = ["dp", "ddp", "fsdp", "fsdp2", "deepspeed_zero1"]
WITHOUT_BATCHNORM: dict[str, Any] = {
    "workloads__small__model": {"name": "vit_b_16"},
    "workloads__small__dataset__image_size": 32,
}
MANY: dict[str, Any] = {
    "matrix__strategies": STRATEGIES,
    "matrix__gpus": [1, 4, 2],
    "matrix__seeds": [0, 1, 2],
}


def test_where_the_data_lie_is_no_part_of_a_definition() -> None:
    assert cell_at(data__dir="tests").fingerprint() == cell_at(data__dir="config").fingerprint()
    cases = [parity_case(matrix(data__dir=d), "small", "ddp", 2) for d in ("tests", "config")]
    assert cases[0].fingerprint() == cases[1].fingerprint()


def test_the_rest_of_the_matrix_is_no_part_of_a_definition() -> None:
    unrelated = {"matrix__gpus": [1], "matrix__seeds": [0, 5], "order_seed": 3}
    unrelated |= {"cluster__time_limit_minutes": 7, "parity": {"steps": 9}}
    assert cell_at(**unrelated).fingerprint() == cell_at().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"gpus": 2},
        {"strategy": "slim"},
        {"run": "u"},
        {"workloads__small__optimizer__learning_rate": 0.2},
        {"workloads__small__batch__accumulate": 2},
        {"workloads__small__precision": "bf16"},
        {"measure__steady_max_s": 0.3},
    ],
)
def test_whatever_can_change_the_result_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert cell_at(**change).fingerprint() != cell_at().fingerprint()


def test_an_options_value_changes_the_fingerprint_and_the_gates() -> None:
    hooks = [{"base": "ddp", "comm_hook": f"{kind}_compress"} for kind in ("bf16", "fp16")]
    first, second = (cell_at("slim", variants__slim=hook).fingerprint() for hook in hooks)
    assert first != second
    first, second = (
        parity_case(matrix(variants__slim=hook), "small", "slim", 2).fingerprint() for hook in hooks
    )
    assert first != second
    assert (
        parity_case(matrix(parity={"steps": 9}), "small", "slim", 2).fingerprint()
        != parity_case(matrix(), "small", "slim", 2).fingerprint()
    )


def test_a_fingerprint_survives_the_way_to_the_job_and_back() -> None:
    cell = cell_at("slim", gpus=2, workloads__small__optimizer__betas=[0.5, 0.9])
    assert Cell.model_validate_json(cell.model_dump_json(by_alias=True)) == cell
    again = Cell.model_validate_json(cell.model_dump_json(by_alias=True, indent=1))
    assert again.fingerprint() == cell.fingerprint()


def test_a_result_that_is_older_than_an_option_has_its_default_and_its_fingerprint() -> None:
    raw = cell_at(gpus=2).model_dump(mode="json", by_alias=True)
    del raw["options"]["zero_redundancy"]
    cell = Cell.model_validate_json(json.dumps(raw))
    assert cell.options["zero_redundancy"] is False
    assert recorded_fingerprint(cell, raw) == _sha256(
        {name: value for name, value in cell.defining().items() if name != "options"}
        | {"options": raw["options"]}
    )


def test_every_cell_has_its_place() -> None:
    config = matrix(**MANY)
    order = start_order(config)
    assert sorted(order.values()) == list(range(45))
    assert {(c.workload, c.strategy, c.gpus, c.seed) for c in cells_of(config)} == order.keys()


def test_parts_of_the_matrix_leave_out_all_other_cells() -> None:
    parts = [{"gpus": [4, 2]}, {"gpus": [1], "strategies": ["ddp", "fsdp"], "seeds": [0]}]
    config = matrix(**MANY, matrix__only=parts)
    cells = list(cells_of(config))
    assert len(cells) == 2 * 5 * 3 + 2
    assert {(cell.strategy, cell.seed) for cell in cells if cell.gpus == 1} == {
        ("ddp", 0),
        ("fsdp", 0),
    }
    order = start_order(config)
    assert {(c.workload, c.strategy, c.gpus, c.seed) for c in cells} == order.keys()
    assert [case.cell.strategy for case in oracle_cases(config, "small", 1)] == ["ddp", "fsdp"]
    assert list(sizes_of(config)) == list(
        dict.fromkeys((cell.workload, cell.strategy, cell.gpus) for cell in cells)
    )


def test_gpu_counts_descend_and_a_block_stays_together() -> None:
    order = start_order(matrix(**MANY))
    started = sorted(order, key=lambda key: order[key])
    gpus = [key[2] for key in started]
    assert gpus == sorted(gpus, reverse=True)
    blocks = [key for key, _ in itertools.groupby(started, lambda key: (key[0], key[2], key[3]))]
    assert len(blocks) == len(set(blocks)) == 9


def shuffles(order_seed: int) -> list[list[str]]:
    """The strategies of each block in their order."""
    order = start_order(matrix(order_seed=order_seed, **MANY))
    started = sorted(order, key=lambda key: order[key])
    return [[key[1] for key in started[place : place + 5]] for place in range(0, 45, 5)]


def test_strategies_are_shuffled_anew_in_each_block_from_the_recorded_seed() -> None:
    assert shuffles(0) == shuffles(0)
    assert shuffles(0) != shuffles(1)
    assert len({tuple(block) for block in shuffles(0)}) > 4
    # Another Python, or another machine, must plan the same order from the same seed.
    assert shuffles(0)[0] == ["dp", "fsdp2", "fsdp", "ddp", "deepspeed_zero1"]


def test_a_drift_of_the_machine_falls_on_no_strategy_alone() -> None:
    places = {name: [0] * 5 for name in STRATEGIES}
    blocks = [block for seed in range(40) for block in shuffles(seed)]
    for block in blocks:
        for place, name in enumerate(block):
            places[name][place] += 1
    share = len(blocks) / 5
    # Six standard deviations of a binomial count.
    bound = 6 * (len(blocks) * 0.2 * 0.8) ** 0.5
    assert all(abs(count - share) < bound for counts in places.values() for count in counts)


@pytest.mark.parametrize(
    ("batch", "gpus", "scaling", "global_batch", "per_gpu"),
    [({"global": 16}, 4, "strong", 16, 4), ({"per_gpu": 8}, 4, "weak", 32, 8)],
)
def test_the_batch_says_the_regime(
    batch: dict[str, int], gpus: int, scaling: str, global_batch: int, per_gpu: int
) -> None:
    cell = cell_at(gpus=gpus, workloads__small__batch=batch | {"accumulate": 2})
    assert (cell.scaling, cell.global_batch_size, cell.per_gpu_batch_size) == (
        scaling,
        global_batch,
        per_gpu,
    )
    assert cell.micro_batch_size == per_gpu // 2


def test_the_ragged_last_batch_makes_no_step() -> None:
    assert cell_at(workloads__small__dataset__train_images=63).steps_per_epoch == 3


@pytest.mark.parametrize(("gpus", "nodes", "per_node"), [(1, 1, 1), (4, 1, 4), (8, 2, 4)])
def test_a_cell_of_more_gpus_than_a_node_has_spans_whole_nodes(
    gpus: int, nodes: int, per_node: int
) -> None:
    cell = cell_at(gpus=gpus)
    assert (cell.nodes, cell.gpus_per_node) == (nodes, per_node)


def test_dp_holds_its_replicas_in_one_process_and_says_where_it_cannot_run() -> None:
    assert cell_at("dp", gpus=4).processes == 1
    assert cell_at("ddp", gpus=4).processes == 4
    assert cell_at("dp", gpus=1).unsupported is None
    assert "CUDA" in (cell_at("dp", gpus=2).unsupported or "")
    cuda = {"cluster__device": "cuda"}
    assert cell_at("dp", gpus=2, **cuda).unsupported is None
    assert "2 nodes" in (cell_at("dp", gpus=8, **cuda).unsupported or "")
    sync = cuda | {"workloads__small__batchnorm": "sync"}
    assert "synchronised" in (cell_at("dp", gpus=2, **sync).unsupported or "")
    assert cell_at("ddp", gpus=8, **sync).unsupported is None


def test_a_low_precision_of_parameters_must_be_the_workloads() -> None:
    for base in ("fsdp", "fsdp2", "deepspeed_zero2"):
        variant = {"variants": {"slim": {"base": base, "param_dtype": "bf16"}}} | WITHOUT_BATCHNORM
        reasons = {
            precision: cell_at("slim", workloads__small__precision=precision, **variant).unsupported
            for precision in ("bf16", "fp32")
        }
        assert reasons == {
            "bf16": None,
            "fp32": "its param_dtype is bf16, and the workload computes in fp32",
        }


def test_an_option_that_older_results_lack_defines_a_cell_only_if_it_is_chosen() -> None:
    assert "param_dtype" not in cell_at("deepspeed_zero1").defining()["options"]
    variant = {"slim": {"base": "deepspeed_zero1", "param_dtype": "bf16"}}
    chosen = cell_at("slim", variants=variant).defining()["options"]
    assert chosen["param_dtype"] == "bf16"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_bf16_mode_takes_no_batchnorm_and_no_autocast(stage: int) -> None:
    options: dict[str, Any] = {"base": f"deepspeed_zero{stage}", "param_dtype": "bf16"}
    bf16 = {"workloads__small__precision": "bf16"}

    def why(options: dict[str, Any], **changes: Any) -> str:
        return cell_at("slim", variants={"slim": options}, **bf16, **changes).unsupported or ""

    assert "beside running statistics in float32" in why(options)
    assert why(options, **WITHOUT_BATCHNORM) == ""
    both = options | {"low_precision_communication": True}
    assert "which param_dtype bf16 replaces" in why(both, **WITHOUT_BATCHNORM)


@pytest.mark.parametrize("base", ["fsdp", "fsdp2"])
@pytest.mark.parametrize("setting", ["compile", "activation_checkpointing"])
def test_batchnorm_in_float32_cannot_be_sharded_apart_in_a_compiled_or_checkpointed_block(
    base: str, setting: str
) -> None:
    variant = {
        "variants": {"slim": {"base": base, "param_dtype": "bf16"}},
        "workloads__small__precision": "bf16",
    }
    wrapped = {f"workloads__small__{setting}": "block"}
    assert "batch-norm stays in fp32" in (cell_at("slim", **variant, **wrapped).unsupported or "")
    assert cell_at("slim", **variant).unsupported is None
    assert cell_at(base, **variant, **wrapped).unsupported is None
    assert cell_at("slim", **variant, **wrapped, **WITHOUT_BATCHNORM).unsupported is None


def test_fsdp2s_advised_compilation_runs_for_language_models() -> None:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    language = {
        "model": {"name": "gpt", "preset": "gpt_0b12"},
        "dataset": {"name": "synthetic_tokens", "sequences": 64},
        "batch": {"global": 16},
        "optimizer": {"learning_rate": 0.1},
        "precision": "bf16",
        "activation_checkpointing": "block",
    }
    variants = {"slim": raw["variants"]["fsdp2_bf16_compiled"]}
    cell = cell_at("slim", gpus=2, variants=variants, workloads__small=language)
    assert (cell.compilation, cell.unsupported) == ("block", None)


def test_compiled_code_has_no_replicas_of_dataparallel() -> None:
    compiled = {"cluster__device": "cuda", "workloads__small__compile": "block"}
    assert "first GPU's parameters" in (cell_at("dp", gpus=2, **compiled).unsupported or "")
    assert cell_at("dp", gpus=1, **compiled).unsupported is None
    assert cell_at("ddp", gpus=2, **compiled).unsupported is None


def test_deepspeed_cannot_clip_under_a_loss_scale() -> None:
    clipped = {"workloads__small__optimizer": {"learning_rate": 0.1, "clip_norm": 1.0}}
    for precision, supported in (("bf16", True), ("fp16", False)):
        cell = cell_at("deepspeed_zero2", gpus=2, **clipped, workloads__small__precision=precision)
        assert (cell.unsupported is None) == supported


@pytest.mark.parametrize(("clipping", "clips"), [(None, True), (1.0, True), (0.0, False)])
def test_a_variant_of_deepspeed_that_clips_cannot_run_in_float16(
    clipping: float | None, clips: bool
) -> None:
    variant = {"variants": {"slim": {"base": "deepspeed_zero3", "gradient_clipping": clipping}}}
    cell = cell_at("slim", gpus=2, **variant, workloads__small__precision="fp16")
    assert ("clips the gradient" in (cell.unsupported or "")) == clips
    cell = cell_at("slim", gpus=2, **variant, workloads__small__precision="bf16")
    assert cell.unsupported is None


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_low_precision_communication_needs_autocast(precision: str) -> None:
    variant = {"base": "deepspeed_zero1", "low_precision_communication": True}
    cell = cell_at(
        "slim",
        variants={"slim": variant},
        cluster__device="cuda",
        workloads__small__precision=precision,
    )
    assert (cell.unsupported is None) == (precision in ("bf16", "fp16"))


@pytest.mark.parametrize(
    ("base", "options", "gpus", "groups", "reason"),
    [
        ("fsdp2", {}, 8, (8, 8), None),
        ("fsdp", {"shard_size": "node"}, 8, (4, 4), None),
        ("fsdp", {"shard_size": "node"}, 4, (4, 4), None),
        ("fsdp2", {"shard_size": "node"}, 1, (1, 1), None),
        ("fsdp2", {"shard_size": 2}, 4, (2, 2), None),
        ("fsdp2", {"shard_size": 2}, 1, (2, 2), "shard_size is 2, which does not divide 1 GPU"),
        ("fsdp2", {"reshard_after_forward": "node"}, 8, (8, 4), None),
        ("fsdp2", {"reshard_after_forward": False}, 8, (8, 8), None),
        ("fsdp2", {"shard_size": 4, "reshard_after_forward": 2}, 8, (4, 2), None),
        (
            "fsdp2",
            {"shard_size": 2, "reshard_after_forward": 4},
            8,
            (2, 4),
            "is 4, which does not divide the 2 GPUs that share a copy",
        ),
        ("deepspeed_zero3", {"reshard_after_forward": "node"}, 8, (8, 4), None),
        (
            "deepspeed_zero3",
            {"reshard_after_forward": 2},
            1,
            (1, 2),
            "is 2, which does not divide the 1 GPU",
        ),
    ],
)
def test_groups_of_gpus_must_divide_the_cell(
    base: str, options: dict[str, Any], gpus: int, groups: tuple[int, int], reason: str | None
) -> None:
    variants = {"slim": {"base": base} | options}
    cell = cell_at("slim", gpus=gpus, matrix__gpus=[1, 4, 8], variants=variants)
    assert cell.groups == groups
    assert (reason or "") in (cell.unsupported or "")
    assert (cell.unsupported is None) == (reason is None)


def test_a_node_with_one_gpu_has_no_group() -> None:
    variants = {"slim": {"base": "fsdp2", "shard_size": "node"}}
    cell = cell_at("slim", gpus=4, cluster__gpus_per_node=1, variants=variants)
    assert "shard nothing" in (cell.unsupported or "")


def test_a_variants_own_compilation_goes_before_the_workloads() -> None:
    variant = {"variants": {"slim": {"base": "ddp", "compile": "model"}}}
    block = {"workloads__small__compile": "block"}
    assert cell_at("slim", **variant).compilation == "model"
    assert cell_at("slim", **variant, **block).compilation == "model"
    assert cell_at("ddp", **block).compilation == "block"
    assert cell_at("ddp").compilation == "none"
