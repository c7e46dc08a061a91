"""The training loop of every strategy. It does not know which strategy it drives."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from shardmark.cells import Cell
from shardmark.effective_config import EffectiveConfig
from shardmark.measurement.clocks import Phases, StepClock
from shardmark.measurement.environment import torch_environment
from shardmark.measurement.model_cost import ModelCost, cost_of
from shardmark.measurement.model_state import bytes_each, held, predicted
from shardmark.measurement.steady_state import summarise_steps
from shardmark.metrics import Memory, Throughput, Windows
from shardmark.processes.heartbeat import Heartbeat
from shardmark.training.inspection import StepObserver, effective_config
from shardmark.training.probe import probe
from shardmark.training.profiled_pass import count_compiled_calls, profile_steps
from shardmark.training.runtime import Runtime, start_runtime
from shardmark.training.steady_window import Window, measure_window
from shardmark.training.strategy import Strategy, Task
from shardmark.training_result import Divergence, Inspected, RankResult, Step, TrainingResult
from shardmark.workload.blocks import outermost_modules, wrap_blocks
from shardmark.workload.built_in import make_workload
from shardmark.workload.contract import Contract, Inputs
from shardmark.workload.data import TestData, TrainingData, training_data
from shardmark.workload.optimizers import (
    build_optimizer,
    count_dimensions,
    learning_rate_at,
    peak_learning_rate,
)
from shardmark.workload.precision import set_math_mode

StrategyClass = Callable[[Task], Strategy]
# One inspected step is enough unless the loss scaler skips it.
MOST_INSPECTED_STEPS = 4


def make_task(
    cell: Cell, runtime: Runtime, workload: Contract[Any], *, surrogate: bool = False
) -> Task:
    """Make the task of a strategy: a model and an optimizer, which it distributes.

    Args:
        cell: the cell.
        runtime: this process.
        workload: the cell's workload.
        surrogate: whether to train the workload's surrogate instead of its model.
    """
    definition = cell.definition
    rate = peak_learning_rate(definition, cell.gpus)
    build = workload.surrogate if surrogate else workload.build_model
    fill = workload.filler(cell.seed, surrogate=surrogate)

    def build_outline() -> nn.Module:
        with torch.device("meta") if fill else nullcontext():
            model = build(cell.seed)
        blocks = workload.shard_units(model)
        wrap_blocks(model, blocks, definition.activation_checkpointing, cell.compilation)
        return model

    def dimensions() -> dict[str, int] | None:
        if definition.optimizer.decay == "all":
            return None
        return count_dimensions(workload.outline(cell.seed, surrogate=surrogate))

    return Task(
        cell=cell,
        runtime=runtime,
        workload=workload,
        build_outline=build_outline,
        fill=fill,
        build_optimizer=lambda model: build_optimizer(
            model, definition.optimizer, rate, dimensions()
        ),
        shard_units=lambda model: outermost_modules(model, workload.shard_units(model)),
        surrogate=surrogate,
    )


def take_step(strategy: Strategy, micro_batches: Sequence[Inputs], heart: Heartbeat) -> Tensor:
    """Take one optimizer step.

    Returns:
        this process's sum of losses before the update, divided by the mean number of terms per
        process: float32, shape (), on the device. The mean over processes is the mean over all
        terms.
    """
    heart.step()
    total = torch.zeros((), device=strategy.device)
    terms = sum(map(strategy.task.workload.terms, micro_batches)) / len(micro_batches)
    if isinstance(terms, Tensor):
        # A rank that hangs before this reduction has one beat less, as below.
        heart.alive()
        terms = strategy.task.runtime.mean_over_ranks(terms.float())
    for index, inputs in enumerate(micro_batches):
        with strategy.micro_batch(last=index == len(micro_batches) - 1):
            loss = strategy.forward(inputs) / terms
            # A rank that hangs before the reduction has one beat less than ranks that wait for it.
            heart.alive()
            strategy.backward(loss)
        total += loss.detach()
    strategy.step()
    return total / len(micro_batches)


class Diverged(Exception):
    """The loss is no longer finite.

    Args:
        reason: the message.
        rank: the first rank whose loss was not finite; None if several ranks were first.
    """

    def __init__(self, reason: str, rank: int | None) -> None:
        super().__init__(reason)
        self.rank = rank


class CellTraining:
    """One rank's training and measurement of a cell.

    Args:
        strategy: builds the strategy from its task.
        cell: what to train.
        phases: measures the time of each phase.

    Raises:
        UserError: if the number of processes is not the cell's, or a device cannot be used.
    """

    def __init__(self, strategy: StrategyClass, cell: Cell, phases: Phases) -> None:
        self.cell, self.phases = cell, phases
        precision = cell.definition.precision
        with phases("process_group"):
            self.runtime = start_runtime(cell)
        set_math_mode(precision)
        with phases("probe"):
            self.probes = probe(self.runtime, precision)
            if self.runtime.device.type == "cuda":
                torch.cuda.empty_cache()
        # Shapes never change, so cuDNN searches for the fastest kernels once, in the warm-up.
        torch.backends.cudnn.benchmark = True
        with phases("data"):
            workload = make_workload(cell.definition)
            data_dir = Path(cell.data_dir)
            self.data: TrainingData = training_data(
                workload,
                workload.rows(data_dir, train=True),
                cell.seed,
                replicas=self.runtime.replicas,
                replica_count=cell.gpus,
                per_replica=cell.per_gpu_batch_size,
                device=self.runtime.device,
            )
            self.test_data: TestData | None = None
            if cell.definition.test_samples:
                self.test_data = TestData(
                    workload,
                    workload.rows(data_dir, train=False),
                    rank=self.runtime.rank,
                    world_size=self.runtime.world_size,
                    batch_size=cell.micro_batch_size * len(self.runtime.replicas),
                    device=self.runtime.device,
                )
        with phases("build"):
            self.strategy = strategy(make_task(cell, self.runtime, workload))
            self.runtime.synchronise()
        self.steps_done = 0
        # The steps that updated weights: all except those that a loss scaler skipped.
        self.updates: set[int] = set()
        self.steps: list[Step] = []
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.epochs_s: list[float] = []

    def run(self) -> TrainingResult | None:
        """Train, evaluate and measure; return the result on rank 0 and None on other ranks."""
        diverged: Divergence | None = None
        throughput: Throughput | None = None
        window: Window | None = None
        evaluations: list[tuple[float, float]] = []
        inspected: Inspected | None = None
        split = None
        try:
            with self._count_updates():
                for epoch in range(self.cell.definition.epochs):
                    with self.phases("training"):
                        self._train_epoch(epoch)
                    if self.test_data:
                        with self.phases("evaluation"):
                            begin = time.monotonic()
                            with torch.compiler.set_stance("force_eager"):
                                self.scores.append(self._evaluate(self.test_data))
                            evaluations.append((begin, time.monotonic()))
                with self.phases("inspection"):
                    inspected = self._inspect()
                throughput, window = self._measure()
            if self.cell.measure.profile:
                steps = self._endless_steps()
                with self.phases("profile"):
                    split = profile_steps(self.runtime, lambda: next(steps), self._step)
        except Diverged as error:
            diverged = Divergence(reason=str(error), rank=error.rank)
        steady = (window.begin_s, window.end_s) if window else None
        mine = RankResult(
            node=os.environ.get("SHARDMARK_NODE") or os.uname().nodename,
            pid=os.getpid(),
            steps=self.steps,
            probes=self.probes,
            profile=split,
            steady_monotonic_s=steady,
            torch_memory=window.torch_memory if window else [],
            host=window.host if window else None,
        )
        ranks = self._gather(mine)
        if self.runtime.rank:
            return None
        return TrainingResult(
            diverged=diverged,
            loss=self.losses,
            scores=self.scores,
            epochs_s=self.epochs_s,
            windows=steady
            and Windows(steady_monotonic_s=steady, evaluations_monotonic_s=evaluations),
            throughput=throughput,
            ranks=ranks,
            inspected=inspected,
            environment=torch_environment(
                self.runtime.device, self.runtime.backend, self.cell.packages
            ),
            phases_s=self.phases.so_far(),
            left_at=time.time(),
        )

    @contextmanager
    def _count_updates(self) -> Iterator[None]:
        """Record the steps in which an optimizer steps.

        The hook is global in torch, so it must be removed. It would keep this object alive until
        the interpreter exits, after the process group that the strategy's destructors need is gone.
        """
        hook = register_optimizer_step_post_hook(lambda *_: self.updates.add(self.steps_done))
        try:
            yield
        finally:
            hook.remove()

    def _train_epoch(self, epoch: int) -> None:
        self.strategy.train()
        begin = time.perf_counter()
        clock = StepClock(self.runtime.device)
        losses: list[Tensor] = []
        for micro_batches in self.data.epoch(epoch):
            if self.steps_done == 0:
                # Compilation is lazy. It is all in this step, because evaluation runs uncompiled.
                compiles = self.cell.compilation != "none"
                with self.phases("compilation" if compiles else "first_step"):
                    losses.append(self._step(micro_batches))
                    self.runtime.synchronise()
            else:
                losses.append(self._step(micro_batches))
            clock.mark()
        steps_ms = clock.step_ms()
        self.epochs_s.append(time.perf_counter() - begin)
        self.steps += [("training", epoch, step, ms) for step, ms in enumerate(steps_ms)]
        mine = torch.stack(losses)
        loss = float(self.runtime.sum_over_ranks(mine.mean()).item()) / self.runtime.world_size
        if not math.isfinite(loss):
            raise self._diverged(epoch, loss, mine)
        self.losses.append(loss)
        self._say(f"epoch {epoch + 1}: loss {loss:.4f} in {self.epochs_s[-1]:.2f} s")

    def _diverged(self, epoch: int, loss: float, mine: Tensor) -> Diverged:
        """The exception to raise if the mean loss of an epoch is not finite; a collective.

        Args:
            epoch: the epoch, counted from 0.
            loss: the epoch's mean loss over all ranks.
            mine: this rank's loss of each step, shape (steps,).
        """
        lost = (~mine.isfinite()).nonzero()
        first_lost = self._gather(int(lost[0]) if len(lost) else math.inf)
        step = min(first_lost)
        ranks = [rank for rank, at in enumerate(first_lost) if at == step]
        rank = ranks[0] if len(ranks) == 1 else None
        where = "" if rank is None else f" on rank {rank}"
        when = "" if math.isinf(step) else f"; first{where} at step {step + 1}"
        return Diverged(f"the mean loss of epoch {epoch + 1} is {loss}{when}", rank)

    def _step(self, micro_batches: Sequence[Inputs]) -> Tensor:
        cell = self.cell
        rate = learning_rate_at(cell.definition, cell.gpus, self.steps_done, cell.steps_per_epoch)
        self.strategy.set_learning_rate(rate)
        self.steps_done += 1
        return take_step(self.strategy, micro_batches, self.phases.heart)

    @torch.no_grad()
    def _evaluate(self, test_data: TestData) -> float:
        """The mean score of the test samples.

        It sums scores and samples instead of averaging batches, because the last batch may be
        partial.
        """
        self.strategy.eval()
        # Each replica has its own running statistics; evaluation uses those of replica 0.
        for buffer in self.strategy.module.buffers():
            dist.broadcast(buffer, 0)
        sums = torch.zeros(2, device=self.runtime.device)
        for inputs, counted in test_data:
            self.phases.heart.alive()
            scores = self.strategy.evaluate(inputs)
            sums += torch.stack([(scores * counted).sum(), counted.sum()])
        score, samples = self.runtime.sum_over_ranks(sums).tolist()
        name = self.cell.definition.test_score
        self._say(f"{name} {score / samples:.4f} on {int(samples)} test samples")
        return float(score / samples)

    def _inspect(self) -> Inspected:
        """Observe one more step; if the loss scaler skips it, observe another."""
        self.strategy.train()
        device = self.runtime.device
        # Evaluation leaves parameters gathered, so the first step after it gathers fewer.
        for micro_batches in self.data.epoch(self.cell.definition.epochs, 1):
            self._step(micro_batches)
        for micro_batches in self.data.epoch(self.cell.definition.epochs, MOST_INSPECTED_STEPS):
            observer = StepObserver(device.type)
            # If the compiler meets an observed module, torch 2.11 never runs its graph again.
            with (
                torch.compiler.set_stance("force_eager"),
                observer.watching(self.strategy.module),
            ):
                self._step(micro_batches)
            if observer.optimizer is not None:
                break
        skipped = self.steps_done - len(self.updates)
        settings = effective_config(self.strategy, observer, self.data, skipped)
        cost = cost_of(self.strategy.task.workload)
        inspected = Inspected(
            effective_config=settings,
            flops_per_item=cost.flops_per_item,
            hardware_flops_per_item=cost.hardware_flops_per_item,
            why_uncounted=cost.why_uncounted,
            bytes_per_item=self._bytes_per_item(observer),
            memory=self._model_state(observer, settings, cost),
        )
        if device.type == "cuda":
            # Memory that evaluation and observation left cached is not the training's.
            torch.cuda.empty_cache()
        return inspected

    def _bytes_per_item(self, observer: StepObserver) -> int | None:
        """Operand bytes per item; None if the timed step's operations cannot be observed.

        Replicas in threads cannot be observed. Nor can compiled graphs, because an observed step
        runs uncompiled.
        """
        if len(self.runtime.replicas) > 1 or self.cell.compilation != "none":
            return None
        return observer.operand_bytes // (self.cell.items_per_step // self.cell.gpus)

    def _model_state(
        self, observer: StepObserver, settings: EffectiveConfig, cost: ModelCost
    ) -> Memory:
        """The parameter count, and the bytes of the model's state, predicted and measured."""
        mine = None
        if observer.optimizer is not None:
            mine = held(
                self.strategy.module.parameters(),
                observer.optimizer,
                observer.stepped,
                observer.gradients_bytes,
                observer.gradients_host_bytes,
                observer.device_type,
            )
        at_rest = None
        if self.runtime.device.type == "cuda":
            at_rest = torch.cuda.memory_allocated(self.runtime.device)
        everyone = self._gather((mine, at_rest))
        stage = settings.zero_stage
        each = bytes_each(self.cell.definition.optimizer, self.cell.state_dtype)
        offload = "none"
        if self.runtime.device.type == "cuda":
            offload = self.cell.options.get("offload", "none")
        return Memory(
            parameters=cost.parameters,
            zero_stage=stage,
            predicted=predicted(cost.parameters, stage, settings.shard_ranks or 1, each, offload),
            measured=[state for state, _ in everyone if state],
            at_rest_bytes=[size for _, size in everyone],
        )

    def _measure(self) -> tuple[Throughput, Window]:
        """Measure the steady window; return the cell's throughput and this process's window.

        Raises:
            Diverged: if the loss is not finite at the end of the window.
        """
        self.strategy.train()
        steps = self._endless_steps()
        losses: list[Tensor] = []

        def take() -> None:
            losses[:] = [self._step(next(steps))]

        window = measure_window(self.runtime, self.cell.measure, self.phases, take)
        timed = range(self.steps_done - len(window.steady_ms) + 1, self.steps_done + 1)
        skipped = len(set(timed) - self.updates)
        loss = float(self.runtime.mean_over_ranks(losses[0]).item())
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at the end of the timed window, which goes on after the "
                "training at a constant learning rate; lower the learning rate",
                None,
            )
        for index, ms in enumerate(window.warmup_ms + window.steady_ms):
            epoch, step = divmod(index, self.data.steps_per_epoch)
            phase = "warmup" if index < len(window.warmup_ms) else "steady"
            self.steps.append((phase, self.cell.definition.epochs + epoch, step, ms))
        calls = None
        if self.cell.compilation != "none":
            calls = count_compiled_calls(self.runtime, lambda: self._step(next(steps)))
        everyone = self._gather((window.steady_ms, window.gc_collections, calls, skipped))
        steps_ms = [steps for steps, *_ in everyone]
        summary = summarise_steps(steps_ms, self.cell.items_per_step)
        throughput = Throughput(
            **summary,
            unit=self.cell.definition.unit,
            items_per_s_per_gpu=summary["items_per_s"] / self.cell.gpus,
            warmup_steps=len(window.warmup_ms),
            warmup_converged=window.converged,
            gc_collections=sum(collections for _, collections, *_ in everyone),
            compiled_calls=None if calls is None else min(calls for _, _, calls, _ in everyone),
            skipped_steps=max(skipped for *_, skipped in everyone),
        )
        self._say(f"steady state: {throughput.items_per_s:.1f} {throughput.unit}/s")
        return throughput, window

    def _endless_steps(self) -> Iterator[list[Inputs]]:
        for epoch in itertools.count(self.cell.definition.epochs):
            yield from self.data.epoch(epoch)

    def _gather(self, mine: Any) -> list[Any]:
        """Gather the values of all ranks on every rank."""
        everyone: list[Any] = [None] * self.runtime.world_size
        dist.all_gather_object(everyone, mine)
        return everyone

    def _say(self, line: str) -> None:
        if self.runtime.rank == 0:
            print(f"[{self.cell.title}] {line}", flush=True)
