"""The interface between the training loop and a strategy; the loop never asks which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shardmark.cells import Cell
from shardmark.training.cpu_norms import precise_norms
from shardmark.training.runtime import Runtime
from shardmark.workload.blocks import plain_name
from shardmark.workload.contract import Contract, Inputs
from shardmark.workload.materialising import Fill, Materialiser
from shardmark.workload.parameter_uses import ParameterUses, parameter_uses
from shardmark.workload.precision import AUTOCAST_DTYPES, autocast, grad_scaler

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """The model and optimizer that a strategy distributes.

    Attributes:
        cell: the cell, with the strategy's options.
        runtime: this process.
        workload: what is trained.
        build_outline: builds the network, whose blocks are already checkpointed and compiled if the
            workload asks for it. Its parameters have no values yet if the workload can fill them
            one by one; else they are on the CPU, with the same values on every rank.
        fill: fills them; None if they have their values.
        build_optimizer: builds the workload's optimizer for a network, sharded or not.
        shard_units: returns the modules of a built network that are gathered one by one.
        surrogate: whether the network is the workload's surrogate.
    """

    cell: Cell
    runtime: Runtime
    workload: Contract[Any]
    build_outline: Callable[[], nn.Module]
    fill: Fill | None
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    shard_units: Callable[[nn.Module], list[nn.Module]]
    surrogate: bool

    @cached_property
    def uses(self) -> ParameterUses:
        """The parameters that the network shares, leaves out or does not train.

        Lazy, because most strategies need not know, and it takes a forward and a backward pass.
        """
        return parameter_uses(self.workload, surrogate=self.surrogate)

    def materialiser(self, outline: nn.Module) -> Materialiser:
        """What puts the parts of the outline on this process's device, with their values."""
        return Materialiser(outline, self.fill, self.runtime.device)

    def build_model(self) -> nn.Module:
        """Build the whole network on this process's device."""
        outline = self.build_outline()
        return self.materialiser(outline).whole(outline)

    @property
    def options(self) -> Mapping[str, Any]:
        """``options`` of a strategy of the user's own, in the configuration."""
        options: Mapping[str, Any] = self.cell.options["options"]
        return options

    @property
    def precision(self) -> str:
        """The workload's precision."""
        return self.cell.definition.precision

    def low_dtype(self, option: str) -> torch.dtype | None:
        """The low precision that an option of the strategy sets; None for float32.

        The parity gate also trains in float32, where every option is float32 too.
        """
        if self.precision not in AUTOCAST_DTYPES:
            return None
        return AUTOCAST_DTYPES.get(self.cell.options[option])


class Strategy(ABC):
    """One way to distribute the training.

    The constructor of a subclass builds ``optimizer``, and ``module``, which the workload calls
    like its network. A subclass overrides the methods for which its framework differs from plain
    torch.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    # True if a user's own strategy cannot be checked on a CPU before its jobs are queued.
    needs_gpus = False
    # False if the framework's own mixed precision replaces autocast.
    autocasts = True

    def __init__(self, task: Task) -> None:
        self.task = task
        self.device = task.runtime.device
        self.accumulate = task.cell.definition.batch.accumulate
        self.scaler: Any = grad_scaler(task.precision, self.device)

    def forward(self, inputs: Inputs) -> Tensor:
        """Compute the sum of the losses of this process's samples."""
        with self.autocast():
            return self.task.workload.loss(self.module, inputs)

    def evaluate(self, inputs: Inputs) -> Tensor:
        """Compute the score of each of this process's test samples."""
        with self.autocast():
            return self.task.workload.evaluate(self.module, inputs)

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast region of a forward pass."""
        return autocast(self.task.precision if self.autocasts else "fp32", self.device.type)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's mean loss to the step's gradient."""
        self.scaler.scale(loss / self.accumulate).backward()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Wrap the forward and backward of one micro-batch.

        A subclass overrides this where its ranks can reduce in the last micro-batch alone; this one
        reduces in every one.
        """
        return nullcontext()

    def step(self) -> None:
        """Clip the accumulated gradient, if the workload asks for it, apply it and clear it."""
        clip_norm = self.task.cell.definition.optimizer.clip_norm
        if clip_norm is not None:
            # The norm is that of the true gradient, not of the scaled one.
            self.scaler.unscale_(self.optimizer)
            with precise_norms(next(self.module.parameters()).device):
                self.clip(clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def clip(self, norm: float) -> None:
        """Scale the gradient of all parameters down to this norm, if its norm is larger."""
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), norm)

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def train(self) -> None:
        """Switch to training: dropout draws, batch-norm uses the batch."""
        self.module.train()

    def eval(self) -> None:
        """Switch to evaluation: batch-norm uses the running statistics."""
        self.module.eval()

    def accumulation_dtype(self) -> torch.dtype:
        """The type in which the gradients of micro-batches are added: that of the parameters."""
        return next(self.module.parameters()).dtype

    @abstractmethod
    def full_state_dict(self) -> StateDict:
        """Unsharded CPU tensors under the network's own names, on rank 0; a collective."""

    def effective_config(self) -> dict[str, Any]:
        """The settings that the framework really uses, read back from its live objects.

        These are the fields of EffectiveConfig that observing a step cannot provide. Settings that
        no other strategy has are under ``own``.
        """
        return {
            "wrapper": type(self.module).__name__,
            "gradient_clipping": 0.0,
            "loss_scaler": type(self.scaler).__name__ if self.scaler.is_enabled() else None,
            "loss_scale": self.scaler.get_scale() if self.scaler.is_enabled() else None,
            "accumulate": self.accumulate,
            "accumulation_dtype": (
                _name(self.accumulation_dtype()) if self.accumulate > 1 else None
            ),
            "zero_stage": 0,
            "shard_ranks": 1,
            "sharded_units": None,
            "bucket_bytes": None,
            "buffers_broadcast": False,
            "own": {},
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def unwrap_state(state: StateDict, prefix: str = "module.") -> StateDict:
    """Copy the tensors to the CPU and remove from their names what wrappers add."""
    return {
        plain_name(name.removeprefix(prefix)): tensor.detach().to("cpu", copy=True)
        for name, tensor in state.items()
    }
