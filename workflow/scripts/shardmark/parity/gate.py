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
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from shardmark.cells import ParityCase
from shardmark.measurement.clocks import Phases
from shardmark.measurement.model_cost import count_parameters
from shardmark.parity.cases import (
    REAL_MODEL_STEPS,
    precisions_of,
    real_model_cell,
    surrogate_cell,
)
from shardmark.parity.deviations import summary_of
from shardmark.parity.gpu_turn import (
    alone_on_gpus,
    give_memory_back,
    room_for,
    room_on_host,
)
from shardmark.parity.oracle import Trajectory, compute_alike
from shardmark.parity.side_by_side import ALONE_VARIABLE
from shardmark.parity.trajectory_files import left_out_by, write_plain
from shardmark.training.loop import StrategyClass, make_task, take_step
from shardmark.training.runtime import start_runtime
from shardmark.training.strategy import Task
from shardmark.training.updates import taken_until_it_updates
from shardmark.workload.built_in import make_workload
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

    def size_of(task: Task) -> int:
        """The number of parameters; 0 for a surrogate unless it is the whole model."""
        if task.surrogate and real is not None:
            return 0
        outline = task.workload.outline(case.cell.seed, surrogate=task.surrogate)
        return count_parameters(outline)

    def room(parameters: int) -> AbstractContextManager[Release]:
        if alone:
            return contextlib.nullcontext(lambda: None)
        return room_for(runtime, parameters, phases.heart.alive)

    with contextlib.ExitStack() as gpus:
        if alone:
            with phases("waiting for most of the GPUs' memory"):
                gpus.enter_context(alone_on_gpus(runtime, phases.heart.alive))
        for precision in precisions_of(case):
            cell = surrogate_cell(case, precision)
            task = make_task(cell, runtime, make_workload(cell.definition), surrogate=True)
            with (
                phases("waiting for room on the GPUs"),
                room(size_of(task)) as room_is_taken,
                phases(f"parity in {precision}"),
            ):
                trained[precision] = _train(strategy, task, case.gate.steps, phases, room_is_taken)
            give_memory_back()
        if real is not None and not left_out_by(oracle):
            task = make_task(real, runtime, make_workload(real.definition))
            parameters = size_of(task)
            with contextlib.ExitStack() as host:
                if task.fill is None and not alone:
                    with phases("waiting for room in host memory"):
                        host.enter_context(room_on_host(runtime, parameters, phases.heart.alive))
                    with phases("building the real model"):
                        task = _built_already(task)
                with (
                    phases("waiting for room on the GPUs"),
                    room(parameters) as room_is_taken,
                    phases("first steps of the real model"),
                ):
                    host.close()
                    trajectory = _train(strategy, task, REAL_MODEL_STEPS, phases, room_is_taken)
            give_memory_back()
            if runtime.rank == 0:
                trained["real"] = summary_of(trajectory, runtime.device)
    if runtime.rank == 0:
        write_plain(trained, scratch / "trajectories.pt")


def _built_already(task: Task) -> Task:
    """The task with a network that is built; if it is asked for another one, it builds that."""
    built = [task.build_outline()]
    return replace(task, build_outline=lambda: built.pop() if built else task.build_outline())


def _train(
    strategy: StrategyClass, task: Task, steps: int, phases: Phases, after_first_update: Release
) -> Trajectory:
    cell, runtime, workload = task.cell, task.runtime, task.workload
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
    driven = strategy(task)
    driven.train()
    losses: list[float] = []
    outline = workload.outline(cell.seed, surrogate=task.surrogate)
    names = {name for name, _ in outline.named_parameters()} - task.uses.unused
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
    return Trajectory(losses, initial, updated, final=weights() if task.surrogate else {})
