"""Cases of the parity gate for tests: their workload, their oracles."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import run_parity
from saved_cells import oracle_arguments
from shardmark.cells import ParityCase, parity_case
from shardmark.config.loading import load
from shardmark.measurement.telemetry import visible_gpus
from shardmark.parity.cases import rounding_of
from shardmark.parity_result import Parity
from shardmark.strategies import STRATEGIES as RECORDS

ROOT = Path(__file__).resolve().parents[1]
# Where the tests that start ranks run them: cpu (gloo), or cuda (NCCL).
DEVICE = os.environ.get("SHARDMARK_TEST_DEVICE", "cpu")
STRATEGIES = tuple(RECORDS)
VARIANTS = {
    "zero1_default_clipping": {"base": "deepspeed_zero1", "gradient_clipping": None},
    "zero1_bf16_communication": {"base": "deepspeed_zero1", "low_precision_communication": True},
    "ddp_bf16_hook": {"base": "ddp", "comm_hook": "bf16_compress"},
    "fsdp_bf16": {"base": "fsdp", "param_dtype": "bf16"},
    "fsdp2_bf16": {"base": "fsdp2", "param_dtype": "bf16"},
    "fsdp2_bf16_reduction": {"base": "fsdp2", "reduce_dtype": "bf16"},
    "fsdp2_all_bf16": {"base": "fsdp2", "param_dtype": "bf16", "reduce_dtype": "bf16"},
    "fsdp_fp16": {"base": "fsdp", "param_dtype": "fp16"},
    "fsdp2_fp16": {"base": "fsdp2", "param_dtype": "fp16"},
    "zero3_bf16_communication": {"base": "deepspeed_zero3", "low_precision_communication": True},
    "zero1_bf16": {"base": "deepspeed_zero1", "param_dtype": "bf16"},
    "zero2_bf16": {"base": "deepspeed_zero2", "param_dtype": "bf16"},
    "zero3_bf16": {"base": "deepspeed_zero3", "param_dtype": "bf16"},
    "ddp_compiled": {"base": "ddp", "compile": "model"},
    "fsdp2_compiled": {"base": "fsdp2", "compile": "block"},
    "zero1_compiled": {"base": "deepspeed_zero1", "compile": "model"},
    "fsdp_zero2": {"base": "fsdp", "sharding": "shard_grad_op"},
    "fsdp2_zero2": {"base": "fsdp2", "reshard_after_forward": False},
    "fsdp_hsdp": {"base": "fsdp", "shard_size": 2},
    "fsdp2_hsdp": {"base": "fsdp2", "shard_size": 2},
    "fsdp2_pairs": {"base": "fsdp2", "reshard_after_forward": 2},
    "zero3_pairs": {"base": "deepspeed_zero3", "reshard_after_forward": 2},
    "fsdp2_offload": {"base": "fsdp2", "offload": "all"},
    "zero1_offload": {"base": "deepspeed_zero1", "offload": "optimizer"},
    "zero2_offload": {"base": "deepspeed_zero2", "offload": "optimizer"},
    "zero3_offload": {"base": "deepspeed_zero3", "offload": "all"},
    "zero3_offload_optimizer": {"base": "deepspeed_zero3", "offload": "optimizer"},
    "ddp_zero1": {"base": "ddp", "zero_redundancy": True},
    "fairscale_zero2": {"base": "fairscale_fsdp", "reshard_after_forward": False},
}


def skip_without_gpus(count: int) -> None:
    """Skip the test that wants so many ranks, each on a GPU, where there are fewer GPUs.

    The parity gate would let ranks share a GPU over gloo, which is another test.
    """
    if DEVICE == "cuda" and (there := len(visible_gpus())) < count:
        pytest.skip(f"needs {count} GPUs, and this machine has {there}")


def case_of(strategy: str, ranks: int, **changes: Any) -> ParityCase:
    """A case with momentum, weight decay, augmentation and dropout.

    Args:
        strategy: a strategy, or one of VARIANTS.
        ranks: the number of replicas.
        **changes: the keys of the workload that differ; None removes a key.
    """
    workload: dict[str, Any] = {
        "model": {"name": "resnet8", "hidden_units": 32, "dropout": 0.3},
        "dataset": {"name": "synthetic", "train_images": 4096, "augment": True},
        "batch": {"per_gpu": 16},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "precision": "fp32",
        "epochs": 1,
    } | changes
    raw = {
        "run": "test",
        "matrix": {
            "workloads": ["w"],
            "strategies": [*STRATEGIES, *VARIANTS],
            "gpus": [1, 2, 3, 4],
            "seeds": [0],
        },
        "workloads": {"w": {key: value for key, value in workload.items() if value is not None}},
        "variants": VARIANTS,
        "cluster": {"device": DEVICE},
    }
    return parity_case(load(raw, ROOT), "w", strategy, ranks)


def oracle_file(case: ParityCase, folder: Path) -> Path:
    """The file of a case's oracle; cases that differ in nothing but the strategy may share it."""
    like = case.cell.model_copy(update={"strategy": "", "base": "ddp", "options": {}})
    name = case.model_copy(update={"cell": like}).fingerprint()
    rounding = rounding_of(case, case.cell.definition.precision)
    return folder / f"{name}_{rounding.replace(' ', '_')}.pt"


def make_oracle(case: ParityCase, folder: Path) -> Path:
    """The oracle of a case, by its own script, made once for equal cases."""
    target = oracle_file(case, folder)
    if not target.exists():
        script = ROOT / "workflow/scripts/make_oracle.py"
        arguments = [*oracle_arguments(case), "--output", str(target)]
        subprocess.run([sys.executable, str(script), *arguments], check=True)
    return target


def launched(case: ParityCase, oracles: Path, script: Path | None = None) -> Parity:
    """The verdict on a case, whose processes are started as a user's are."""
    skip_without_gpus(case.cell.gpus)
    with tempfile.TemporaryDirectory() as folder:
        oracle = make_oracle(case, oracles)
        return run_parity.run_parity(
            case, oracle, Path(folder, "w/ddp/verdict.json"), script=script
        )
