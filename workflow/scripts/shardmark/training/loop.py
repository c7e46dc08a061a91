"""The one training loop. It does not know which strategy it drives."""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

from shardmark.cells import Cell
from shardmark.effective_config import EffectiveConfig
from shardmark.measurement.clocks import Phases, StepClock
from shardmark.measurement.environment import torch_environment
from shardmark.measurement.model_cost import ModelCost, cost_of
from shardmark.measurement.model_state import float32_bytes, held, predicted
from shardmark.measurement.steady_state import is_stationary, summarise_steps
from shardmark.measurement.step_split import DATA, STEP, split_of
from shardmark.processes.heartbeat import Heartbeat
from shardmark.training.inspection import StepObserver, effective_config
from shardmark.training.probe import probe, uuid_of
from shardmark.training.runtime import Runtime, start_runtime
from shardmark.training.strategy import Strategy, Task
from shardmark.workload.data import Batch, TestData, TrainingData, load_images, training_data
from shardmark.workload.models import build_model, shard_units
from shardmark.workload.optimizers import build_optimizer, learning_rate_at, peak_learning_rate
from shardmark.workload.precision import set_math_mode

StrategyClass = Callable[[Task], Strategy]
# At most; one is enough but where the loss scaler leaves out a step.
INSPECTED_STEPS = 4
# A profiler's first steps are slow.
UNTRACED_STEPS = 2
PROFILED_STEPS = 5
# Factor on the number of steps estimated to fill a window, so that faster ones still fill it.
WINDOW_MARGIN = 1.1


def make_task(
    cell: Cell, runtime: Runtime, build: Callable[[Any, int], nn.Module] = build_model
) -> Task:
    """The task a strategy is given: the cell's model and optimizer, to be distributed."""
    workload = cell.definition
    rate = peak_learning_rate(workload, cell.gpus)
    return Task(
        cell=cell,
        runtime=runtime,
        build_model=lambda: build(workload, cell.seed),
        build_optimizer=lambda params: build_optimizer(params, workload.optimizer, rate),
        shard_units=lambda model: shard_units(model, workload),
    )


def take_step(strategy: Strategy, micro_batches: Sequence[Batch], heart: Heartbeat) -> Tensor:
    """One optimizer step; returns this process's mean loss before the update, on the device."""
    heart.step()
    total = torch.zeros((), device=micro_batches[0].images.device)
    for index, batch in enumerate(micro_batches):
        with strategy.micro_batch(last=index == len(micro_batches) - 1):
            logits = strategy.forward(batch)
            loss = nn.functional.cross_entropy(logits.float(), batch.labels)
            # A rank that hangs before it reduces is a beat behind those that wait for it.
            heart.alive()
            strategy.backward(loss)
        total += loss.detach()
    strategy.step()
    return total / len(micro_batches)


def steps_to_fill(missing_s: float, step_s: float) -> int:
    """Steps that fill what is missing of a window, and some more; 0 where nothing is."""
    return max(2, math.ceil(WINDOW_MARGIN * missing_s / step_s)) if missing_s > 0 else 0


class Step(NamedTuple):
    """One timed step: its phase (training, warmup or steady), epoch, step of it, time in ms."""

    phase: str
    epoch: int
    step: int
    ms: float


class Diverged(Exception):
    """The loss is no number any more."""


class CellTraining:
    """One rank's training and measurement of a cell.

    Args:
        strategy: builds the strategy from its task.
        cell: what to train.
        phases: takes the time of each phase.
    """

    def __init__(self, strategy: StrategyClass, cell: Cell, phases: Phases) -> None:
        self.cell, self.phases = cell, phases
        workload = cell.definition
        with phases("process_group"):
            self.runtime = start_runtime(cell)
        set_math_mode(workload.precision)
        with phases("probe"):
            self.probes = probe(self.runtime, workload.precision)
            if self.runtime.device.type == "cuda":
                torch.cuda.empty_cache()
        # Shapes never change, so cuDNN's search for the fastest kernels pays in the warm-up.
        torch.backends.cudnn.benchmark = True
        with phases("data"):
            data_dir = Path(cell.data_dir)
            self.data: TrainingData = training_data(
                load_images(workload, data_dir, train=True),
                workload,
                cell.seed,
                replicas=self.runtime.replicas,
                replica_count=cell.gpus,
                per_replica=cell.per_gpu_batch_size,
                device=self.runtime.device,
            )
            self.test_data = TestData(
                load_images(workload, data_dir, train=False),
                workload,
                rank=self.runtime.rank,
                world_size=self.runtime.world_size,
                batch_size=cell.micro_batch_size * len(self.runtime.replicas),
                device=self.runtime.device,
            )
        with phases("build"):
            self.strategy = strategy(make_task(cell, self.runtime))
            self.runtime.synchronise()
        self.steps_done = 0
        # The steps that updated weights: all but those that a loss scaler left out.
        self.updates: set[int] = set()
        self.steps: list[Step] = []
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.epochs_s: list[float] = []

    def run(self) -> dict[str, Any] | None:
        """Train, evaluate, measure; rank 0 returns the result."""
        diverged = None
        throughput: dict[str, Any] | None = None
        window: dict[str, Any] = {}
        windows: dict[str, Any] | None = None
        evaluations: list[tuple[float, float]] = []
        inspected: dict[str, Any] = {}
        split = None
        try:
            with self._counting_updates():
                for epoch in range(self.cell.definition.epochs):
                    with self.phases("training"):
                        self._train_epoch(epoch)
                    with self.phases("evaluation"):
                        begin = time.monotonic()
                        self.accuracies.append(self._evaluate())
                        evaluations.append((begin, time.monotonic()))
                with self.phases("inspection"):
                    inspected = self._inspect()
            throughput, window = self._measure()
            windows = {
                "steady_monotonic_s": (window["begin_monotonic_s"], window["end_monotonic_s"]),
                "evaluations_monotonic_s": evaluations,
            }
            if self.cell.measure.profile:
                with self.phases("profile"):
                    split = self._profile()
        except Diverged as error:
            diverged = str(error)
        probes = [one.model_dump() for one in self.probes]
        mine = (
            window
            | self._place()
            | {
                "steps": self.steps,
                "probes": probes,
                "profile": split,
            }
        )
        ranks = self._gather(mine)
        if self.runtime.rank:
            return None
        return {
            "diverged": diverged,
            "loss": self.losses,
            "accuracy": self.accuracies,
            "epochs_s": self.epochs_s,
            "windows": windows,
            "throughput": throughput,
            "ranks": ranks,
            "inspected": inspected,
            "environment": torch_environment(self.runtime.device, self.runtime.backend),
            "phases_s": self.phases.so_far(),
            "left_at": time.time(),
        }

    @contextmanager
    def _counting_updates(self) -> Iterator[None]:
        """Note the steps in which an optimizer steps.

        The hook is torch's own and global: left there, it would keep the whole training alive until
        the interpreter ends, past the process group that the strategy's destructors want.
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
        total = torch.zeros((), device=self.runtime.device)
        for micro_batches in self.data.epoch(epoch):
            if self.steps_done == 0:
                with self.phases("first_step"):
                    total += self._step(micro_batches)
                    self.runtime.synchronise()
            else:
                total += self._step(micro_batches)
            clock.mark()
        steps_ms = clock.step_ms()
        self.epochs_s.append(time.perf_counter() - begin)
        self.steps += [Step("training", epoch, step, ms) for step, ms in enumerate(steps_ms)]
        world = self.runtime.world_size
        loss = float(self.runtime.sum_over_ranks(total).item()) / (world * self.data.steps)
        if not math.isfinite(loss):
            raise Diverged(f"the mean loss of epoch {epoch + 1} is {loss}")
        self.losses.append(loss)
        self._say(f"epoch {epoch + 1}: loss {loss:.4f} in {self.epochs_s[-1]:.2f} s")

    def _step(self, micro_batches: Sequence[Batch]) -> Tensor:
        workload, cell = self.cell.definition, self.cell
        rate = learning_rate_at(workload, cell.gpus, self.steps_done, cell.steps_per_epoch)
        self.strategy.set_learning_rate(rate)
        self.steps_done += 1
        return take_step(self.strategy, micro_batches, self.phases.heart)

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Accuracy over the test images; sums and counts, since the last batch is ragged."""
        self.strategy.eval()
        # Each replica kept its own running statistics; replica 0's evaluate.
        for buffer in self.strategy.module.buffers():
            dist.broadcast(buffer, 0)
        right = torch.zeros(2, device=self.runtime.device)
        for batch, counted in self.test_data:
            self.phases.heart.alive()
            hits = self.strategy.forward(batch).argmax(dim=1) == batch.labels
            right += torch.stack([(hits & counted).sum(), counted.sum()])
        correct, images = self.runtime.sum_over_ranks(right).tolist()
        self._say(f"accuracy {correct / images:.4f} on {int(images)} test images")
        return float(correct / images)

    def _inspect(self) -> dict[str, Any]:
        """What one more step shows; another one where the loss scaler left that out."""
        self.strategy.train()
        device = self.runtime.device
        for micro_batches in self.data.epoch(self.cell.definition.epochs, INSPECTED_STEPS):
            observer = StepObserver(device.type)
            with observer.watching(self.strategy.module):
                self._step(micro_batches)
            if observer.optimizer is not None:
                break
        skipped = self.steps_done - len(self.updates)
        settings = effective_config(self.strategy, observer, self.data, skipped)
        cost = cost_of(self.cell.definition)
        found = {
            "effective_config": settings.model_dump(),
            "flops_per_image": cost.flops_per_image,
            "bytes_per_image": self._bytes_per_image(observer),
            "memory": self._model_state(observer, settings, cost),
        }
        if device.type == "cuda":
            # What evaluation and observation left behind is not the training's memory.
            torch.cuda.empty_cache()
        return found

    def _bytes_per_image(self, observer: StepObserver) -> int | None:
        """Operand bytes of an image; None where replicas run in threads that cannot be seen."""
        if len(self.runtime.replicas) > 1:
            return None
        return observer.operand_bytes // self.cell.per_gpu_batch_size

    def _model_state(
        self, observer: StepObserver, settings: EffectiveConfig, cost: ModelCost
    ) -> dict[str, Any]:
        """Fields of Memory."""
        mine = None
        if observer.optimizer is not None:
            parameters = self.strategy.module.parameters()
            mine = held(parameters, observer.optimizer, observer.gradients_bytes)
        at_rest = None
        if self.runtime.device.type == "cuda":
            at_rest = torch.cuda.memory_allocated(self.runtime.device)
        everyone = self._gather((mine and mine.model_dump(), at_rest))
        stage, each = settings.zero_stage, float32_bytes(settings.optimizer_settings)
        return {
            "parameters": cost.parameters,
            "zero_stage": stage,
            "predicted": predicted(cost.parameters, stage, self.cell.processes, each).model_dump(),
            "measured": [state for state, _ in everyone if state],
            "at_rest_bytes": [size for _, size in everyone],
        }

    def _measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Time a window of uninterrupted steps, after a warm-up whose end the step times show."""
        self.strategy.train()
        steps = self._endless_steps()
        with self.phases("warmup"):
            warmup, stationary = self._warm_up(steps)
        with self.phases("steady"):
            window, steady = self._steady_state(steps, warmup)
        for index, ms in enumerate(warmup + steady):
            epoch, step = divmod(index, self.data.steps)
            phase = "warmup" if index < len(warmup) else "steady"
            self.steps.append(Step(phase, self.cell.definition.epochs + epoch, step, ms))
        throughput = summarise_steps(self._gather(steady), self.cell.global_batch_size) | {
            "window_complete": window["end_monotonic_s"] - window["begin_monotonic_s"]
            >= self.cell.measure.steady_s,
            "warmup_steps": len(warmup),
            "warmup_converged": stationary,
        }
        self._say(f"steady state: {throughput['images_per_s']:.1f} images/s")
        return throughput, window

    def _warm_up(self, steps: Iterator[list[Batch]]) -> tuple[list[float], bool]:
        """The times of the steps until they are stationary, and whether they became so, ms."""
        settings = self.cell.measure
        warmup: list[float] = []
        stationary = False
        while not stationary and len(warmup) < settings.warmup_max_steps:
            part = max(settings.warmup_min_steps, len(warmup))
            part = min(part, settings.warmup_max_steps - len(warmup))
            warmup += self._timed(steps, part)
            stationary = bool(self.runtime.rank0_decides(float(is_stationary(warmup))))
        return warmup, stationary

    def _steady_state(
        self, steps: Iterator[list[Batch]], warmup: Sequence[float]
    ) -> tuple[dict[str, Any], list[float]]:
        """This process's window on the monotonic clock, its memory, and its steps' times, ms."""
        settings = self.cell.measure
        # A fast step, not a typical one, and some more of them: the window is to be at least as
        # long as asked for, and every rank must take as many steps.
        recent = sorted(warmup[-settings.warmup_min_steps :])
        step_s = recent[len(recent) // 10] / 1000
        count = int(self.runtime.rank0_decides(steps_to_fill(settings.steady_s, step_s)))
        if self.runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        dist.barrier()
        self.runtime.synchronise()
        clock = StepClock(self.runtime.device)
        begin = time.monotonic()
        while count:
            self._take(steps, clock, count)
            steps_ms = clock.step_ms()
            end = time.monotonic()
            # Where steps became faster the window goes on; the device waits for the decision, and
            # the step after it is that much longer.
            more = steps_to_fill(settings.steady_s - (end - begin), (end - begin) / len(steps_ms))
            count = int(self.runtime.rank0_decides(more))
        window = {"begin_monotonic_s": begin, "end_monotonic_s": end}
        return window | self._torch_memory(), steps_ms

    def _endless_steps(self) -> Iterator[list[Batch]]:
        for epoch in itertools.count(self.cell.definition.epochs):
            yield from self.data.epoch(epoch)

    def _timed(self, steps: Iterator[list[Batch]], count: int) -> list[float]:
        clock = StepClock(self.runtime.device)
        self._take(steps, clock, count)
        return clock.step_ms()

    def _take(self, steps: Iterator[list[Batch]], clock: StepClock, count: int) -> None:
        for _ in range(count):
            self._step(next(steps))
            clock.mark()

    def _gather(self, mine: Any) -> list[Any]:
        """What every rank has, on every rank."""
        everyone: list[Any] = [None] * self.runtime.world_size
        dist.all_gather_object(everyone, mine)
        return everyone

    def _place(self) -> dict[str, Any]:
        """Where this process runs."""
        node = os.environ.get("SHARDMARK_NODE") or os.uname().nodename
        return {"node": node, "pid": os.getpid()}

    def _profile(self) -> dict[str, Any]:
        """Where the time of a few more steps goes."""
        activities = [ProfilerActivity.CPU]
        if self.runtime.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        steps = self._endless_steps()
        dist.barrier()
        with profile(activities=activities) as profiler:
            for index in range(UNTRACED_STEPS + PROFILED_STEPS):
                if index <= UNTRACED_STEPS:
                    self.runtime.synchronise()
                name = STEP if index >= UNTRACED_STEPS else "warm-up"
                with record_function(name):
                    with record_function(DATA):
                        micro_batches = next(steps)
                    self._step(micro_batches)
            self.runtime.synchronise()
        with tempfile.TemporaryDirectory(prefix="shardmark-") as folder:
            trace = Path(folder, "trace.json")
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        return split_of(events, self.runtime.rank).model_dump()

    def _torch_memory(self) -> dict[str, Any]:
        """Peaks of torch's allocator by device index, bytes, since the window began."""
        if self.runtime.device.type != "cuda":
            return {"torch_memory": {}}
        mine = self.runtime.device.index
        devices = self.runtime.replicas if len(self.runtime.replicas) > 1 else [mine]
        return {
            "torch_memory": {
                str(device): {
                    "uuid": uuid_of(torch.device("cuda", device)),
                    "allocated": torch.cuda.max_memory_allocated(device),
                    "reserved": torch.cuda.max_memory_reserved(device),
                }
                for device in devices
            }
        }

    def _say(self, line: str) -> None:
        if self.runtime.rank == 0:
            print(f"[{self.cell.title}] {line}", flush=True)
