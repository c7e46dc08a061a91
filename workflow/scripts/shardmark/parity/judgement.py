"""The gate's verdict: does a strategy's trajectory agree with its oracle's?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shardmark.cells import ParityCase
from shardmark.parity.cases import UNCLIPPED, oracle_of, uses_weights_twice
from shardmark.parity.deviations import Incomparable, Summary, deviation, summary_difference
from shardmark.parity.oracle import Trajectory
from shardmark.parity_result import Deviation, PrecisionParity, RealModelParity

EXACT = ("fp32", UNCLIPPED)
# Relative root mean square error of rounding to 8 (bf16) or 11 (fp16, tf32) significant bits. The
# error is uniform, at most half a unit in the last place; mantissas lie between 1 and 2.
ROUNDING_RMS = {"bf16": 2**-8 / 24**0.5, "fp16": 2**-11 / 24**0.5, "tf32": 2**-11 / 24**0.5}


def judge(
    precision: str, trained: Trajectory, oracles: Mapping[str, Any], case: ParityCase
) -> PrecisionParity:
    """The gate's verdict in one precision.

    In float32, loss and weights must agree within the configured tolerance. The oracle's own noise
    must be at least ten times smaller, or the gate could not tell a correct strategy from a wrong
    one.

    In another precision, the tolerance of loss and weights is a multiple of the oracle's noise in
    that precision. The tolerance of the first update is a quarter of the error that rounding the
    gradients once to that precision would cause. It can be this tight because the micro-batches
    are computed as in the oracle: only the sum over replicas may differ, and it must be taken in
    float32. A variant that rounds elsewhere by design (rounds_elsewhere) may deviate twice as far
    as the oracle deviates from float32: two trainings that are that far from it may lie on either
    side.
    """
    reason = None
    try:
        measured = deviation(trained, oracles[oracle_of(case, precision)]["trajectory"])
    except Incomparable as error:
        measured = Deviation(loss=math.inf, first_update=math.inf, final_weights=math.inf)
        reason = f"{precision}: {error}"
    floor, tolerance = floor_and_tolerance(precision, oracles, case)
    if reason is None and not all(map(math.isfinite, tolerance.model_dump().values())):
        reason = f"{precision}: the oracle does not agree with itself, so the gate cannot judge"
    noisy = max(floor.loss, floor.final_weights) * 10 > case.gate.tolerance
    if reason is None and precision in EXACT and noisy:
        reason = (
            f"the oracle's own noise ({floor.loss:.1e} in the loss, {floor.final_weights:.1e} in "
            f"the weights) is not ten times below the tolerance {case.gate.tolerance:.0e}, so this "
            "setting cannot tell right from wrong; lower the learning rate or raise "
            "parity.per_gpu_batch"
        )
    for name, limit in tolerance.model_dump().items():
        value = getattr(measured, name)
        # `not <=` instead of `>`, so that NaN fails.
        if reason is None and not value <= limit:
            words = name.replace("_", " ")
            reason = f"{precision}: {words} deviates by {value:.2e}, tolerance {limit:.2e}"
    return PrecisionParity(
        precision=precision,
        deviation=measured,
        noise_floor=floor,
        tolerance=tolerance,
        passed=reason is None,
        reason=reason,
    )


def floor_and_tolerance(
    precision: str, oracles: Mapping[str, Any], case: ParityCase
) -> tuple[Deviation, Deviation]:
    """The oracle's own noise in one precision, and how far a strategy may deviate in it."""
    gate, oracle = case.gate, oracles[oracle_of(case, precision)]
    floor: Deviation = oracle["floor"]
    exact: Deviation = floor if precision in EXACT else oracles["fp32"]["floor"]
    first_update = max(gate.tolerance, gate.floor_multiple * exact.first_update)
    if precision in EXACT:
        return floor, Deviation(
            loss=gate.tolerance, first_update=first_update, final_weights=gate.tolerance
        )
    elsewhere = rounds_elsewhere(case)
    if case.cell.definition.batchnorm_statistics != "sync" and not elsewhere:
        # Synchronised batch-norm already sums over replicas in the forward pass, in another order
        # than the oracle, so it keeps the wider floor.
        narrow = oracle["first_update_floor"]
        floor = floor.model_copy(update={"first_update": narrow})
    first_update = max(
        first_update, gate.floor_multiple * floor.first_update, ROUNDING_RMS[precision] / 4
    )
    tolerance = Deviation(
        loss=max(gate.tolerance, gate.floor_multiple * floor.loss),
        first_update=first_update,
        final_weights=max(gate.tolerance, gate.floor_multiple * floor.final_weights),
    )
    if elsewhere:
        rounding = oracle["rounding"].model_dump()
        limits = tolerance.model_dump().items()
        tolerance = Deviation(**{name: max(limit, 2 * rounding[name]) for name, limit in limits})
    return floor, tolerance


def rounds_elsewhere(case: ParityCase) -> bool:
    """Whether a correct training rounds to the timed precision elsewhere than its oracle.

    DeepSpeed's own mixed precision reduces gradients in it, and its bf16 mode also adds those of
    micro-batches in it. So does FSDP1's; FSDP2's only for a weight that is used twice. FSDP1 casts
    what goes into a batch-norm to float32, where torch's kernel reads it as it is. A compiler
    leaves out the rounding between operations that it fuses. DataParallel divides by the terms of
    all replicas before the backward pass, which rounds it unless their number is a power of two.
    """
    cell = case.cell
    reduces = cell.options.get("low_precision_communication") or cell.state_dtype != "fp32"
    divides = cell.base == "dp" and cell.gpus & (cell.gpus - 1) > 0
    if reduces or divides or cell.compilation != "none":
        return True
    if case.rounding != "parameters":
        return False
    accumulates = cell.definition.batch.accumulate > 1
    if cell.base == "fsdp":
        return (accumulates and cell.gpus > 1) or cell.definition.batchnorm_statistics != "none"
    return accumulates and uses_weights_twice(case)


def judge_real_model(
    trained: Summary, oracles: Mapping[str, Any], case: ParityCase
) -> RealModelParity:
    """The verdict on the real model's first steps, by the part of its summary that is worst."""
    precision = case.cell.definition.precision
    oracle = oracles[oracle_of(case, precision)]
    measured = summary_difference(trained, oracle["summary"])
    verdicts = []
    for part, value in measured.items():
        tolerance = max(case.gate.tolerance, case.gate.floor_multiple * oracle["floor"][part])
        if rounds_elsewhere(case):
            tolerance = max(tolerance, 2 * oracle["rounding"][part])
        verdicts.append(
            RealModelParity(
                precision=precision,
                deviation=value,
                noise_floor=oracle["floor"][part],
                tolerance=tolerance,
                passed=value <= tolerance < math.inf,
            )
        )
    return min(verdicts, key=lambda one: (one.passed, -one.deviation / one.tolerance))
