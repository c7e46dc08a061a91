"""The ranks' part of the search for the largest batch: try sizes until one does not fit.

The strategy is built once, because the model's states do not depend on the batch. Running out of
memory ends the processes: the other ranks wait in collectives then, and cannot be brought back in
step. The launcher records the size and starts new processes, which go on from the state file.
"""

from __future__ import annotations

import functools
import gc
import itertools
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from shardmark.cells import with_micro_batch
from shardmark.files import write_text
from shardmark.largest_batch import Measured, SearchState
from shardmark.measurement.clocks import Phases
from shardmark.measurement.steady_state import summarise_steps
from shardmark.training.loop import StrategyClass, make_task, take_step
from shardmark.training.runtime import Runtime, start_runtime
from shardmark.training.steady_window import measure_window
from shardmark.training.updates import taken_until_it_updates
from shardmark.workload.built_in import make_workload
from shardmark.workload.contract import Rows
from shardmark.workload.data import LoadedTrainingData, TrainingData
from shardmark.workload.precision import set_math_mode

# The first step makes the optimizer's state; the second has it and the activations at once. In the
# third, buckets that DDP rebuilt after the first are in use.
TRIAL_STEPS = 3
# Fewest steps of an epoch, so that an epoch of few samples does not begin in every other step.
EPOCH_STEPS = 64


class RepeatedData(TrainingData):
    """Training data whose samples repeat, so that any batch fills its epochs."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.distinct = self.count
        self.steps_per_epoch = max(self.steps_per_epoch, EPOCH_STEPS)
        self.count = max(self.count, self.steps_per_epoch * self.replica_count * self.per_replica)

    def samples(self, order: Tensor, step: int, micro: int) -> Tensor:
        """The sample indices of one micro-batch of this process."""
        return super().samples(order, step, micro) % self.distinct


class RepeatedLoadedData(RepeatedData, LoadedTrainingData):
    """The same, prefetched by worker processes."""


def search_largest_batch(strategy: StrategyClass, file: Path, phases: Phases) -> None:
    """Try sizes until the largest is known, then measure the steady window there.

    Args:
        strategy: builds the strategy from its task.
        file: the state of the search; rank 0 keeps it up to date.
        phases: measures the time of each phase.
    """
    state = SearchState.model_validate_json(file.read_text())
    trials = _Trials(strategy, state, phases)
    while (size := state.next_size()) is not None:
        state = trials.announce(state, size, file)
        trials.take(size)
        state = trials.announce(state.after(size, "fits"), None, file)
    largest = state.largest
    assert largest is not None
    state = trials.announce(state, largest, file)
    measured = trials.measure(largest)
    trials.announce(state.model_copy(update={"measured": measured}), None, file)


class _Trials:
    """One rank's strategy, and its steps at any batch size."""

    def __init__(self, strategy: StrategyClass, state: SearchState, phases: Phases) -> None:
        self.search, self.phases = state.search, phases
        cell = state.search.cell
        with phases("process_group"):
            self.runtime = start_runtime(cell)
        set_math_mode(cell.definition.precision)
        torch.backends.cudnn.benchmark = True
        with phases("data"):
            self.workload = make_workload(cell.definition)
            self.rows = self._load_rows()
        with phases("build"):
            self.strategy = strategy(make_task(cell, self.runtime, self.workload))
            self.strategy.train()
            # Samples that repeat must not let the weights diverge.
            self.strategy.set_learning_rate(0.0)
            self.runtime.synchronise()
        if cell.compilation != "none":
            _allow_programs_for(state)

    def _load_rows(self) -> Rows:
        cell = self.search.cell
        rows = self.workload.rows(Path(cell.data_dir), train=True)
        if cell.definition.loader_workers:
            return rows
        # Here, so that all sizes share one copy on the device.
        return tuple(part.to(self.runtime.device) for part in rows)

    def announce(self, state: SearchState, size: int | None, file: Path) -> SearchState:
        """Write the state with the size that comes next, before any rank begins with it."""
        state = state.model_copy(update={"trying": size})
        # Every rank has ended the trial before.
        dist.barrier()
        if self.runtime.rank == 0:
            write_text(file, state.model_dump_json(by_alias=True))
        # If a rank failed before the file is written, the launcher would blame the size before.
        dist.barrier()
        return state

    def take(self, size: int) -> None:
        """Take the steps of a trial."""
        self._free_memory()
        with self.phases(f"a batch of {size}"):
            for micro_batches in self._data(size).epoch(0, TRIAL_STEPS):
                taken_until_it_updates(
                    functools.partial(take_step, self.strategy, micro_batches, self.phases.heart),
                    # A skipped step makes no optimizer state, which takes memory, too.
                    required=True,
                )
            self.runtime.synchronise()
        if self.runtime.rank == 0:
            print(f"[{self.search.title}] {size} fits", flush=True)

    def measure(self, size: int) -> Measured:
        """Measure the steady window, as a cell does."""
        self._free_memory()
        data, heart = self._data(size), self.phases.heart
        steps = itertools.chain.from_iterable(map(data.epoch, itertools.count()))
        cell = with_micro_batch(self.search.cell, size)
        window = measure_window(
            self.runtime,
            cell.measure,
            self.phases,
            lambda: take_step(self.strategy, next(steps), heart),
        )
        mine = [
            (memory.reserved, memory.allocated, total, memory.retries)
            for memory, total in zip(window.torch_memory, _capacities(self.runtime), strict=True)
        ]
        everyone: list[Any] = [None] * self.runtime.world_size
        dist.all_gather_object(everyone, (window.steady_ms, mine))
        summary = summarise_steps([steps_ms for steps_ms, _ in everyone], cell.items_per_step)
        gpus = [memory for _, of_rank in everyone for memory in of_rank]
        reserved, allocated, total, _ = max(gpus, default=(None,) * 4)
        return Measured(
            unit=cell.definition.unit,
            items_per_s=summary["items_per_s"],
            items_per_s_per_gpu=summary["items_per_s"] / cell.gpus,
            half_width_pct=summary["half_width_pct"],
            torch_allocated_bytes=allocated,
            torch_reserved_bytes=reserved,
            gpu_memory_bytes=total,
            allocation_retries=sum(retries for *_, retries in gpus) if gpus else None,
        )

    def _data(self, size: int) -> TrainingData:
        cell = with_micro_batch(self.search.cell, size)
        kind = RepeatedLoadedData if cell.definition.loader_workers else RepeatedData
        return kind(
            self.workload,
            self.rows,
            cell.seed,
            replicas=self.runtime.replicas,
            replica_count=cell.gpus,
            per_replica=cell.per_gpu_batch_size,
            device=self.runtime.device,
        )

    def _free_memory(self) -> None:
        """Free the activations of the sizes before."""
        gc.collect()
        if self.runtime.gpus:
            torch.cuda.empty_cache()


def _capacities(runtime: Runtime) -> list[int]:
    """The memory of each of this process's GPUs, bytes."""
    return [torch.cuda.get_device_properties(device).total_memory for device in runtime.gpus]


def _allow_programs_for(state: SearchState) -> None:
    """Let torch keep a compiled program for each size that may be tried.

    Beyond its limits torch runs uncompiled code, which needs other memory, with only a warning.
    """
    sizes = 2 * state.search.most.bit_length()
    config = cast(Any, torch._dynamo).config
    config.recompile_limit *= sizes
    config.accumulated_recompile_limit *= sizes
