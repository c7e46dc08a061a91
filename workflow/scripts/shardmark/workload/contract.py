"""The contract of a workload: the only part that training, gate, inspection and FLOP count use.

Planning needs no torch and knows the other half, the workload's definition in the configuration
(config/schema.py): its unit, the items of a sample, the number of samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from shardmark.config.schema import Workload
from shardmark.workload.materialising import Fill

# Every tensor has one entry per sample in its first dimension, so that DataParallel can split them.
Inputs = tuple[Tensor, ...]
Rows = tuple[Tensor, ...]
Definition = TypeVar("Definition", bound=Workload)


class Contract(ABC, Generic[Definition]):
    """What is trained.

    Everything about a sample follows from its index and its key, so that every strategy and GPU
    count trains on the same samples.

    Args:
        definition: the workload's section of the configuration.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    @abstractmethod
    def build_model(self, seed: int) -> nn.Module:
        """Build the network in float32; its weights depend only on ``seed``.

        torch's default device decides where, so that the meta device needs no memory.
        """

    def filler(self, seed: int, *, surrogate: bool) -> Fill | None:
        """What fills each parameter of the network alone, with the values of ``build_model``.

        Then strategies build the network on the meta device and fill one block at a time. Values
        must not depend on the device, and the network must have no buffers.

        Args:
            seed: the seed of the weights.
            surrogate: whether the network is the surrogate or the real one.

        Returns:
            None if the workload can only build all weights together.
        """
        return None

    @abstractmethod
    def shard_units(self, model: nn.Module) -> list[nn.Module]:
        """The network's blocks, in forward order."""

    @abstractmethod
    def rows(self, data_dir: Path, *, train: bool) -> Rows:
        """All samples on the CPU, one row each in every tensor.

        Raises:
            UserError: if they cannot be read.
        """

    @abstractmethod
    def batch(self, rows: Rows, samples: Tensor, keys: Tensor | None) -> Inputs:
        """Make a batch on the rows' device.

        Args:
            rows: all samples, or a part of them.
            samples: which rows to take, int64 (b,).
            keys: random keys of these samples, int64 (b,); None in evaluation, which draws nothing.
        """

    @abstractmethod
    def example(self, samples: int) -> Inputs:
        """A batch of the right shapes on torch's default device, to count FLOPs without data."""

    @abstractmethod
    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The sum of the losses of a batch: float32, shape ().

        It is a sum, because a mean over the means of ranks would give more weight to the terms of
        ranks that have fewer.
        """

    @abstractmethod
    def terms(self, inputs: Inputs) -> int | Tensor:
        """The number of terms in that sum, or their total weight.

        It is known before the forward pass, because the first micro-batch of a step must already be
        divided by the terms of all micro-batches.

        Returns:
            an int if it is the same for equal batch sizes. If it depends on the samples, a tensor
            of shape () on their device; then each step begins with an all-reduce of one number.
        """

    def evaluate(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The score of each test sample, float32 (b,); needed if there are test samples.

        The definition's ``test_score`` says what it is: an accuracy, or a mean loss per item.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has test samples but no evaluate method; define it, or set "
            "dataset.test_samples to 0"
        )

    @abstractmethod
    def for_gate(self, samples: int, *, surrogate: bool) -> Definition | None:
        """The definition that the parity gate trains: generated data, few samples.

        Args:
            samples: number of training samples.
            surrogate: whether the model is the surrogate or the real one.

        Returns:
            None if the real model is as small as the surrogate, so that the gate need not train it.
        """

    def surrogate(self, seed: int) -> nn.Module:
        """Build the gate's small model, from a definition that ``for_gate`` made."""
        return self.build_model(seed)

    def outline(self, seed: int, *, surrogate: bool = False) -> nn.Module:
        """The network on the meta device: its names and shapes, without memory for values."""
        with torch.device("meta"):
            return self.surrogate(seed) if surrogate else self.build_model(seed)

    @property
    @abstractmethod
    def surrogate_name(self) -> str:
        """A description of the surrogate, in words."""

    def without_collectives(self) -> Contract[Any]:
        """The same workload with a model that computes alone, to count its parameters and FLOPs."""
        return self
