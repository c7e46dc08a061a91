"""Checks of a strategy of the user's own: one process, one step on the CPU, before any job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shardmark.cells import ParityCase
from shardmark.errors import UserError
from shardmark.measurement.clocks import Phases
from shardmark.own_file import call_own, load_class
from shardmark.parity.cases import surrogate_cell
from shardmark.training.inspection import StepObserver, effective_config
from shardmark.training.loop import make_task, take_step
from shardmark.training.runtime import Runtime
from shardmark.training.strategy import Strategy, Task
from shardmark.workload.built_in import make_workload
from shardmark.workload.data import training_data

Result = TypeVar("Result")


def check_strategy(case: ParityCase, *, device: str) -> str:
    """Check a strategy of the user's own with the parity gate's small model.

    The parity gate checks that its ranks train the same model.

    Args:
        case: a case of one rank.
        device: the device of the cells.

    Returns:
        what was checked, in words.

    Raises:
        UserError: with the first mistake: the function, what it did, and what is expected.
    """
    file = case.cell.options["file"]
    kind = load_class(file, Strategy)  # type: ignore[type-abstract]
    if not kind.needs_gpus:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            _Check(file, kind, case).run()
        finally:
            dist.destroy_process_group()
        return "checked in one step"
    if device == "cpu":
        raise UserError(f"{file}: {kind.__name__} needs GPUs, and cluster.device is cpu")
    return "loaded; the rest needs GPUs"


class _Check:
    def __init__(self, file: str, kind: type[Strategy], case: ParityCase) -> None:
        self.file, self.kind = file, kind
        cell = surrogate_cell(case, "fp32")
        self.cell = cell.model_copy(update={"device": "cpu"})
        self.workload = make_workload(cell.definition)
        self.runtime = Runtime(
            rank=0,
            world_size=1,
            replicas=range(1),
            device=torch.device("cpu"),
            backend="gloo",
            shared_device=False,
        )

    def run(self) -> None:
        name, cell = self.kind.__name__, self.cell
        task = make_task(cell, self.runtime, self.workload, surrogate=True)
        strategy: Strategy = self._call(f"{name}(task)", lambda: self.kind(task))
        module = getattr(strategy, "module", None)
        if not isinstance(module, nn.Module):
            self._refuse(
                f"{name}(task)",
                f"left self.module as a {type(module).__name__}",
                "the network, or what the framework wraps it in",
            )
        optimizer = getattr(strategy, "optimizer", None)
        if not hasattr(optimizer, "param_groups"):
            self._refuse(
                f"{name}(task)",
                f"left self.optimizer as a {type(optimizer).__name__}",
                "an optimizer",
            )
        before = self._weights(strategy, task)
        data = training_data(
            self.workload,
            self.workload.rows(Path(cell.data_dir), train=True),
            cell.seed,
            replicas=self.runtime.replicas,
            replica_count=1,
            per_replica=cell.per_gpu_batch_size,
            device=self.runtime.device,
        )
        strategy.train()
        strategy.set_learning_rate(cell.definition.optimizer.learning_rate)
        observer = StepObserver("cpu")
        with observer.watching(strategy.module):
            micro_batches = next(iter(data.epoch(0)))
            self._call("a step", lambda: take_step(strategy, micro_batches, Phases().heart))
        after = self._weights(strategy, task)
        if all(torch.equal(before[name], after[name]) for name in before):
            self._refuse("a step", "changed no weight", "the optimizer's update")
        self._call("effective_config", lambda: effective_config(strategy, observer, data, 0))

    def _weights(self, strategy: Strategy, task: Task) -> dict[str, Tensor]:
        weights = self._call("full_state_dict", strategy.full_state_dict)
        if not isinstance(weights, dict):
            self._refuse("full_state_dict", f"returned a {type(weights).__name__}", "a dict")
        outline = task.workload.outline(self.cell.seed, surrogate=True)
        for name, parameter in outline.named_parameters():
            value = weights.get(name)
            if not isinstance(value, Tensor):
                self._refuse(
                    "full_state_dict",
                    f"returned no tensor {name}, but {', '.join(list(weights)[:3])}, ...",
                    "the network's own names; unwrap_state from shardmark.training.strategy "
                    "removes what wrappers add",
                )
            if value.shape != parameter.shape:
                self._refuse(
                    "full_state_dict",
                    f"returned {name} in shape {tuple(value.shape)}",
                    f"the whole parameter, {tuple(parameter.shape)}",
                )
        return {name: value.clone() for name, value in weights.items()}

    def _call(self, name: str, work: Callable[[], Result]) -> Result:
        return call_own(self.file, name, work)

    def _refuse(self, name: str, what: str, expected: str) -> NoReturn:
        raise UserError(f"{self.file}: {name} {what}; expected {expected}")
