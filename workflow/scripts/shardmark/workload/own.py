"""A training of the user's own: the base class that its file subclasses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shardmark.config.schema import OwnWorkload
from shardmark.errors import UserError
from shardmark.own_file import call_own, load_class
from shardmark.workload.contract import Contract, Inputs, Rows

# Rows that are kept to make an example batch from, which repeats them.
_EXAMPLES = 16


class Training(Contract[OwnWorkload]):
    """The base class of the user's own training. A file defines one subclass of it.

    Attributes:
        options: ``options`` of the workload's section in the configuration.
        small_options: options that make the model small enough for the parity gate to train it in
            seconds; None if the model is that small already.
    """

    small_options: ClassVar[Mapping[str, Any] | None] = None

    def __init__(self, definition: OwnWorkload) -> None:
        super().__init__(definition)
        self.options: Mapping[str, Any] = definition.options
        self._first_rows: Rows | None = None

    @abstractmethod
    def load(self, *, train: bool) -> Tensor | Rows:
        """All samples on the CPU: one tensor or several, with one row per sample in each.

        Args:
            train: whether to load the training samples or the test samples.
        """

    def rows(self, data_dir: Path, *, train: bool) -> Rows:
        """As many samples as the configuration says."""
        data = self.definition.dataset
        loaded = self.load(train=train)
        rows = (loaded,) if isinstance(loaded, Tensor) else loaded
        several = isinstance(rows, tuple | list) and len(rows) > 0
        if not several or not all(isinstance(part, Tensor) and part.ndim for part in rows):
            raise UserError(
                f"{self.definition.file}: load(train={train}) returned a {type(loaded).__name__}; "
                "expected a tensor, or a tuple of tensors, with one row per sample"
            )
        wanted = data.samples if train else data.test_samples
        fewest = min(map(len, rows))
        if fewest < wanted:
            key = "samples" if train else "test_samples"
            raise UserError(
                f"{self.definition.file}: load(train={train}) returned {fewest} samples, and "
                f"dataset.{key} is {wanted}"
            )
        if train:
            self._first_rows = tuple(part[: min(wanted, _EXAMPLES)].clone() for part in rows)
        return tuple(part[:wanted] for part in rows)

    def outline(self, seed: int, *, surrogate: bool = False) -> nn.Module:
        """On the CPU if the network needs values while it is built, for instance by ``.item()``."""
        try:
            return super().outline(seed, surrogate=surrogate)
        except Exception:
            return self.build_model(seed)

    def batch(self, rows: Rows, samples: Tensor, keys: Tensor | None) -> Inputs:
        """The rows themselves."""
        return tuple(part[samples] for part in rows)

    def terms(self, inputs: Inputs) -> int | Tensor:
        """One per item."""
        return len(inputs[0]) * self.definition.items_per_sample

    def example(self, samples: int) -> Inputs:
        """The first rows, without their values on the meta device."""
        device = torch.get_default_device()
        with torch.device("cpu"):
            # Loading all samples again may take long.
            rows = self._first_rows or self.rows(Path(), train=True)
            inputs = self.batch(rows, torch.arange(samples) % len(rows[0]), None)
        return tuple(part.to(device) for part in inputs)

    def for_gate(self, samples: int, *, surrogate: bool) -> OwnWorkload | None:
        """The same samples, fewer; the surrogate has the small options."""
        if not surrogate and self.small_options is None:
            return None
        definition = self.definition
        small = dict(self.small_options or {}) if surrogate else {}
        data = {"samples": min(samples, definition.dataset.samples), "test_samples": 0}
        return definition.model_copy(
            update={
                "options": definition.options | small,
                "dataset": definition.dataset.model_copy(update=data),
            }
        )

    @property
    def surrogate_name(self) -> str:
        """The model itself, or its small options."""
        if self.small_options is None:
            return "the model itself"
        return ", ".join(f"{name} {value}" for name, value in self.small_options.items())


def load_training(definition: OwnWorkload) -> Training:
    """Make the training that a file defines.

    Raises:
        UserError: if the file does not define one, or its constructor fails.
    """
    kind = load_class(definition.file, Training)  # type: ignore[type-abstract]
    return call_own(definition.file, kind.__name__, lambda: kind(definition))
