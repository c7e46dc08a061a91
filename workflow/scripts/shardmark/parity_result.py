"""The result of a case of the parity gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from shardmark.cells import ParityCase
from shardmark.codebase import code_of_parity, code_sha256
from shardmark.config.values import Count, MaybeInfinite, Name, Record, Total
from shardmark.result_files import read_record


class Deviation(Record):
    """Largest relative differences from the oracle over the gate's steps."""

    loss: MaybeInfinite
    first_update: MaybeInfinite
    final_weights: MaybeInfinite


class PrecisionParity(Record):
    """The gate in one precision."""

    precision: str
    deviation: Deviation
    noise_floor: Deviation
    tolerance: Deviation
    passed: bool
    reason: str | None = None


class RealModelParity(Record):
    """First steps of the real model: largest relative difference in a loss or an update's norm."""

    precision: str
    deviation: MaybeInfinite
    noise_floor: MaybeInfinite
    tolerance: MaybeInfinite
    passed: bool


class Parity(Record):
    """Whether a strategy trains the oracle's model on its cells' device and in their precision."""

    schema_version: Literal[1] = 1
    workload: Name
    strategy: Name
    ranks: Count
    device: str
    backend: str | None
    shared_device: bool = False
    status: Literal["passed", "failed", "unsupported", "error"]
    reason: str | None = None
    surrogate: str | None = None
    steps: Total | None = None
    losses: list[MaybeInfinite] = []
    oracle_losses: list[MaybeInfinite] = []
    precisions: list[PrecisionParity] = []
    real_model: RealModelParity | None = None
    case_sha256: str
    code_sha256: str


def parity_result(case: ParityCase, **fields: Any) -> Parity:
    """Return the result of a case, made with the code of today."""
    cell = case.cell
    return Parity(
        workload=cell.workload,
        strategy=cell.strategy,
        ranks=cell.gpus,
        device=cell.device,
        backend=fields.pop("backend", None),
        case_sha256=case.fingerprint(),
        code_sha256=code_sha256(code_of_parity(case)),
        **fields,
    )


def read_parity(path: Path) -> Parity:
    """Read and validate a result of the parity gate; raises UserError as read_record does."""
    return read_record(path, Parity)
