"""The certificate over real cells: honest strategies pass, each way of cheating is caught."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from parity_cases import DEVICE, ROOT, STRATEGIES
from real_cells import metrics_of_run
from shardmark.effective_config import Collective
from shardmark.metrics import Metrics
from shardmark.results.certificate import Certificate, Row, certificates, certify
from shardmark.results.run_record import environment_facts
from shardmark.strategies import DpOptions
from shardmark.training.inspection import StepObserver

DISTRIBUTED = [name for name in STRATEGIES if name != "dp"]
TOKENS = {
    "model": {
        "name": "gpt",
        "layers": 2,
        "width": 64,
        "heads": 2,
        "context": 32,
        "vocabulary": 128,
    },
    "dataset": {"name": "synthetic_tokens", "sequences": 64, "test_sequences": 16},
    "optimizer": {"name": "adamw", "learning_rate": 1.0e-3, "clip_norm": 0.5},
}
REDUCED = "reduced in a step, times the parameters' bytes in float32"
GATHERED = "gathered in a step, times the parameters' bytes in float32"


def row_of(certificate: Certificate, setting: str) -> Row:
    return next(row for row in certificate.rows if row.setting == setting)


def beside_ddp(suspect: Metrics, name: str) -> Certificate:
    cell = suspect.cell.model_copy(update={"strategy": name})
    return certify([metrics_of_run("ddp"), suspect.model_copy(update={"cell": cell})], "ddp")


@pytest.fixture(scope="module")
def honest() -> Certificate:
    return certify([metrics_of_run(strategy) for strategy in DISTRIBUTED], "ddp")


def test_seven_strategies_have_no_difference_that_nothing_explains(honest: Certificate) -> None:
    assert honest.flagged == []
    assert honest.strategies[0] == "ddp"
    assert len(honest.strategies) == 7


def test_autocast_and_dtypes_are_those_seen_in_the_step(honest: Certificate) -> None:
    assert set(row_of(honest, "autocast in the forward pass").values.values()) == {"bfloat16"}
    assert set(row_of(honest, "precision of compute").values.values()) == {"bfloat16"}
    assert row_of(honest, "precision of the gradient reduction").verdict == "same"
    gathers = row_of(honest, "precision of the parameter gather")
    assert (gathers.verdict, gathers.values["ddp"]) == ("inherent", "none")


def test_collectives_move_the_bytes_that_the_parameters_have() -> None:
    def bytes_of(strategy: str, kind: str) -> int:
        config = metrics_of_run(strategy).effective_config
        assert config is not None
        return config.bytes_of((kind,))

    whole = 78_042 * 4  # ResNet-8's parameters in float32
    assert bytes_of("ddp", "all_reduce") == whole
    for strategy in ("fsdp", "fsdp2", "fairscale_fsdp"):
        assert bytes_of(strategy, "reduce_scatter") == whole
        # Every unit is gathered again in the backward pass, but for the outermost.
        assert whole < bytes_of(strategy, "all_gather") < 2 * whole
    assert bytes_of("deepspeed_zero1", "all_gather") == pytest.approx(whole, rel=1e-4)
    assert bytes_of("deepspeed_zero3", "reduce_scatter") == whole


@pytest.mark.slow
def test_deepspeeds_bf16_mode_keeps_only_the_optimizers_state_in_float32() -> None:
    native = [f"zero{stage}_bf16" for stage in (1, 2, 3)]
    everyone = [metrics_of_run(name, settings=json.dumps(TOKENS)) for name in ("ddp", *native)]
    certificate = certify(everyone, "ddp")
    assert certificate.flagged == []
    for name, result in zip(native, everyone[1:], strict=True):
        for row, value in {
            "autocast in the forward pass": "none",
            "precision of parameters": "bfloat16",
            "precision of gradients when the optimizer steps": "float32",
            "precision of the gradient reduction": "bfloat16",
            "precision of the parameter gather": "bfloat16",
            "precision of the optimizer state": "float32",
            REDUCED: "0.50",
            GATHERED: "0.50",
        }.items():
            assert row_of(certificate, row).values[name] == value, (name, row)
        assert result.memory is not None
        measured, predicted = result.memory.measured[0], result.memory.predicted
        if name != "zero3_bf16":  # ZeRO-3 keeps parameters as small as these whole
            assert measured.parameters_bytes == pytest.approx(predicted.parameters_bytes, rel=0.05)
        state = predicted.optimizer_state_bytes
        assert measured.optimizer_state_bytes == pytest.approx(state, rel=0.05)


@pytest.mark.slow
def test_dp_in_one_process_agrees_with_ddp_in_one() -> None:
    certificate = certify([metrics_of_run("ddp", 1), metrics_of_run("dp", 1)], "ddp")
    assert certificate.flagged == []
    assert row_of(certificate, "precision of the gradient reduction").values["dp"] == "none"
    assert row_of(certificate, "cuDNN searches for kernels").verdict == "same"


@pytest.mark.skipif(DEVICE == "cpu", reason="on a CPU DataParallel makes no replicas")
def test_dp_on_two_gpus_has_no_difference_that_nothing_explains() -> None:
    certificate = certify([metrics_of_run("ddp"), metrics_of_run("dp")], "ddp")
    assert certificate.flagged == []
    assert row_of(certificate, REDUCED).values == {"ddp": "1.00", "dp": "1.00"}


def changed(result: Metrics, base: str, options: dict[str, Any], **settings: Any) -> Metrics:
    """The result as another strategy's, with other settings read back."""
    assert result.effective_config is not None
    return result.model_copy(
        update={
            "cell": result.cell.model_copy(
                update={"strategy": base, "base": base, "options": options}
            ),
            "effective_config": result.effective_config.model_copy(update=settings),
        }
    )


def dp_on_two_gpus(options: dict[str, Any] | None = None, **settings: Any) -> Metrics:
    """DataParallel as it was read back on two H100s; on a CPU it makes no replicas."""
    ddp = metrics_of_run("ddp")
    assert ddp.memory is not None
    size = 4 * ddp.memory.parameters
    read_back: dict[str, Any] = {
        "wrapper": "DataParallel",
        "gather_dtypes": ["float32"],
        "buffers_broadcast": True,
        "buffers_differ_between_ranks": None,
        "cudnn_benchmark": False,
        "bucket_bytes": None,
        "collectives": [
            Collective(kind="broadcast", dtype="float32", calls=2, bytes=size + size // 100),
            Collective(kind="reduce", dtype="float32", calls=1, bytes=size),
            Collective(kind="broadcast", dtype="int64", calls=1, bytes=72),
        ],
    }
    return changed(ddp, "dp", DpOptions().model_dump() | (options or {}), **(read_back | settings))


def test_what_sets_dp_apart_on_two_gpus_is_explained() -> None:
    everyone = [dp_on_two_gpus(), *[metrics_of_run(strategy) for strategy in DISTRIBUTED]]
    certificate = certify(everyone, "ddp")
    assert certificate.flagged == []
    searches = row_of(certificate, "cuDNN searches for kernels")
    assert (searches.verdict, searches.values["dp"], searches.values["ddp"]) == (
        "inherent",
        "false",
        "true",
    )
    assert "starts new threads in each forward pass" in (searches.reason or "")
    differ = row_of(certificate, "running statistics differ between ranks")
    assert (differ.verdict, differ.values["dp"], differ.values["ddp"]) == (
        "inherent",
        "none",
        "true",
    )
    assert "live in one process" in (differ.reason or "")


def test_dp_that_searches_for_kernels_in_every_step_is_flagged_though_the_others_search_too() -> (
    None
):
    variant = dp_on_two_gpus({"cudnn_benchmark": True}, cudnn_benchmark=True)
    row = row_of(certify([variant, metrics_of_run("ddp")], "ddp"), "cuDNN searches for kernels")
    assert row.flagged == {
        "dp": "true, where false is right: torch keeps cuDNN's plans per thread and DataParallel "
        "starts new threads in each forward pass, so it would search again in every step "
        "(a variant of dp with cudnn_benchmark: true)"
    }


def test_dp_with_lasting_threads_searches_as_the_others_do() -> None:
    options = {"lasting_threads": True}
    for searches, flagged in ((True, set()), (False, {"dp"})):
        variant = dp_on_two_gpus(options, cudnn_benchmark=searches)
        row = row_of(certify([variant, metrics_of_run("ddp")], "ddp"), "cuDNN searches for kernels")
        assert row.flagged.keys() == flagged


@pytest.mark.parametrize(
    ("base", "setting", "settings"),
    [
        # Only DataParallel has one rank and starts threads.
        ("ddp", "running statistics differ between ranks", {"buffers_differ_between_ranks": None}),
        ("ddp", "cuDNN searches for kernels", {"cudnn_benchmark": False}),
        ("ddp", "buffers broadcast in the forward pass", {"buffers_broadcast": True}),
        # Only DDP needs no gathering.
        ("fsdp2", "precision of the parameter gather", {"gather_dtypes": []}),
        ("fsdp2", "units sharded one at a time", {"sharded_units": None}),
        ("ddp", "loader workers per replica", {"loader_workers": 2}),
    ],
)
def test_nobody_else_is_excused(base: str, setting: str, settings: dict[str, Any]) -> None:
    honest = [metrics_of_run(name) for name in DISTRIBUTED if name != base]
    real = metrics_of_run(base)
    suspect = changed(real, base, real.cell.options, **settings)
    row = row_of(certify([suspect, *honest], "ddp"), setting)
    assert row.flagged.keys() == {base}


def test_integers_in_a_broadcast_are_no_precision() -> None:
    observer = StepObserver("cpu")
    module = nn.BatchNorm1d(3)
    with observer.watching(module):
        observer.note_collective("broadcast", list(module.parameters()))
        assert not observer.buffers_broadcast
        observer.note_collective("broadcast", list(module.buffers()))
        observer.note_collective("all_reduce", [torch.zeros(2, dtype=torch.int64)])
    assert observer.seen["gather"] == {"float32"}
    assert observer.seen["reduction"] == set()
    assert observer.buffers_broadcast
    results = {(one.kind, one.dtype): (one.calls, one.bytes) for one in observer.collectives()}
    assert results == {
        ("broadcast", "float32"): (2, 48),
        ("broadcast", "int64"): (1, 8),
        ("all_reduce", "int64"): (1, 16),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "sabotage", "precision", "setting", "value"),
    [
        ("zero1_default_clipping", None, "bf16", "gradient clipping", "1.0"),
        ("ddp_bf16_hook", None, "bf16", "precision of the gradient reduction", "bfloat16"),
        (
            "deepspeed_zero1",
            "train_outer_autocast.py",
            "bf16",
            "autocast in the forward pass",
            "none",
        ),
        ("ddp", "train_with_adam.py", "bf16", "optimizer", "Adam"),
        ("ddp", "train_with_tf32.py", "bf16", "TF32 in matrix products", "true"),
        ("ddp", "train_averaging_twice.py", "bf16", REDUCED, "2.00"),
        ("fsdp2", "train_without_resharding.py", "bf16", GATHERED, "1.00"),
    ],
)
def test_sabotage_is_caught(
    strategy: str, sabotage: str | None, precision: str, setting: str, value: str
) -> None:
    suspect = metrics_of_run(strategy, 2, precision, sabotage)
    certificate = beside_ddp(suspect, "suspect")
    row = row_of(certificate, setting)
    assert row.flagged.keys() == {"suspect"}
    assert row.values["suspect"] == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "script"),
    [
        ("ddp", "train_overflowing.py"),
        ("deepspeed_zero1", "train_zero_overflowing.py"),
        ("deepspeed_zero3", "train_zero_overflowing.py"),
    ],
)
def test_steps_that_the_loss_scaler_left_out_are_counted_and_lower_the_scale(
    strategy: str, script: str
) -> None:
    config = metrics_of_run(strategy, 1, "fp16", script).effective_config
    assert config is not None
    print(config.skipped_steps, config.loss_scale)
    # Each step left out halves the scale, which began at 2 ** 22.
    assert config.skipped_steps > 0
    assert config.loss_scale == 2.0 ** (22 - config.skipped_steps)
    assert config.optimizer == "SGD", "one of the steps that followed was seen"


def test_what_a_variant_declares_is_named_and_flagged_all_the_same() -> None:
    certificate = beside_ddp(metrics_of_run("ddp_bf16_hook"), "variant")
    why = row_of(certificate, "precision of the gradient reduction").flagged["variant"]
    assert why == (
        "bfloat16, where float32 is prescribed (a variant of ddp with comm_hook: bf16_compress)"
    )


@pytest.mark.slow
def test_a_frameworks_own_mixed_precision_is_explained_and_its_reduction_is_float32() -> None:
    certificate = beside_ddp(metrics_of_run("fsdp2_bf16"), "variant")
    assert certificate.flagged == []
    gathered = row_of(certificate, "precision of the parameter gather")
    # Batch-norm stays in float32.
    assert gathered.values["variant"] == "bfloat16, float32"
    assert "advise" in (gathered.reason or "")
    assert row_of(certificate, "precision of the gradient reduction").values == {
        "ddp": "float32",
        "variant": "float32",
    }


@pytest.mark.slow
def test_checkpointing_clipping_and_two_groups_are_read_back() -> None:
    settings = {
        "activation_checkpointing": "block",
        "optimizer": {
            "learning_rate": 0.05,
            "weight_decay": 5e-4,
            "decay": "matrices",
            "clip_norm": 0.5,
        },
    }
    values = {
        "activation checkpointing": "block",
        "blocks computed again in the backward pass": "3",
        "gradient clipping": "0.5",
    }
    metrics = metrics_of_run("fsdp", settings=json.dumps(settings))
    certificate = certify([metrics])
    assert certificate.flagged == []
    for setting, value in values.items():
        assert row_of(certificate, setting).values == {"fsdp": value}
    decays = metrics.effective_config.optimizer_settings["weight_decay"]
    assert decays == [0.0, 5e-4]
    unwrapped = metrics_of_run("fsdp")
    assert metrics.cell_sha256 != unwrapped.cell_sha256


@pytest.mark.slow
def test_an_optimizer_that_steps_once_for_each_group_shows_all_groups() -> None:
    settings = {"optimizer": {"learning_rate": 0.05, "weight_decay": 5e-4, "decay": "matrices"}}
    metrics = metrics_of_run("deepspeed_zero1", settings=json.dumps(settings))
    assert certify([metrics]).flagged == []
    assert metrics.effective_config.optimizer_settings["weight_decay"] == [0.0, 5e-4]
    assert metrics.memory is not None
    one_group = metrics_of_run("deepspeed_zero1").memory.measured
    for state, alike in zip(metrics.memory.measured, one_group, strict=True):
        assert state.gradients_bytes == pytest.approx(alike.gradients_bytes, rel=0.01)


def test_all_strategies_wrong_alike_are_flagged_all() -> None:
    config = metrics_of_run("ddp").effective_config
    assert config is not None
    wrong = config.model_copy(update={"gradient_clipping": 1.0})
    results = [
        one.model_copy(update={"effective_config": wrong})
        for one in (metrics_of_run("ddp"), metrics_of_run("fsdp"))
    ]
    assert row_of(certify(results, "ddp"), "gradient clipping").flagged.keys() == {"ddp", "fsdp"}


def test_seeds_of_a_strategy_that_differ_are_flagged() -> None:
    one = metrics_of_run("ddp")
    assert one.effective_config is not None
    other = one.effective_config.model_copy(update={"cudnn_benchmark": False})
    results = [one, one.model_copy(update={"effective_config": other}), metrics_of_run("fsdp")]
    row = row_of(certify(results, "fsdp"), "cuDNN searches for kernels")
    assert row.flagged.keys() == {"ddp"}
    assert row.values["ddp"] == "true or false"


def test_a_cell_that_failed_is_named_as_missing() -> None:
    failed = metrics_of_run("fsdp").model_copy(update={"effective_config": None, "status": "oom"})
    certificate = certify([metrics_of_run("ddp"), failed], "ddp")
    assert certificate.missing == {"fsdp": "oom"}


def surrounded(
    result: Metrics, threads: int, *, environment: dict[str, Any] | None = None, **host: Any
) -> Metrics:
    """The result as it would be with other surroundings, the same on each rank."""
    each = [
        use.model_copy(update={"torch_threads": threads, "cpus": 64, "cpu_periods": 0} | host)
        for use in result.host
    ]
    known = result.environment | (environment or {})
    return result.model_copy(update={"host": each, "environment": known})


THREADS = "CPU threads of torch in a rank"


NVLINK = {"gpus": [0, 1], "path": "system", "nvlink": True}
PCI = {"gpus": [0, 2], "path": "system", "nvlink": False}


def test_surroundings_that_differ_between_strategies_are_flagged() -> None:
    ddp, fsdp = metrics_of_run("ddp"), metrics_of_run("fsdp")
    variables = ddp.environment["variables"]
    versions = ddp.environment["versions"]
    for setting, right, wrong, values in (
        (THREADS, surrounded(ddp, 32), surrounded(fsdp, 1), ("32", "1")),
        (
            "CPUs that a rank may run on",
            surrounded(ddp, 32),
            surrounded(fsdp, 32, cpus=2),
            ("64", "2"),
        ),
        (
            "CPU quota",
            surrounded(ddp, 32),
            surrounded(fsdp, 32, cpu_quota=8.0),
            ("none", "8 CPUs"),
        ),
        (
            "CPU quota",
            surrounded(ddp, 32),
            surrounded(fsdp, 32, cpu_periods=None),
            ("none", "unknown"),
        ),
        (
            "NCCL_ALGO",
            surrounded(ddp, 32),
            surrounded(fsdp, 32, environment={"variables": variables | {"NCCL_ALGO": "Ring"}}),
            ("not set", "Ring"),
        ),
        (
            "version of torch",
            surrounded(ddp, 32, environment={"versions": versions | {"torch": "2.14"}}),
            surrounded(fsdp, 32, environment={"versions": versions | {"torch": "2.15"}}),
            ("2.14", "2.15"),
        ),
        (
            "version of deepspeed",
            surrounded(ddp, 32, environment={"versions": versions | {"deepspeed": "0.19"}}),
            surrounded(fsdp, 32, environment={"versions": versions | {"deepspeed": "0.20"}}),
            ("0.19", "0.20"),
        ),
        (
            "driver",
            surrounded(ddp, 32, environment={"driver": "570"}),
            surrounded(fsdp, 32, environment={"driver": "580"}),
            ("570", "580"),
        ),
        (
            "connections between GPUs of a node",
            surrounded(ddp, 32, environment={"topology": [NVLINK, NVLINK]}),
            surrounded(fsdp, 32, environment={"topology": [PCI, NVLINK]}),
            ("NVLink", "NVLink, system"),
        ),
    ):
        certificate = certify([right, wrong], "ddp")
        row = row_of(certificate, setting)
        assert (row.values["ddp"], row.values["fsdp"]) == values
        assert row.flagged == {"fsdp": f"{values[1]}, where {values[0]} is of the others"}, setting
        assert [one.setting for one in certificate.flagged] == [setting]


def test_all_runs_of_all_strategies_must_have_had_the_same_surroundings() -> None:
    # Each strategy ran once before the driver was updated and once after.
    results = [
        surrounded(metrics_of_run(name), 32, environment={"driver": driver})
        for name in ("ddp", "fsdp")
        for driver in ("570", "580")
    ]
    row = row_of(certify(results, "ddp"), "driver")
    reason = "not the same in all of its runs and ranks"
    assert row.flagged == {"ddp": reason, "fsdp": reason}
    assert row.values == {"ddp": "570 or 580", "fsdp": "570 or 580"}


def test_ranks_of_one_cell_that_differ_are_flagged() -> None:
    ddp = surrounded(metrics_of_run("ddp"), 32)
    host = [ddp.host[0], ddp.host[1].model_copy(update={"cpus": 2})]
    results = [ddp.model_copy(update={"host": host}), surrounded(metrics_of_run("fsdp"), 32)]
    row = row_of(certify(results, "ddp"), "CPUs that a rank may run on")
    assert row.flagged.keys() == {"ddp"}


@pytest.mark.parametrize("baseline", ["ddp", "dp"])
def test_dps_one_process_has_the_threads_of_all_ranks(baseline: str) -> None:
    ddp, dp = metrics_of_run("ddp"), dp_on_two_gpus()
    shared_out = [surrounded(ddp, 32), surrounded(dp, 64)]
    row = row_of(certify(shared_out, baseline), THREADS)
    assert (row.verdict, row.values["dp"], row.values["ddp"]) == ("inherent", "64", "32")
    assert "DataParallel is one process" in (row.reason or "")
    # As it was where torchrun set 1 for its ranks, and nobody set anything for one process.
    unequal = [surrounded(ddp, 1), surrounded(dp, 64)]
    assert row_of(certify(unequal, baseline), THREADS).verdict == "flagged"
    by_the_site = [surrounded(ddp, 8), surrounded(dp, 8)]
    assert row_of(certify(by_the_site, baseline), THREADS).verdict == "same"


def test_what_a_job_was_given_differs_by_nature() -> None:
    ddp, fsdp = metrics_of_run("ddp"), metrics_of_run("fsdp")
    results = [
        surrounded(
            one,
            32,
            environment={
                "host": f"node{job}",
                "variables": {"SLURM_JOB_ID": job, "CUDA_VISIBLE_DEVICES": job},
            },
        )
        for one, job in ((ddp, "1"), (fsdp, "2"))
    ]
    assert certify(results, "ddp").flagged == []


def test_each_gpu_count_has_its_certificate() -> None:
    results = certificates([metrics_of_run("ddp", 1), metrics_of_run("ddp", 2)])
    assert [certificate.gpus for certificate in results] == [2, 1]


def test_a_variable_that_only_one_gpu_count_had_differs_in_the_report() -> None:
    alone, both = metrics_of_run("ddp", 1), metrics_of_run("ddp", 2)
    variables = both.environment["variables"] | {"NCCL_ALGO": "Ring", "SLURM_JOB_ID": "2"}
    both = surrounded(both, 1, environment={"variables": variables})
    failed = both.model_copy(update={"status": "failed", "effective_config": None})
    results = [surrounded(alone, 1), both, failed]
    assert not any(one.flagged for one in certificates(results)), "each is of one GPU count"
    facts = {fact.name: fact for fact in environment_facts(results)}
    assert facts["NCCL_ALGO"].values == [("not set", 1), ("Ring", 1)]
    assert "SLURM_JOB_ID" not in facts
    assert not facts["CUBLAS_WORKSPACE_CONFIG"].differs


def test_the_certificate_needs_no_torch() -> None:
    code = "import shardmark.results.certificate, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "workflow/scripts")
