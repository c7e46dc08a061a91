"""A training of the user's own: the base class of its file, and how the file is loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shardmark.config.schema import OwnWorkload
from shardmark.errors import UserError
from shardmark.workload.contract import Contract, Inputs, Rows


class Training(Contract[OwnWorkload]):
    """The base class of a training of one's own. A file defines one subclass of it.

    Attributes:
        options: ``options`` of the workload's section in the configuration.
        small_options: options that make the model small enough for the parity gate to train it in
            seconds; None if the model is that small already.
    """

    small_options: ClassVar[Mapping[str, Any] | None] = None

    def __init__(self, definition: OwnWorkload) -> None:
        super().__init__(definition)
        self.options: Mapping[str, Any] = definition.options

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
        rows = (loaded,) if isinstance(loaded, Tensor) else tuple(loaded)
        wanted = data.samples if train else data.test_samples
        fewest = min(map(len, rows), default=0)
        if fewest < wanted:
            key = "samples" if train else "test_samples"
            raise UserError(
                f"{self.definition.file}: load(train={train}) returned {fewest} samples, and "
                f"dataset.{key} is {wanted}"
            )
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

    def terms(self, inputs: Inputs) -> int:
        """One per item."""
        return len(inputs[0]) * self.definition.items_per_sample

    def example(self, samples: int) -> Inputs:
        """The first rows, without their values on the meta device."""
        device = torch.get_default_device()
        with torch.device("cpu"):
            rows = self.rows(Path(), train=True)
            inputs = self.batch(rows, torch.arange(samples), None)
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
        UserError: if the file cannot be run, or does not define one training.
    """
    module = _run(Path(definition.file))
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Training)
        and kind.__module__ == module.__name__
    ]
    if len(own) != 1:
        names = ", ".join(kind.__name__ for kind in own) or "none"
        raise UserError(
            f"{definition.file}: must define one subclass of shardmark.workload.own.Training; it "
            f"defines {names}"
        )
    (kind,) = own
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(f"{definition.file}: {kind.__name__} lacks {', '.join(missing)}")
    try:
        return kind(definition)
    except Exception as error:
        raise UserError(describe_failure(definition.file, kind.__name__, error)) from error


def _run(path: Path) -> ModuleType:
    name = f"shardmark_own_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file can import what is beside it
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(describe_failure(str(path), "the file", error)) from error
    return module


def describe_failure(file: str, what: str, error: Exception) -> str:
    """What the user's own code raised, with its line."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == Path(file).name
    ]
    where = f"line {own[-1].lineno}: " if own else ""
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}: "
    return f"{file}: {where}{what} raised {type(error).__name__}: {error}"
