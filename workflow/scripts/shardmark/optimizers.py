"""The optimizers: their section of the configuration, and one record for each.

A login node plans a matrix with these records, so this module must not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from shardmark.config.values import Flag, Number, Section

OptimizerName = Literal["sgd", "adam", "adamw"]
Beta = Annotated[Number, Field(ge=0, lt=1)]


class Optimizer(Section):
    """The torch optimizer that every strategy uses."""

    name: OptimizerName = Field("sgd", description="An optimizer of torch.optim.")
    learning_rate: Annotated[Number, Field(gt=0)] = Field(description="Peak learning rate.")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of sgd.")
    nesterov: Flag = Field(False, description="Whether sgd uses Nesterov momentum.")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(
        0.0,
        description="Weight decay: sgd and adam add it to the gradient, adamw applies it "
        "separately.",
    )
    decay: Literal["all", "matrices"] = Field(
        "all",
        description="Parameters that weight_decay applies to: all, or those of two or more "
        "dimensions (matrices), so neither norms nor biases.",
    )
    clip_norm: Annotated[Number, Field(gt=0)] | None = Field(
        None,
        description="Largest norm of the gradient of all parameters together: a larger gradient "
        "is scaled down to it. null clips nothing.",
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="Betas of adam and adamw.")
    eps: Annotated[Number, Field(gt=0)] = Field(1e-8, description="Epsilon of adam and adamw.")
    fused: Flag = Field(
        False,
        description="Whether torch updates all parameters in one kernel. Its default needs another "
        "4 bytes per parameter during the step.",
    )


@dataclass(frozen=True)
class OptimizerRecord:
    """Everything that is specific to one optimizer.

    Attributes:
        torch_name: its class in ``torch.optim``.
        settings: keys of the workload's ``optimizer`` section that it takes, besides the learning
            rate.
        defaults: further settings of its parameter group, with the values that they must have.
        state_numbers: how many numbers it keeps per parameter.
        largest_gate_rate: largest learning rate in the parity gate. A larger rate amplifies
            rounding until the oracle's own noise hides the errors that the gate looks for.
    """

    torch_name: str
    settings: tuple[str, ...]
    state_numbers: Callable[[Optimizer], int]
    largest_gate_rate: float
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the keyword arguments of its class, without the learning rate."""
        settings = {name: getattr(optimizer, name) for name in self.settings}
        if settings.get("fused") is False:
            # To torch, False means a loop over parameters; None lets it choose its fastest one.
            settings["fused"] = None
        return settings

    def group_settings(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return what its parameter groups must contain, without parameters and learning rate.

        If the groups differ in their weight decay, it is a list.
        """
        settings = {**self.defaults, **self.arguments(optimizer)}
        if optimizer.decay == "matrices" and optimizer.weight_decay:
            settings["weight_decay"] = [0.0, optimizer.weight_decay]
        return settings


_ADAM_SETTINGS = ("betas", "eps", "weight_decay")

OPTIMIZERS: dict[OptimizerName, OptimizerRecord] = {
    "sgd": OptimizerRecord(
        torch_name="SGD",
        settings=("momentum", "nesterov", "weight_decay", "fused"),
        defaults={"dampening": 0},
        state_numbers=lambda optimizer: int(optimizer.momentum > 0),
        largest_gate_rate=0.02,
    ),
    "adam": OptimizerRecord(
        torch_name="Adam",
        settings=(*_ADAM_SETTINGS, "fused"),
        defaults={"amsgrad": False},
        state_numbers=lambda optimizer: 2,
        largest_gate_rate=1e-3,
    ),
    "adamw": OptimizerRecord(
        torch_name="AdamW",
        settings=(*_ADAM_SETTINGS, "fused"),
        defaults={"amsgrad": False},
        state_numbers=lambda optimizer: 2,
        largest_gate_rate=1e-3,
    ),
}
# Every setting that any optimizer's parameter group has.
GROUP_SETTINGS = tuple(
    dict.fromkeys(
        name for record in OPTIMIZERS.values() for name in (*record.settings, *record.defaults)
    )
)
