"""The oracles of cases, one for each way to round, and the noise of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardmark.cells import Cell, ParityCase, Rounding
from shardmark.parity.cases import (
    REAL_MODEL_STEPS,
    name_of_oracle,
    precisions_of,
    real_model_cell,
    rounding_of,
    surrogate_cell,
)
from shardmark.parity.deviations import (
    Summary,
    deviation,
    relative_l2,
    summary_difference,
    summary_of,
    worst,
)
from shardmark.parity.gpu_turn import give_memory_back
from shardmark.parity.model_copies import copies_of
from shardmark.parity.oracle import (
    SummationOrder,
    Trajectory,
    compute_alike,
    run_oracle,
)
from shardmark.parity_result import Deviation
from shardmark.workload.built_in import make_workload
from shardmark.workload.parameter_uses import parameter_uses

# Other orders of the same sums; the largest difference that they cause is the noise floor.
OTHER_ORDERS: tuple[SummationOrder, ...] = ("replicas_reversed", "samples_reversed")
OracleRun = Callable[[SummationOrder], Trajectory]


def make_oracles(
    cases: Sequence[ParityCase], device: torch.device, *, last: bool = True
) -> dict[str, Any]:
    """Train the oracles of cases and measure their noise floors.

    Args:
        cases: strategies of one workload at one replica count.
        device: where to compute.
        last: whether this attempt decides that the real model does not fit, even beside others.

    Returns:
        by the name of the oracle (``oracle_of``) ``{"trajectory": Trajectory, "floor": Deviation,
        "first_update_floor": float, "rounding": Deviation}``; ``rounding`` is the deviation from
        the oracle in float32. Under ``real``, the real model's ``{"summary", "floor", "rounding"}``
        by the same names, or None; the latter two by the parts of a summary. Under ``left_out``,
        why the gate cannot compare the real model, or None.

    Raises:
        torch.OutOfMemoryError: if an oracle does not fit on the device. For the real model's, only
            if other processes use the device and this is not the last attempt.
    """
    compute_alike()
    case = cases[0]
    oracles: dict[str, Any] = {}
    for precision in precisions_of(case):
        cell = surrogate_cell(case, precision)
        new_model = functools.partial(make_workload(cell.definition).surrogate, cell.seed)
        run = _runner(cell, case.gate.steps, device, new_model, surrogate=True)
        oracles |= {
            name_of_oracle(precision, rounding): _oracle_and_floor(run(rounding))
            for rounding in _roundings(cases, precision)
        }
    exact = oracles["fp32"]["trajectory"]
    for oracle in oracles.values():
        oracle["rounding"] = deviation(oracle["trajectory"], exact)
    real, left_out = None, None
    beside_others = others_use_memory(device)
    try:
        real = _real_oracles(cases, device)
    except torch.OutOfMemoryError:
        if not last and (beside_others or others_use_memory(device)):
            raise
        where = "beside other processes on its GPU" if others_use_memory(device) else "on one GPU"
        left_out = f"its oracle does not fit {where}, so only a small version was compared"
    return oracles | {"real": real, "left_out": left_out}


def others_use_memory(device: torch.device) -> bool:
    """Whether other processes hold more than a tenth of a GPU's memory."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) > total / 10


def _roundings(cases: Sequence[ParityCase], precision: str) -> list[Rounding]:
    """The ways to round that some case needs; each once."""
    return sorted({rounding_of(case, precision) for case in cases})


def _real_oracles(cases: Sequence[ParityCase], device: torch.device) -> dict[str, Any] | None:
    cell = real_model_cell(cases[0])
    if cell is None:
        return None
    precision = cell.definition.precision
    build = make_workload(cell.definition).build_model
    new_model = copies_of(functools.partial(build, cell.seed), device)
    run = _runner(cell, REAL_MODEL_STEPS, device, new_model, surrogate=False)
    definition = cell.definition.model_copy(update={"precision": "fp32"})
    exact_cell = cell.model_copy(update={"definition": definition})
    run_exact = _runner(exact_cell, REAL_MODEL_STEPS, device, new_model, surrogate=False)
    exact = _summary_and_pass_losses(run_exact("autocast")("natural"), device)
    return {
        name_of_oracle(precision, rounding): _summary_and_floor(run(rounding), *exact, device)
        for rounding in _roundings(cases, precision)
    }


def _runner(
    cell: Cell,
    steps: int,
    device: torch.device,
    new_model: Callable[[], nn.Module],
    *,
    surrogate: bool,
) -> Callable[[Rounding], OracleRun]:
    """Return what trains a cell's oracle with one way to round."""
    workload = make_workload(cell.definition)
    rows = workload.rows(Path(cell.data_dir), train=True)
    unused = parameter_uses(workload, surrogate=surrogate).unused
    return lambda rounding: functools.partial(
        run_oracle,
        cell,
        workload,
        rows,
        new_model,
        steps,
        device,
        rounding=rounding,
        unused=unused,
        keep_final=surrogate,
    )


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


def _summary_and_pass_losses(
    trajectory: Trajectory, device: torch.device
) -> tuple[Summary, list[float]]:
    """A trajectory's summary and the losses of its forward passes.

    The real model may fill the machine's memory, so only one of its trajectories exists at a time.
    """
    give_memory_back()
    return summary_of(trajectory, device), trajectory.pass_losses


def _summary_and_floor(
    run: OracleRun, exact: Summary, exact_passes: Sequence[float], device: torch.device
) -> dict[str, Any]:
    summary, passes = _summary_and_pass_losses(run("natural"), device)
    floors = [
        summary_difference(_summary_and_pass_losses(run(order), device)[0], summary)
        for order in OTHER_ORDERS
    ]
    return {
        "summary": summary,
        "floor": {part: worst(floor[part] for floor in floors) for part in summary},
        # A loss is the mean of a few forward passes, whose errors may cancel. The root mean square
        # over the passes is the largest error that the mean can have.
        "rounding": summary_difference(summary, exact)
        | {"losses": relative_l2(passes, exact_passes)},
    }
