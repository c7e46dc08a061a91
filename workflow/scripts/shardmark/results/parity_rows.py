"""parity.csv: the parity gate's verdict on each strategy, GPU count and precision."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from shardmark.cells import ParityCase, parity_case
from shardmark.config.schema import Config
from shardmark.config.values import Section
from shardmark.errors import UserError
from shardmark.parity_result import Parity, PrecisionParity, RealModelParity, read_parity
from shardmark.results.cell_rows import column

_NO_VERDICT = "the gate did not get this far"
_REAL_MODEL = f"{_NO_VERDICT}, or the row is of the model itself"


class ParityRow(Section):
    """One check of the gate. Deviations are relative differences from the oracle."""

    workload: str = column("Name of the workload.")
    strategy: str = column("Name of the strategy or variant.")
    gpus: int = column("Number of replicas that were compared with the oracle.")
    verdict: str = column(
        "Verdict on the whole case: passed, failed, error, unsupported or missing."
    )
    reason: str | None = column(
        "Why the case did not pass, or what it left out.", empty="it passed, complete"
    )
    model: str | None = column(
        "Model of the check: surrogate (a small network of the workload's blocks) or real (the "
        "first steps of the workload's model).",
        empty=_NO_VERDICT,
    )
    precision: str | None = column(
        "fp32, fp32 unclipped (the same without clipping), tf32, bf16 or fp16.", empty=_NO_VERDICT
    )
    passed: bool | None = column("Whether this check passed.", empty=_NO_VERDICT)
    loss_deviation: float | None = column(
        "Largest relative deviation of a loss; with the real model also of an update's norm.",
        empty=_NO_VERDICT,
    )
    loss_noise: float | None = column(
        "The oracle's own noise in loss_deviation.", empty=_NO_VERDICT
    )
    loss_tolerance: float | None = column("Largest loss_deviation that passes.", empty=_NO_VERDICT)
    first_update_deviation: float | None = column(
        "Largest relative deviation of the first update.", empty=_REAL_MODEL
    )
    first_update_noise: float | None = column(
        "The oracle's own noise in first_update_deviation.", empty=_REAL_MODEL
    )
    first_update_tolerance: float | None = column(
        "Largest first_update_deviation that passes.", empty=_REAL_MODEL
    )
    final_weights_deviation: float | None = column(
        "Largest relative deviation of the final weights.", empty=_REAL_MODEL
    )
    final_weights_noise: float | None = column(
        "The oracle's own noise in final_weights_deviation.", empty=_REAL_MODEL
    )
    final_weights_tolerance: float | None = column(
        "Largest final_weights_deviation that passes.", empty=_REAL_MODEL
    )


def read_verdict(case: ParityCase, root: Path = Path()) -> Parity | None:
    """Read the gate's result for a case as it is defined now; None if there is none."""
    try:
        parity = read_parity(root / case.file)
    except UserError:
        return None
    return parity if parity.case_sha256 == case.fingerprint() else None


def read_verdicts(config: Config, root: Path = Path()) -> dict[tuple[str, str, int], Parity | None]:
    """Read the gate's results by workload, strategy and GPU count, GPU counts ascending."""
    return {
        (workload, strategy, gpus): read_verdict(
            parity_case(config, workload, strategy, gpus), root
        )
        for workload, strategy in itertools.product(
            config.matrix.workloads, config.matrix.strategies
        )
        for gpus in sorted(config.matrix.gpus)
        if config.matrix.has(workload, strategy, gpus)
    }


def parity_rows(key: tuple[str, str, int], parity: Parity | None) -> Iterator[ParityRow]:
    """Yield the rows of one case: one per precision, one for the real model, at least one."""
    workload, strategy, gpus = key
    values = {
        "workload": workload,
        "strategy": strategy,
        "gpus": gpus,
        "verdict": parity.status if parity else "missing",
        "reason": parity.reason if parity else "there is no verdict on this definition",
    }
    first = ParityRow.model_validate(dict.fromkeys(ParityRow.model_fields) | values)
    checks = [*parity.precisions, parity.real_model] if parity else []
    rows = [first.model_copy(update=_figures(check)) for check in checks if check]
    yield from rows or [first]


def _figures(check: PrecisionParity | RealModelParity) -> dict[str, object]:
    known = {"precision": check.precision, "passed": check.passed}
    if isinstance(check, RealModelParity):
        return known | {
            "model": "real",
            "loss_deviation": check.deviation,
            "loss_noise": check.noise_floor,
            "loss_tolerance": check.tolerance,
        }
    return (
        known
        | {"model": "surrogate"}
        | {
            f"{quantity}_{name}": getattr(part, quantity)
            for quantity in ("loss", "first_update", "final_weights")
            for name, part in (
                ("deviation", check.deviation),
                ("noise", check.noise_floor),
                ("tolerance", check.tolerance),
            )
        }
    )
