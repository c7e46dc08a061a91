"""Observes what the processes really do in one training step, whatever their settings are.

A dispatch mode sees every operation and collective of the step. Hooks see every module's output and
every optimizer step. Nothing here knows a strategy. Never use it inside a timed window.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parallel import comm
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shardmark.effective_config import GATHERS, REDUCTIONS, Collective, EffectiveConfig
from shardmark.measurement.model_state import host_bytes, storages
from shardmark.optimizers import GROUP_SETTINGS
from shardmark.training.strategy import Strategy, Task
from shardmark.workload.data import TrainingData

# Parts of the names of c10d's operators, without underscores; the first match counts. Operators
# such as `wait_tensor` move no data and match nothing.
_KINDS = {
    "reducescatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "gather": "gather",
    "scatter": "scatter",
    "reduce": "reduce",
    "send": "send",
    "recv": "receive",
}
# DataParallel's transfers between the devices of its one process; the first argument is the data.
_IN_PROCESS = {
    "broadcast_coalesced": "broadcast",
    "reduce_add_coalesced": "reduce",
    "scatter": "scatter",
    "gather": "gather",
}
# Operators that allocate memory but do not read or write it.
_ALLOCATIONS = ("empty", "newempty")
_SETS = (
    "autocast",
    "compute",
    "normalisation",
    "gather",
    "reduction",
    "gradient",
    "optimizer_state",
    "input_formats",
    "weight_formats",
)


class StepObserver:
    """Observes one optimizer step.

    Args:
        device_type: the device whose autocast is checked, ``cuda`` or ``cpu``.

    Attributes:
        optimizer: the torch optimizer that stepped; None if none did.
        stepped: the parameters that the optimizer updated.
        gradients_bytes: size of the gradients when it stepped, the optimizer's and the module's.
        gradients_host_bytes: those of them that are in host memory, away from the device.
        operand_bytes: bytes that the operations read and wrote, without collectives. Each operand
            of each operation counts once, as if nothing were cached or fused.
        clipping: the norm or value that torch's clipping, or the module's, was called with; 0.0
            without a call.
        recomputed: forward passes of checkpointed modules that the backward pass repeated.
        buffers_broadcast: whether one of the module's buffers was itself broadcast.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self.optimizer: Optimizer | None = None
        self.stepped: list[Tensor] = []
        self.settings: dict[str, Any] = {}
        self.learning_rate: float | None = None
        self.gradients_bytes = self.gradients_host_bytes = 0
        self.operand_bytes = 0
        self.clipping = 0.0
        self.recomputed = 0
        self._checkpointed: set[int] = set()
        self.buffers_broadcast = False
        self.seen: dict[str, set[str]] = {name: set() for name in _SETS}
        self.tf32_matmul = self.tf32_convolution = False
        # By kind, data type and number of ranks.
        self._calls: Counter[tuple[str, str, int | None]] = Counter()
        self._bytes: Counter[tuple[str, str, int | None]] = Counter()
        self._decays: set[float] = set()
        self._parameters: list[nn.Parameter] = []
        # Those whose gradients are counted, by identity.
        self._counted: set[int] = set()
        self._buffers: list[Tensor] = []

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Observe the step that is taken inside; ``module`` is the strategy's."""
        self._parameters = list(module.parameters())
        self._buffers = list(module.buffers())
        with ExitStack() as stack:
            for handle in (
                register_module_forward_pre_hook(self._before_forward),
                register_module_forward_hook(self._after_forward),
                register_optimizer_step_pre_hook(self._before_update),
                register_optimizer_step_post_hook(self._after_update),
            ):
                stack.callback(handle.remove)
            for name, kind in _IN_PROCESS.items():
                stack.enter_context(_observe_calls(comm, name, self._note_in_process, kind))
            # FSDP1 and FairScale have their own clipping, which knows that gradients are sharded.
            for owner in (torch.nn.utils, torch.nn.utils.clip_grad, type(module)):
                for name in ("clip_grad_norm_", "clip_grad_value_"):
                    if not hasattr(owner, name):
                        continue
                    stack.enter_context(_observe_calls(owner, name, self._note_clipping, name))
            stack.enter_context(_Operations(self))
            yield

    def note_collective(self, kind: str, tensors: list[Tensor], ranks: int | None = None) -> None:
        """Count a call that moves these tensors among so many ranks, once per data type.

        Integers, such as batch-norm's counter, are not listed as data types of gathers and
        reductions: they have no precision to lose.
        """
        part = "gather" if kind in GATHERS else "reduction" if kind in REDUCTIONS else None
        for dtype in {tensor.dtype for tensor in tensors}:
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            self._calls[kind, _name(dtype), ranks] += 1
            self._bytes[kind, _name(dtype), ranks] += _nbytes(alike)
            numbers = sum(tensor.numel() for tensor in alike)
            if part and dtype.is_floating_point and numbers > 1:
                self.seen[part].add(_name(dtype))
        if kind == "broadcast":
            self.buffers_broadcast |= any(
                tensor is buffer for tensor in tensors for buffer in self._buffers
            )

    def collectives(self) -> list[Collective]:
        """The collectives that were counted, largest bytes first."""
        return [
            Collective(kind=key[0], dtype=key[1], calls=self._calls[key], bytes=size, ranks=key[2])
            for key, size in self._bytes.most_common()
        ]

    def _note_in_process(self, kind: str, arguments: dict[str, Any]) -> None:
        moved = next(iter(arguments.values()))
        self.note_collective(kind, _tensors(moved[0] if kind == "reduce" else moved))

    def _note_clipping(self, name: str, arguments: dict[str, Any]) -> None:
        self.clipping = float(arguments["max_norm" if "max_norm" in arguments else "clip_value"])

    def _before_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # The wrapper itself runs in the forward pass only, the module in it in both passes.
        if isinstance(module, CheckpointWrapper):
            self._checkpointed |= {id(child) for child in module.children()}
            self.recomputed -= 1
        elif id(module) in self._checkpointed:
            self.recomputed += 1

    def _after_forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if "Norm" in type(module).__name__ and isinstance(output, Tensor):
            self.seen["normalisation"].add(_name(output.dtype))
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            return
        self.seen["compute"].add(_name(output.dtype))
        if torch.is_autocast_enabled(self.device_type):
            self.seen["autocast"].add(_name(torch.get_autocast_dtype(self.device_type)))
        # The newer switches also reflect what the older ones set. The older ones cannot be read
        # once the newer ones were set: torch raises.
        backends: Any = torch.backends
        self.tf32_matmul |= backends.cuda.matmul.fp32_precision == "tf32"
        self.tf32_convolution |= backends.cudnn.conv.fp32_precision == "tf32"
        if isinstance(module, nn.Conv2d):
            self.seen["input_formats"] |= _memory_format(inputs[0])
            self.seen["weight_formats"] |= _memory_format(module.weight)

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Note what the optimizer updates; ZeRO-1 and ZeRO-2 let it step once for each group."""
        self.optimizer = optimizer
        group = optimizer.param_groups[0]
        self.settings = {key: group[key] for key in GROUP_SETTINGS if key in group}
        self._decays |= {float(group["weight_decay"]) for group in optimizer.param_groups}
        decays = sorted(self._decays)
        self.settings["weight_decay"] = decays[0] if len(decays) == 1 else decays
        self.learning_rate = float(group["lr"])
        owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.stepped += owned
        new = [one for one in (*owned, *self._parameters) if id(one) not in self._counted]
        self._counted |= set(map(id, new))
        gradients = [parameter.grad for parameter in new]
        self.seen["gradient"] |= {_name(grad.dtype) for grad in gradients if grad is not None}
        self.gradients_bytes += sum(storages(gradients).values())
        self.gradients_host_bytes += host_bytes(gradients, self.device_type)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # One-element tensors are torch's step counters, which may be on any device.
        state = _tensors(dict(optimizer.state))
        self.seen["optimizer_state"] |= {_name(leaf.dtype) for leaf in state if leaf.numel() > 1}


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports every operator that the process, or autograd on its behalf, calls."""

    def __init__(self, observer: StepObserver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.replace("_", "")
        if func.namespace in ("c10d", "_c10d_functional"):
            kind = next((kind for part, kind in _KINDS.items() if part in name), None)
            moved = [_tensors(part) for part in (*args, output)]
            largest = max(moved, key=_nbytes)
            if kind and largest:
                self._observer.note_collective(kind, largest, _ranks_in((args, kwargs)))
        elif not func.is_view and not name.startswith(_ALLOCATIONS):
            operands = _tensors((args, kwargs, output))
            self._observer.operand_bytes += _nbytes(operands)
        return output


def effective_config(
    strategy: Strategy, observed: StepObserver, data: TrainingData, skipped_steps: int
) -> EffectiveConfig:
    """The settings that a strategy really ran with: those it reports, and those observed.

    A collective: every rank must call it.

    Args:
        strategy: the live strategy.
        observed: the observer of one of its steps.
        data: the training data.
        skipped_steps: optimizer steps that the loss scaler has skipped since the training began.
    """
    module = strategy.module
    reported = strategy.effective_config()
    observations = {
        "gradient_clipping": reported["gradient_clipping"] or observed.clipping,
        "buffers_broadcast": reported["buffers_broadcast"] or observed.buffers_broadcast,
    }
    seen = {name: sorted(values) for name, values in observed.seen.items()}
    return EffectiveConfig(
        **reported | observations,
        optimizer=type(observed.optimizer).__name__ if observed.optimizer else None,
        optimizer_settings=observed.settings,
        learning_rate=observed.learning_rate,
        skipped_steps=skipped_steps,
        autocast=seen["autocast"],
        parameter_dtypes=sorted({_name(parameter.dtype) for parameter in module.parameters()}),
        compute_dtypes=seen["compute"],
        normalisation_dtypes=seen["normalisation"],
        gather_dtypes=seen["gather"],
        reduction_dtypes=seen["reduction"],
        gradient_dtypes=seen["gradient"],
        optimizer_state_dtypes=seen["optimizer_state"],
        tf32_matmul=observed.tf32_matmul,
        tf32_convolution=observed.tf32_convolution,
        input_formats=seen["input_formats"],
        weight_formats=seen["weight_formats"],
        normalisation=sorted(
            {name for name in map(_class_name, module.modules()) if "Norm" in name}
        ),
        buffers_differ_between_ranks=_buffers_differ(module, strategy.device),
        loader=type(data).__name__,
        loader_workers=data.workers // len(data.replicas),
        compiled=any(
            _class_name(part) == "OptimizedModule" or part._compiled_call_impl is not None
            for part in module.modules()
        ),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        **_parameter_counts(strategy.task),
        recomputed_units=observed.recomputed // (strategy.accumulate * len(data.replicas)),
        compiled_graphs=cast(Any, torch._dynamo).utils.counters["stats"]["unique_graphs"],
        collectives=observed.collectives(),
    )


def _class_name(module: nn.Module) -> str:
    """Its class; fully_shard gives a module that it shards a class of its own."""
    return type(module).__name__.removeprefix("FSDP")


def _buffers_differ(module: nn.Module, device: torch.device) -> bool | None:
    """Whether running statistics differ between ranks; None for one rank."""
    if dist.get_world_size() == 1:
        return None
    total = torch.zeros((), dtype=torch.float64, device=device)
    for buffer in module.buffers():
        total += buffer.double().sum()
    extremes = torch.stack([total, -total])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool((extremes[0] != -extremes[1]).item())


def _parameter_counts(task: Task) -> dict[str, Any]:
    """The numbers of parameters that decide what a step must move, before they are sharded."""
    model = task.workload.outline(task.cell.seed)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    units = task.workload.shard_units(model)
    return {
        "unit_parameters": sum(value.numel() for unit in units for value in unit.parameters()),
        "untrained_parameters": sum(sizes[name] for name in task.uses.unused | task.uses.frozen),
        "reused_parameters": sum(sizes[name] for name in task.uses.reused),
    }


@contextmanager
def _observe_calls(
    owner: Any, name: str, note: Callable[[str, dict[str, Any]], None], what: str
) -> Iterator[None]:
    """While inside, pass each call of ``owner.name`` to ``note``, with its named arguments."""
    real = getattr(owner, name)
    signature = inspect.signature(real)

    def observing(*args: Any, **kwargs: Any) -> Any:
        note(what, signature.bind(*args, **kwargs).arguments)
        return real(*args, **kwargs)

    setattr(owner, name, observing)
    try:
        yield
    finally:
        setattr(owner, name, real)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _ranks_in(arguments: Any) -> int | None:
    """The size of the process group among a collective's arguments."""
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, torch.ScriptObject) and "ProcessGroup" in str(leaf._type()):
            return dist.ProcessGroup.unbox(leaf).size()
    return None


def _nbytes(tensors: list[Tensor]) -> int:
    """The bytes of the tensors' elements; of a DTensor, only this rank's elements."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory_format(tensor: Tensor) -> set[str]:
    """The format of a four-dimensional tensor; empty if its shape fits both formats."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    if channels_last == tensor.is_contiguous():
        return set() if channels_last else {"other"}
    return {"channels_last" if channels_last else "contiguous"}
