"""The oracles of a case, one for each way to round, and the noise of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from shardmark.cells import Cell, ParityCase
from shardmark.metrics import Deviation
from shardmark.parity.cases import (
    REAL_MODEL_STEPS,
    name_of_oracle,
    precisions_of,
    real_model_cell,
    surrogate_cell,
)
from shardmark.parity.deviations import deviation, summary_difference, summary_of, worst
from shardmark.parity.oracle import (
    SummationOrder,
    Trajectory,
    compute_alike,
    run_oracle,
)
from shardmark.workload.built_in import make_workload
from shardmark.workload.contract import Contract
from shardmark.workload.parameter_uses import parameter_uses
from shardmark.workload.precision import AUTOCAST_DTYPES

# Other orders of the same sums; the largest difference that they cause is the noise floor.
OTHER_ORDERS: tuple[SummationOrder, ...] = ("replicas_reversed", "samples_reversed")
OracleRun = Callable[[SummationOrder], Trajectory]


def make_oracles(case: ParityCase, device: torch.device) -> dict[str, Any]:
    """Train the oracles of a case and measure their noise floors.

    Returns:
        by the name of the oracle (``oracle_of``) ``{"trajectory": Trajectory, "floor": Deviation,
        "first_update_floor": float, "rounding": Deviation}``; ``rounding`` is the deviation from
        the oracle in float32. Under ``real``, the real model's ``{"summary", "floor", "rounding"}``
        by the same names, or None.
    """
    compute_alike()
    oracles: dict[str, Any] = {}
    for precision in precisions_of(case):
        cell = surrogate_cell(case, precision)
        workload = make_workload(cell.definition)
        runs = _runs_of(precision, cell, workload, case.gate.steps, device, surrogate=True)
        oracles |= {name: _oracle_and_floor(run) for name, run in runs}
    exact = oracles["fp32"]["trajectory"]
    for oracle in oracles.values():
        oracle["rounding"] = deviation(oracle["trajectory"], exact)
    return oracles | {"real": _real_oracles(case, device)}


def _real_oracles(case: ParityCase, device: torch.device) -> dict[str, Any] | None:
    cell = real_model_cell(case)
    if cell is None:
        return None
    workload = make_workload(cell.definition)

    def runs(cell: Cell) -> Iterator[tuple[str, OracleRun]]:
        precision = cell.definition.precision
        return _runs_of(precision, cell, workload, REAL_MODEL_STEPS, device, surrogate=False)

    oracles = {name: _summary_and_floor(run) for name, run in runs(cell)}
    definition = cell.definition.model_copy(update={"precision": "fp32"})
    _, run_exact = next(runs(cell.model_copy(update={"definition": definition})))
    exact = summary_of(run_exact("natural"))
    for oracle in oracles.values():
        oracle["rounding"] = summary_difference(oracle["summary"], exact)
    return oracles


def _runs_of(
    name: str,
    cell: Cell,
    workload: Contract[Any],
    steps: int,
    device: torch.device,
    *,
    surrogate: bool,
) -> Iterator[tuple[str, OracleRun]]:
    """The oracles of a cell: under autocast, and with low parameters where the precision is low."""
    rows = workload.rows(Path(cell.data_dir), train=True)
    build = workload.surrogate if surrogate else workload.build_model
    unused = parameter_uses(workload, surrogate=surrogate).unused
    precision = cell.definition.precision
    for low_parameters in (False, True) if precision in AUTOCAST_DTYPES else (False,):
        run = functools.partial(
            run_oracle,
            cell,
            workload,
            rows,
            lambda: build(cell.seed),
            steps,
            device,
            low_parameters=low_parameters,
            unused=unused,
        )
        yield name_of_oracle(name, low_parameters=low_parameters), run


def _oracle_and_floor(run: OracleRun) -> dict[str, Any]:
    natural = run("natural")
    floors = [deviation(run(order), natural) for order in OTHER_ORDERS]
    repeated = deviation(run("natural"), natural)
    return {
        "trajectory": natural,
        "floor": Deviation(
            loss=worst(floor.loss for floor in floors),
            first_update=worst(floor.first_update for floor in floors),
            final_weights=worst(floor.final_weights for floor in floors),
        ),
        # The noise of the sum over replicas alone: the micro-batches are unchanged.
        "first_update_floor": worst([repeated.first_update, floors[0].first_update]),
    }


def _summary_and_floor(run: OracleRun) -> dict[str, Any]:
    """One trajectory at a time: the real model may fill the machine's memory."""
    natural = summary_of(run("natural"))
    others = [summary_of(run(order)) for order in OTHER_ORDERS]
    return {
        "summary": natural,
        "floor": worst(summary_difference(other, natural) for other in others),
    }
