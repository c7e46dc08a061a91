"""DeepSpeed ZeRO, stages 1, 2 and 3; the last digit of the strategy's name is the stage."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shardmark.launching.rank import main
from shardmark.strategies import NO_BATCHNORM
from shardmark.training.strategy import StateDict, Strategy, Task, unwrap_state
from shardmark.workload.blocks import plain_name
from shardmark.workload.precision import AUTOCAST_DTYPES, cast_floats

if not torch.cuda.is_available():
    # DeepSpeed reads this on import; without it, it looks for a GPU driver.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import (
    groups,
    safe_get_full_fp32_param,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)


class Zero(Strategy):
    """A ZeRO engine around the workload's torch optimizer."""

    module: deepspeed.DeepSpeedEngine

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.stage = int(task.cell.base[-1])
        # On a CPU DeepSpeed would compile a shared-memory all-reduce at its first use. That needs a
        # compiler and takes half a minute, so it uses gloo like the other strategies.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.logger.setLevel("WARNING")
        config = engine_config(task, self.stage)
        # bfloat16 in DeepSpeed's bf16 mode; None if torch's autocast chooses the precision.
        self.low_dtype = task.low_dtype("param_dtype")
        self.autocasts = self.low_dtype is None
        model = _sharded(task, config) if self.stage == 3 else task.build_model()
        if self.low_dtype is not None:
            _refuse_batchnorm(model)
            # DeepSpeed casts no inputs in this mode.
            cast_inputs = functools.partial(cast_floats, self.low_dtype)
            model.register_forward_pre_hook(cast_inputs, with_kwargs=True)
        self.module, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=task.build_optimizer(model),
            config=config,
            dist_init_required=False,
        )
        if self.low_dtype is not None:
            self._set_initial_values()
        if task.cell.compilation == "model":
            self.module.compile(compile_kwargs={"dynamic": False})

    @torch.no_grad()
    def _set_initial_values(self) -> None:
        """Set the optimizer's float32 copy to the initial values that every other strategy has.

        DeepSpeed makes the copy after it has rounded the parameters.
        """
        trained = {
            name: parameter
            for name, parameter in self.module.module.named_parameters()
            if parameter.requires_grad
        }
        for name, value in self._initial_values(trained):
            _set_copy(trained[name], value)

    def _initial_values(self, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and the value with which every other strategy begins."""
        fill, built = self.task.fill, {}
        if fill is None:
            outline = self.task.build_outline()
            built = {plain_name(name): value for name, value in outline.named_parameters()}
        for name, parameter in parameters.items():
            value = torch.empty(getattr(parameter, "ds_shape", parameter.shape), device=self.device)
            if fill is None:
                value.copy_(built[plain_name(name)])
            else:
                fill(plain_name(name), value)
            yield name, value

    def backward(self, loss: Tensor) -> None:
        """Add the gradient; the engine itself divides the loss by the number of micro-batches."""
        self.module.backward(loss)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Call the engine's step after each micro-batch: that is how it counts micro-batches."""
        self.module.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            self.module.step()

    def step(self) -> None:
        """Let the engine step, scale and zero; lower the loss scale here if gradients overflowed.

        Under autocast in float16, DeepSpeed 0.19.8 skips a step whose gradients overflow before it
        reaches torch's scaler (stage_1_and_2.py, stage3.py), so the scale never falls. On two H100,
        all 18 steps of ResNet-50 were skipped and nothing was trained.
        """
        self.module.step()
        scaler = self._scaler()
        if scaler is not None and cast(Any, self.optimizer).overflow:
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())

    def _scaler(self) -> torch.amp.GradScaler | None:
        """The engine's own scaler; it has one only in float16."""
        return getattr(self.optimizer, "torch_autocast_gradscaler", None)

    def accumulation_dtype(self) -> torch.dtype:
        """The one that ZeRO's optimizer adds in."""
        dtype: torch.dtype = cast(Any, self.optimizer).gradient_accumulation_dtype
        return dtype

    def full_state_dict(self) -> StateDict:
        """The full parameters and buffers; only stage 3 has to gather the parameters first.

        In bf16 mode these are the float32 copies that the optimizer trains. The parameters in
        bfloat16 are their rounding.
        """
        network = self.module.module
        parameters = dict(network.named_parameters())
        copies = _float32_copies(parameters) if self.low_dtype else {}
        others = {name: value for name, value in parameters.items() if name not in copies}
        with deepspeed.zero.GatheredParameters(list(others.values()), enabled=self.stage == 3):
            if others and self.low_dtype:
                copies |= self._unrounded(others)
            return unwrap_state(parameters | dict(network.named_buffers()) | copies)

    @torch.no_grad()
    def _unrounded(self, frozen: Mapping[str, Tensor]) -> StateDict:
        """The initial values of the frozen parameters that are still the rounding of these.

        The optimizer has no float32 copy of a frozen parameter.
        """
        return {
            name: value.cpu()
            for name, value in self._initial_values(frozen)
            if torch.equal(value.to(frozen[name].dtype), frozen[name])
        }

    def effective_config(self) -> dict[str, Any]:
        """The settings, read back from the engine."""
        engine = self.module
        zero = engine._config.zero_config
        scaler = self._scaler()
        return super().effective_config() | {
            "gradient_clipping": float(engine.gradient_clipping()),
            "loss_scaler": type(scaler).__name__ if scaler is not None else None,
            "loss_scale": scaler.get_scale() if scaler is not None else None,
            "accumulate": engine.gradient_accumulation_steps(),
            "zero_stage": engine.zero_optimization_stage(),
            "shard_ranks": dist.get_world_size(cast(Any, self.optimizer).dp_process_group),
            "own": {
                "zero_optimizer": type(self.optimizer).__name__,
                "autocast": str(engine.torch_autocast_dtype())
                if engine.torch_autocast_enabled()
                else "none",
                "offload": [
                    name
                    for name in ("offload_optimizer", "offload_param")
                    if (part := getattr(zero, name)) and part.device != "none"
                ],
                "secondary_partition_ranks": zero.zero_hpz_partition_size,
                "overlap_comm": zero.overlap_comm,
                # Stage 3 has no such setting.
                "checks_gradient_overflow": getattr(self.optimizer, "check_grad_overflow", None),
                "reduce_bucket_elements": zero.reduce_bucket_size,
                "parameter_persistence_threshold": (
                    zero.param_persistence_threshold if self.stage == 3 else None
                ),
            },
        }


def _refuse_batchnorm(model: nn.Module) -> None:
    """Refuse a user's own network with batch-norm, which planning could not know.

    Raises:
        NotImplementedError: if the network has batch-norm. Gate and cell then fail with this
            reason, and the matrix goes on.
    """
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        raise NotImplementedError(NO_BATCHNORM)


def _float32_copies(parameters: Mapping[str, Tensor]) -> StateDict:
    """The optimizer's float32 copies, gathered one by one; a collective."""
    return {
        name: copy.cpu()
        for name, parameter in parameters.items()
        if (copy := safe_get_full_fp32_param(parameter)) is not None
    }


def _set_copy(parameter: Any, value: Tensor) -> None:
    """Set the optimizer's float32 copy of a parameter, or this rank's shard of it, to a value."""
    if not hasattr(parameter, "ds_tensor"):
        # DeepSpeed's function does nothing, and says nothing, for a parameter without a copy.
        assert hasattr(parameter, "_hp_mapping")
        safe_set_full_fp32_param(parameter, value)
        return
    # DeepSpeed's function for whole values fails where the last shard is padded.
    size, group = parameter.ds_tensor.numel(), parameter.ds_process_group
    padded = value.new_zeros(size * dist.get_world_size(group))
    padded[: value.numel()] = value.flatten()
    safe_set_local_fp32_param(parameter, padded[size * dist.get_rank(group) :][:size])


def _sharded(task: Task, config: dict[str, Any]) -> nn.Module:
    """The network, each unit sharded as soon as it has its values."""
    model = task.build_outline()
    materialiser = task.materialiser(model)
    size = config["zero_optimization"].get("zero_hpz_partition_size")
    group = _group_of(size) if size else None
    low = task.low_dtype("param_dtype")
    for unit in (*task.shard_units(model), model):
        materialiser.whole(unit)
        if low is not None:
            # zero.Init does so only for modules that it builds itself.
            for parameter in unit.parameters():
                parameter.data = parameter.data.to(low)
        deepspeed.zero.Init(
            module=unit,
            config_dict_or_path=config,
            zero_param_parallel_group=group,
        )
    return model


def _group_of(size: int) -> Any:
    """This rank's group of so many neighbours; DeepSpeed refuses to make it twice in a process."""
    if groups._get_zero_param_intra_parallel_group() is None:
        deepspeed.init_distributed()
        groups._create_zero_param_parallel_group(size)
    return groups._get_zero_param_intra_parallel_group()


def engine_config(task: Task, stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration, with every setting that would change the training set explicitly.

    Clipping defaults to 1.0 since DeepSpeed 0.19.3. Within its forward pass, the engine replaces
    autocast by its own, which reduces the gradients of convolutions and linear layers in the low
    precision unless ``lower_precision_safe_modules`` is empty. Stage 3 replaces torch's linear
    layer with its own, whose backward pass rounds differently under autocast: with it, the first
    update was off by 2.6e-4 on an H200, while every other strategy matched the oracle bit for bit.

    DeepSpeed 0.19.8 has no reduce-scatter in stages 1 and 2: with its defaults and with every
    option here, they average gradients by all-reduce.
    """
    cell, options = task.cell, task.cell.options
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": options["reduce_bucket_size"],
        "memory_efficient_linear": options["memory_efficient_linear"],
    }
    if options["overlap_comm"] is not None:
        zero["overlap_comm"] = options["overlap_comm"]
    if options["offload"] != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if options["offload"] == "all":
        zero["offload_param"] = {"device": "cpu"}
    if cell.groups.reshard < cell.gpus:
        zero["zero_hpz_partition_size"] = cell.groups.reshard
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": cell.micro_batch_size,
        "gradient_accumulation_steps": cell.definition.batch.accumulate,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if options["gradient_clipping"] is not None:
        clip_norm = options["gradient_clipping"] or cell.definition.optimizer.clip_norm
        config["gradient_clipping"] = clip_norm or 0.0
    if task.low_dtype("param_dtype") is not None:
        config["bf16"] = {"enabled": True}
    elif task.precision in AUTOCAST_DTYPES:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[task.precision]
        config["torch_autocast"] = {"enabled": True, "dtype": dtype}
        if not options["low_precision_communication"]:
            config["torch_autocast"]["lower_precision_safe_modules"] = []
    return config


if __name__ == "__main__":
    main(Zero)
