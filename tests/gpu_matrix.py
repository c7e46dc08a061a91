"""Matrices of results for tests of what comes after the cells: written as the cells write them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parity_cases import STRATEGIES
from shardmark.cells import Cell, cells_of, parity_case, sizes_of
from shardmark.codebase import code_of_cell, code_sha256
from shardmark.config.loading import load
from shardmark.config.schema import Config
from shardmark.effective_config import EffectiveConfig
from shardmark.metrics import (
    Accuracy,
    Device,
    Efficiency,
    Failure,
    HeldOutLoss,
    HostUse,
    Loss,
    Metrics,
    Probe,
    StepSplit,
    Throughput,
    Times,
    Windows,
)
from shardmark.parity_result import Deviation, Parity, PrecisionParity

ROOT = Path(__file__).resolve().parents[1]
WORKLOAD = {
    "model": {"name": "resnet50"},
    "dataset": {"name": "cifar10"},
    "batch": {"per_gpu": 512},
    "optimizer": {"learning_rate": 0.1},
    "precision": "bf16",
    "epochs": 3,
}
Change = Callable[[Cell, dict[str, Any]], dict[str, Any]]


def config_of(variants: Mapping[str, Any] | None = None, run: str = "t", **matrix: Any) -> Config:
    """A matrix on GPUs, of one workload unless ``matrix``, which changes its lists, names more."""
    return load(
        {
            "run": run,
            "variants": dict(variants or {}),
            "matrix": {
                "workloads": ["w"],
                "strategies": list(STRATEGIES),
                "gpus": [1, 2],
                "seeds": [0, 1, 2],
            }
            | matrix,
            "workloads": dict.fromkeys(matrix.get("workloads", ["w"]), WORKLOAD),
            "cluster": {"device": "cuda", "gpus_per_node": 4},
        },
        ROOT,
    )


def metrics_of(cell: Cell, **changes: Any) -> Metrics:
    """A good result: a strategy's speed is its place in the list, a seed moves it by about 1 %."""
    place = STRATEGIES.index(cell.base)
    chance = random.Random(f"{cell.base}/{cell.gpus}/{cell.seed}")
    speed = 15_000 * cell.gpus * (1 - 0.05 * place) * chance.uniform(0.99, 1.01)
    step_ms = 1000 * cell.global_batch_size / speed
    losses = [2.0 / (1 + epoch) + 0.01 * cell.seed for epoch in range(cell.definition.epochs)]
    memory = int((20 - place) * 2**30)
    devices = [
        Device(
            index=index,
            node="node1",
            kind="gpu",
            name="Test GPU",
            uuid=f"GPU-{index}",
            utilization_pct=95.0 - place,
            memory_used_peak_bytes=memory + index,
            torch_allocated_peak_bytes=memory // 2,
            power_mean_w=600.0,
            energy_counter_j=6000.0,
            energy_integral_j=6000.0,
            energy_disagreement_pct=0.0,
            idle_power_w=75.0,
            memory_total_bytes=80 * 2**30,
            sm_clock_mean_mhz=1700.0,
            idle_memory_bytes=0,
            idle_utilization_pct=0.0,
            throttled_pct={},
            ecc_errors=0,
            foreign_processes=0,
            samples=100,
            longest_gap_pct=1.0,
        )
        for index in range(cell.gpus)
    ]
    fields: dict[str, Any] = {
        "cell": cell,
        "cell_sha256": cell.fingerprint(),
        "code_sha256": code_sha256(code_of_cell(cell)),
        "status": "ok",
        "loss": Loss(per_epoch=losses, final=losses[-1]),
        "accuracy": Accuracy(per_epoch=[0.4, 0.6, 0.7], final=0.7),
        # A real cell has one of the two. With both, all figures can be drawn.
        "test_loss": HeldOutLoss(per_epoch=[2.4, 2.0, 1.9], final=1.9),
        "time_s": Times(
            imports_s=5.0,
            build_s=2.0,
            training_s=30.0 + place,
            evaluation_s=3.0,
            measurement_s=12.0,
            other_s=8.0 - place,
            total_s=60.0,
            epochs_s=[10.0, 10.0, 10.0 + place],
        ),
        "windows": Windows(
            steady_monotonic_s=(40.0, 50.0),
            evaluations_monotonic_s=[(18.0, 19.0), (29.0, 30.0), (38.0, 39.0)],
        ),
        "profile": [
            StepSplit(
                rank=rank,
                steps=5,
                step_ms=step_ms,
                compute_ms=0.7 * step_ms,
                exposed_communication_ms=0.2 * step_ms,
                data_ms=0.04 * step_ms,
                host_gap_ms=0.06 * step_ms,
                communication_ms=0.4 * step_ms,
            )
            for rank in range(cell.gpus)
        ],
        "throughput": Throughput(
            unit=cell.definition.unit,
            items_per_s=speed,
            items_per_s_per_gpu=speed / cell.gpus,
            step_ms_mean=step_ms,
            step_ms_p50=step_ms,
            step_ms_p90=step_ms * 1.02,
            step_ms_p99=step_ms * 1.1,
            steps=100,
            window_s=step_ms / 10,
            warmup_steps=20,
            warmup_converged=True,
            slowest_rank=0,
            half_width_pct=0.4,
            drift_pct=0.2,
            drift_error_pct=0.1,
        ),
        "probes": [
            Probe(
                device=index,
                uuid=f"GPU-{index}",
                matmul_tflops=780.0,
                copy_gb_per_s=4000.0,
                all_reduce_gb_per_s=None,
            )
            for index in range(cell.gpus)
        ],
        "host": [
            HostUse(
                rank=rank,
                launching_cpu_pct=90.0,
                process_cpu_pct=95.0,
                involuntary_switches_per_s=1.0,
                cpu_pressure_pct=0.0,
                cpus=64,
                cpu_list="0-63",
                cpu_periods=0,
                cpu_periods_throttled=0,
                torch_threads=64 // cell.processes,
            )
            for rank in range(cell.processes)
        ],
        "devices": devices,
        "efficiency": Efficiency(
            energy_per_item_j=0.04,
            energy_per_epoch_j=0.04 * 49_152,
            power_w=600.0 * cell.gpus,
            utilization_pct=95.0 - place,
            memory_peak_bytes=memory,
        ),
        "effective_config": settings_of(cell),
        "environment": {"host": "node1", "versions": {"torch": "2.15.0"}},
        "provenance": {"git_commit": "0" * 40},
    }
    return Metrics(**(fields | changes))


def settings_of(cell: Cell) -> EffectiveConfig:
    """What an honest strategy is read back as."""
    optimizer = cell.definition.optimizer
    exchanges = cell.gpus > 1
    one_process = exchanges and cell.base == "dp"
    return EffectiveConfig(
        wrapper=cell.base,
        optimizer="SGD",
        optimizer_settings={
            "momentum": optimizer.momentum,
            "dampening": 0,
            "nesterov": optimizer.nesterov,
            "weight_decay": optimizer.weight_decay,
        },
        learning_rate=0.1,
        gradient_clipping=0.0,
        loss_scaler=None,
        loss_scale=None,
        skipped_steps=0,
        accumulate=1,
        autocast=["bfloat16"],
        parameter_dtypes=["float32"],
        compute_dtypes=["bfloat16"],
        normalisation_dtypes=["bfloat16"],
        gather_dtypes=["float32"] if exchanges and cell.base != "ddp" else [],
        reduction_dtypes=["float32"],
        gradient_dtypes=["float32"],
        optimizer_state_dtypes=["float32"],
        tf32_matmul=False,
        tf32_convolution=False,
        input_formats=["channels_last"],
        weight_formats=["contiguous"],
        normalisation=["BatchNorm2d"],
        buffers_broadcast=one_process,
        buffers_differ_between_ranks=True if exchanges and not one_process else None,
        loader="device",
        loader_workers=0,
        compiled=False,
        cudnn_benchmark=not one_process,
        zero_stage=0,
        sharded_units=None,
        bucket_bytes=None,
        collectives=[],
        own={},
    )


def failed(cell: Cell, status: str, reason: str) -> Metrics:
    """A cell that did not end well."""
    failure = Failure(phase="training", rank=0, exception=reason, log_tail=["line 1", "line 2"])
    return Metrics(
        cell=cell,
        cell_sha256=cell.fingerprint(),
        code_sha256=code_sha256(code_of_cell(cell)),
        status=status,  # type: ignore[arg-type]
        failure=failure,
    )


def write(metrics: Metrics, root: Path) -> Path:
    """Put a result where its cell would."""
    path = root / metrics.cell.folder / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(metrics.model_dump_json(by_alias=True))
    return path


def write_side_files(metrics: Metrics, root: Path) -> None:
    """The steps and the samples of a cell, as a run leaves them beside its result."""
    assert metrics.throughput is not None
    folder, middle = root / metrics.cell.folder, metrics.throughput.step_ms_p50
    chance = random.Random(metrics.cell.title)
    lines = ["rank,phase,epoch,step,step_ms"]
    for phase, count in (("training", 4), ("steady", 100)):
        for rank in range(min(2, metrics.cell.gpus)):
            lines += [
                f"{rank},{phase},3,{step},{middle * chance.lognormvariate(0.01 * rank, 0.02):.4f}"
                for step in range(count)
            ]
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    lines = ["monotonic_s,device,utilization_pct,memory_used_bytes,power_w"]
    for tenth in range(0, 520, 5):
        busy = tenth > 70
        for device in metrics.devices[:4]:
            load = chance.uniform(90, 100) if busy else 0
            memory = (device.memory_used_peak_bytes or 0) if busy else 10**9
            lines.append(f"{tenth / 10},{device.uuid},{load:.1f},{memory},{100 + 6 * load:.1f}")
    name = "telemetry.csv" if metrics.cell.nodes == 1 else "telemetry.node0.csv"
    (folder / name).write_text("\n".join(lines) + "\n")


VARIANTS = {
    "ddp_bf16_hook": {"base": "ddp", "comm_hook": "bf16_compress"},
    "fsdp2_zero2": {"base": "fsdp2", "reshard_after_forward": False},
    "ddp_small_buckets": {"base": "ddp", "bucket_cap_mb": 5},
    "fsdp_zero2": {"base": "fsdp", "sharding": "shard_grad_op"},
}


def write_crowded(root: Path) -> Config:
    """The largest matrix that figures and page must bear: twelve strategies, six GPU counts."""
    config = config_of(
        VARIANTS, strategies=[*STRATEGIES, *VARIANTS], gpus=[1, 2, 4, 8, 16, 32], seeds=[0, 1, 2]
    )
    bad = {
        ("ddp", 32, 1): ("oom", "OutOfMemoryError: 2 GiB"),
        ("deepspeed_zero3", 8, 0): ("diverged", "the mean loss of epoch 2 is nan"),
        ("fsdp_zero2", 16, 2): ("timeout", "over its limit"),
    }
    for cell in cells_of(config):
        key = (cell.strategy, cell.gpus, cell.seed)
        if cell.unsupported:
            write(failed(cell, "unsupported", cell.unsupported), root)
        elif key in bad:
            write(failed(cell, *bad[key]), root)
        elif key != ("fsdp2_zero2", 4, 2):
            own = random.Random(cell.strategy).uniform(0.9, 1.05)
            metrics = metrics_of(cell)
            assert metrics.throughput is not None
            speed = metrics.throughput.items_per_s * own * cell.gpus**-0.06
            throughput = metrics.throughput.model_copy(update={"items_per_s": speed})
            efficiency = Efficiency(
                energy_per_item_j=600 * cell.gpus / speed,
                energy_per_epoch_j=600 * cell.gpus / speed * 49_152,
                power_w=600.0 * cell.gpus * own,
                utilization_pct=90 * own,
                memory_peak_bytes=int(own * (30 - cell.gpus / 4) * 2**30 / own**3),
            )
            metrics = metrics.model_copy(
                update={"throughput": throughput, "efficiency": efficiency}
            )
            write(metrics, root)
            write_side_files(metrics, root)
    for strategy in config.matrix.strategies:
        for ranks in config.matrix.gpus:
            write_parity(config, strategy, ranks, root)
    return config


def write_matrix(config: Config, root: Path, *, side_files: bool = True) -> list[Path]:
    """Every cell of the matrix with a good result, and every strategy's parity passed."""
    results = [
        failed(cell, "unsupported", cell.unsupported) if cell.unsupported else metrics_of(cell)
        for cell in cells_of(config)
    ]
    paths = [write(result, root) for result in results]
    for result in results:
        if side_files and result.throughput:
            write_side_files(result, root)
    for workload, strategy, ranks in sizes_of(config):
        write_parity(config, strategy, ranks, root, workload=workload)
    return paths


def write_parity(config: Config, strategy: str, ranks: int, root: Path, **changes: Any) -> None:
    """The gate's verdict on one strategy: passed, unless ``changes`` say otherwise."""
    case = parity_case(config, changes.get("workload", "w"), strategy, ranks)
    small = Deviation(loss=1e-7, first_update=1e-7, final_weights=1e-7)
    limit = Deviation(loss=1e-5, first_update=1e-5, final_weights=1e-5)
    fields: dict[str, Any] = {
        "workload": "w",
        "strategy": strategy,
        "ranks": ranks,
        "device": "cuda",
        "backend": "nccl",
        "status": "passed",
        "precisions": [
            PrecisionParity(
                precision="fp32", deviation=small, noise_floor=small, tolerance=limit, passed=True
            )
        ],
        "case_sha256": case.fingerprint(),
        "code_sha256": "",
    }
    path = root / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Parity(**(fields | changes)).model_dump_json(by_alias=True))


def edit_json(path: Path, **changes: Any) -> None:
    """Change the top level of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
