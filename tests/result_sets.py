"""Result sets on disk for tests: real metrics.json of real cells, with planted throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shardmark.cells import Cell, cell_of
from shardmark.config.loading import load
from shardmark.metrics import Device, Efficiency, Failure, Metrics, Throughput, Times
from shardmark.parity_result import Parity

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
GPU = Device(index=0, node="node1", kind="gpu", name="NVIDIA H200", uuid="GPU-00", samples=100)


def cells(run: str, strategies: Sequence[str], seeds: Sequence[int], **changes: Any) -> list[Cell]:
    """Cells on one GPU; ``changes`` to the workload."""
    workload: dict[str, Any] = {
        "model": {"name": "resnet50"},
        "dataset": {"name": "synthetic"},
        "batch": {"per_gpu": 512},
        "optimizer": {"learning_rate": 0.1},
        "precision": "bf16",
    }
    raw = {
        "run": run,
        "baseline": strategies[0],
        "matrix": {
            "workloads": ["w"],
            "strategies": list(strategies),
            "gpus": [1],
            "seeds": list(seeds),
        },
        "workloads": {"w": workload | changes},
    }
    config = load(raw, ROOT)
    return [cell_of(config, "w", name, 1, seed) for name in strategies for seed in seeds]


def metrics_of(cell: Cell, items_per_s: float | None, **environment: Any) -> Metrics:
    """A result of that throughput, or one that ran out of memory."""
    known: dict[str, Any] = {
        "cell": cell,
        "cell_sha256": cell.fingerprint(),
        "code_sha256": f"code of {cell.base}",
        "environment": {"driver": "570.1", "versions": {"torch": "2.15.0"}} | environment,
        "provenance": {"git_commit": "a" * 40},
    }
    if items_per_s is None:
        return Metrics(**known, status="oom", failure=Failure.plain("CUDA out of memory"))
    step_ms = 512_000 / items_per_s
    return Metrics(
        **known,
        status="ok",
        time_s=Times(total_s=60 + 1e6 / items_per_s, epochs_s=[1e5 / items_per_s] * 2),
        throughput=Throughput(
            items_per_s=items_per_s,
            items_per_s_per_gpu=items_per_s,
            step_ms_mean=step_ms,
            step_ms_p50=step_ms,
            step_ms_p90=step_ms,
            step_ms_p99=step_ms,
            steps=1000,
            window_s=step_ms,
            warmup_steps=10,
            warmup_converged=True,
            slowest_rank=0,
        ),
        devices=[GPU],
        efficiency=Efficiency(energy_per_item_j=400 / items_per_s, memory_peak_bytes=10 * GIB),
    )


def write(folder: Path, metrics: Metrics) -> Path:
    """One cell's files, as a run leaves them in ``folder``, with a passed parity beside it."""
    cell = metrics.cell
    place = folder / cell.folder.relative_to(Path("results", cell.run))
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.json").write_text(metrics.model_dump_json(by_alias=True))
    (place / "steps.csv").write_text(f"rank,step,step_ms\n0,0,{cell.seed}\n")
    (place / "code.sha256").write_text("0" * 64)
    write_parity(folder, cell.workload, cell.strategy, "passed")
    return place / "metrics.json"


def write_parity(folder: Path, workload: str, strategy: str, status: Any) -> None:
    """The parity gate's result at one rank."""
    place = folder / "parity" / workload / strategy
    place.mkdir(parents=True, exist_ok=True)
    parity = Parity(
        workload=workload,
        strategy=strategy,
        ranks=1,
        device="cuda",
        backend="nccl",
        status=status,
        case_sha256="0" * 64,
        code_sha256="0" * 64,
    )
    (place / "ranks1.json").write_text(parity.model_dump_json())


def write_set(
    folder: Path,
    ratios: Mapping[str, float],
    seeds: Sequence[int] = range(9),
    *,
    noise: int,
    sd: float = 0.005,
    run: str = "",
    environment: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A result set of 10,000 images/s times each strategy's ratio, with normal noise."""
    generator = np.random.default_rng(noise)
    for cell in cells(run or folder.name, list(ratios), seeds, **changes):
        value = 1e4 * ratios[cell.strategy] * float(np.exp(generator.normal(0, sd)))
        write(folder, metrics_of(cell, value, **(environment or {})))
    return folder
