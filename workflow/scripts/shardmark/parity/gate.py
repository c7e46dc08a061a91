"""The parity gate: does a strategy train the model that the oracle trains?

The gate runs the same training scripts, variants, optimizer, augmentation and wrapping as the
cells, on the same device: first in float32, then in the precision that is timed. It trains a
surrogate, a small network of the workload model's own blocks. It then checks the first steps of the
real model by their losses and by the norm of the first update.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from shardmark.cells import Cell, ParityCase
from shardmark.measurement.clocks import Phases
from shardmark.measurement.model_cost import count_parameters
from shardmark.parity.cases import (
    REAL_MODEL_STEPS,
    precisions_of,
    real_model_cell,
    surrogate_cell,
)
from shardmark.parity.deviations import summary_of
from shardmark.parity.gpu_turn import alone_on_gpus, give_memory_back, room_for
from shardmark.parity.oracle import Trajectory, compute_alike
from shardmark.parity.side_by_side import ALONE_VARIABLE
from shardmark.parity.trajectory_files import left_out_by, write_plain
from shardmark.training.loop import StrategyClass, make_task, take_step
from shardmark.training.runtime import Runtime, start_runtime
from shardmark.training.updates import taken_until_it_updates
from shardmark.workload.built_in import make_workload
from shardmark.workload.contract import Contract
from shardmark.workload.data import training_data
from shardmark.workload.optimizers import learning_rate_at
from shardmark.workload.precision import set_math_mode

Release = Callable[[], object]


def run_case(
    strategy: StrategyClass, case: ParityCase, oracle: Path, scratch: Path, phases: Phases
) -> None:
    """Train one rank of a case; rank 0 writes the strategy's trajectories to ``scratch``."""
    with phases("process_group"):
        runtime = start_runtime(case.cell)
    compute_alike()
    trained: dict[str, Any] = {"backend": runtime.backend}
    real = real_model_cell(case)
    alone = os.environ.get(ALONE_VARIABLE) == "1"

    def room(workload: Contract[Any], *, surrogate: bool) -> AbstractContextManager[Release]:
        """Wait for room for a model; a surrogate needs none unless it is the whole model."""
        if alone:
            return contextlib.nullcontext(lambda: None)
        parameters = 0
        if not surrogate or real is None:
            parameters = count_parameters(workload.outline(case.cell.seed, surrogate=surrogate))
        return room_for(runtime, parameters, phases.heart.alive)

    with contextlib.ExitStack() as gpus:
        if alone:
            with phases("waiting for most of the GPUs' memory"):
                gpus.enter_context(alone_on_gpus(runtime, phases.heart.alive))
        for precision in precisions_of(case):
            cell = surrogate_cell(case, precision)
            workload = make_workload(cell.definition)
            with (
                phases("waiting for room on the GPUs"),
                room(workload, surrogate=True) as room_is_taken,
                phases(f"parity in {precision}"),
            ):
                trained[precision] = _train(
                    strategy,
                    cell,
                    runtime,
                    workload,
                    case.gate.steps,
                    phases,
                    surrogate=True,
                    after_first_update=room_is_taken,
                )
            give_memory_back()
        if real is not None and not left_out_by(oracle):
            workload = make_workload(real.definition)
            with (
                phases("waiting for room on the GPUs"),
                room(workload, surrogate=False) as room_is_taken,
                phases("first steps of the real model"),
            ):
                trajectory = _train(
                    strategy,
                    real,
                    runtime,
                    workload,
                    REAL_MODEL_STEPS,
                    phases,
                    surrogate=False,
                    after_first_update=room_is_taken,
                )
            give_memory_back()
            if runtime.rank == 0:
                trained["real"] = summary_of(trajectory, runtime.device)
    if runtime.rank == 0:
        write_plain(trained, scratch / "trajectories.pt")


def _train(
    strategy: StrategyClass,
    cell: Cell,
    runtime: Runtime,
    workload: Contract[Any],
    steps: int,
    phases: Phases,
    *,
    surrogate: bool,
    after_first_update: Release,
) -> Trajectory:
    definition = cell.definition
    set_math_mode(definition.precision)
    data = training_data(
        workload,
        workload.rows(Path(cell.data_dir), train=True),
        cell.seed,
        replicas=runtime.replicas,
        replica_count=cell.gpus,
        per_replica=cell.per_gpu_batch_size,
        device=runtime.device,
    )
    driven = strategy(make_task(cell, runtime, workload, surrogate=surrogate))
    driven.train()
    losses: list[float] = []
    outline = workload.outline(cell.seed, surrogate=surrogate)
    names = {name for name, _ in outline.named_parameters()} - driven.task.uses.unused
    del outline

    def weights() -> dict[str, Tensor]:
        """The parameters on rank 0, which alone needs them; a collective."""
        state = driven.full_state_dict()
        return {} if runtime.rank else {name: state[name] for name in names & state.keys()}

    initial = updated = weights()
    for step in range(steps):
        epoch, step_in_epoch = divmod(step, data.steps_per_epoch)
        if step_in_epoch == 0:
            batches = data.epoch(epoch)
        micro_batches = next(batches)
        driven.set_learning_rate(
            learning_rate_at(definition, cell.gpus, step, data.steps_per_epoch)
        )
        loss = taken_until_it_updates(
            functools.partial(take_step, driven, micro_batches, phases.heart)
        )
        losses.append(float(runtime.sum_over_ranks(loss)) / runtime.world_size)
        if step == 0:
            updated = weights()
            after_first_update()
    # Of the real model, only a summary of the first update is compared.
    return Trajectory(losses, initial, updated, final=weights() if surrogate else {})
