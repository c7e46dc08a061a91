"""Real cells on this machine's CPU or GPUs, small enough for a test."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import zlib
from pathlib import Path
from typing import Any

import forked_ranks
from parity_cases import DEVICE, ROOT, STRATEGIES, VARIANTS, skip_without_gpus
from run_cell import run_cell
from shardmark.cells import Cell, cell_of
from shardmark.config.loading import load
from shardmark.metrics import Metrics, read_metrics

_RUNS = Path(os.environ["SHARDMARK_TEST_RUNS"])


def cell_named(
    strategy: str, gpus: int = 2, measure: dict[str, Any] | None = None, **changes: Any
) -> Cell:
    """A cell of one epoch of four steps; ``changes`` to its workload."""
    workload: dict[str, Any] = {
        "model": {"name": "resnet8"},
        "dataset": {"name": "synthetic", "train_images": 64, "test_images": 16},
        "batch": {"global": 16},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "precision": "fp32",
    } | changes
    raw = {
        "run": "test",
        "matrix": {
            "workloads": ["w"],
            "strategies": [*STRATEGIES, *VARIANTS],
            "gpus": sorted({1, 2, gpus}),
            "seeds": [0],
        },
        "workloads": {"w": workload},
        "variants": VARIANTS,
        "cluster": {"device": DEVICE},
        "measure": {
            "steady_min_s": 0.3,
            "steady_max_s": 0.3,
            "warmup_min_steps": 4,
            "warmup_max_steps": 8,
            "profile": False,
        }
        | (measure or {}),
    }
    return cell_of(load(raw, ROOT), "w", strategy, gpus, 0)


@functools.cache
def folder_of_run(
    strategy: str,
    gpus: int = 2,
    precision: str = "bf16",
    sabotage: str | None = None,
    *,
    launched: bool = DEVICE == "cuda",
    accumulate: int = 1,
    hidden_units: int | None = None,
    settings: str = "{}",
) -> Path:
    """What a real cell left behind, its metrics.json included; each is run once in a test run.

    Args:
        strategy: of the matrix, or a variant of the parity gate's tests.
        gpus: processes of the cell.
        precision: the workload's.
        sabotage: a script of tests/sabotage that trains in the place of the strategy's own.
        launched: start its processes as a user's are, and not as forks, which take a fifth of the
            time. Forks of a process that has a GPU lose it.
        accumulate: micro-batches of a step.
        hidden_units: width of a hidden layer, whose parameters are in no shard unit.
        settings: further changes to the workload, as JSON.
    """
    skip_without_gpus(gpus)
    name = f"{strategy}-{gpus}-{precision}-{sabotage}-{launched}-{accumulate}-{hidden_units}"
    name += f"-{zlib.crc32(settings.encode()):x}"
    folder = _RUNS / name
    with (_RUNS / f"{name}.lock").open("w") as lock:
        # Another process of pytest-xdist may be running it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "metrics.json").exists():
            script = ROOT / "tests/sabotage" / sabotage if sabotage else None
            cell = cell_named(
                strategy,
                gpus,
                **{
                    "precision": precision,
                    "model": {"name": "resnet8", "hidden_units": hidden_units},
                    "batch": {"global": 16, "accumulate": accumulate},
                    **json.loads(settings),
                },
            )
            run = run_cell if launched else forked_ranks.run_cell
            metrics = run(cell, folder, script=script)
            assert metrics.status == "ok", metrics.failure
            (folder / "metrics.json").write_text(metrics.model_dump_json(by_alias=True))
    return folder


def metrics_of_run(*arguments: Any, **named: Any) -> Metrics:
    """The result of such a cell, as a reader of its file has it."""
    return read_metrics(folder_of_run(*arguments, **named) / "metrics.json")
