"""Checks of a training of the user's own: one batch on the CPU, and errors in the user's terms."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from shardmark.config.schema import OwnWorkload
from shardmark.errors import UserError
from shardmark.own_file import call_own
from shardmark.workload.contract import Inputs, Rows
from shardmark.workload.keyed_random import sample_keys
from shardmark.workload.own import Training, load_training
from shardmark.workload.parameter_uses import ParameterUses, parameter_uses

SAMPLES = 2
SEED = 0
# Samples whose terms are compared.
LOOKED_AT = 16
# Samples that take longer to load are loaded once only.
LONGEST_LOAD_S = 10.0
# Sums in another order differ by rounding; a mean instead of a sum by a factor of two.
TOLERANCE = 1e-3

_HIDDEN = (
    "there is no model{part} here, because strategies wrap the network: call model(...), which "
    "runs its forward method, and no other part of it"
)

Result = TypeVar("Result")


def check_training(definition: OwnWorkload) -> list[str]:
    """Check the training on one batch, with its small model if it has one.

    Returns:
        what was found, one sentence per line.

    Raises:
        UserError: with the first mistake: the function, what it returned, and what is expected.
    """
    training = load_training(definition)
    small = training.for_gate(definition.dataset.samples, surrogate=True)
    assert small is not None
    return _Check(definition.file, load_training(small), training).run()


class _Wrapped(nn.Module):
    """A network as strategies hand it to ``loss``: it can be called, and its parts are hidden."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the network itself returns."""
        return self.module(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(_HIDDEN.format(part=f".{name}")) from None

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(_HIDDEN.format(part=f"[{index!r}]"))


class _Check:
    """The checks of one file; each says what it found, or raises."""

    def __init__(self, file: str, training: Training, whole: Training) -> None:
        self.file, self.training, self.whole = file, training, whole

    def run(self) -> list[str]:
        lines = self._describe_small_options()
        model = self._check_model()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        how = "" if self.training.small_options is None else " with small_options"
        lines.append(f"build_model{how}: {parameters:,} parameters, the same for the same seed.")
        units = self._check_units(model)
        lines.append(f"shard_units: {len(units)} units.")
        rows = self._check_rows(self.training, train=True)
        lines.append(f"load: {len(rows[0]):,} training samples.")
        inputs = self._check_batch(rows)
        loss = self._check_loss(model, rows, inputs)
        terms = self._check_terms(rows, inputs)
        lines.append(f"loss: {loss / terms:.4g} per term, {terms:g} terms in {SAMPLES} samples.")
        uses = parameter_uses(self.training)
        self._check_whole(uses)
        lines += self._describe(uses)
        tests = self.whole.definition.test_samples
        if tests:
            small = self.training.definition
            dataset = small.dataset.model_copy(update={"test_samples": tests})
            tested = load_training(small.model_copy(update={"dataset": dataset}))
            self._check_scores(model, self._check_rows(tested, train=False))
            lines.append("evaluate: one score per sample.")
        return [*lines, "checked on one batch"]

    def _describe_small_options(self) -> list[str]:
        """Name the keys that no option has: a misspelt one leaves the model large."""
        options = list(self.whole.options)
        return [
            f"small_options sets {name!r}, which options lacks{_question(name, options) or '.'}"
            for name in self.training.small_options or {}
            if name not in options
        ]

    def _check_model(self) -> nn.Module:
        model = self._call("build_model", lambda: self.training.build_model(SEED))
        self._expect("build_model", model, nn.Module, "a torch.nn.Module")
        again = self._call("build_model", lambda: self.training.build_model(SEED))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            self._refuse("build_model", "a model without parameters to train", "some")
        others = dict(again.named_parameters())
        for name, mine in model.named_parameters():
            if mine.dtype != torch.float32:
                self._refuse(
                    "build_model",
                    f"parameter {name} in {_dtype(mine)}",
                    "float32; the configuration's precision decides in what it computes",
                )
            if mine.device.type != "cpu":
                self._refuse(
                    "build_model", f"parameter {name} on {mine.device}", "torch's default device"
                )
            if name not in others or not torch.equal(mine, others[name]):
                self._refuse(
                    "build_model",
                    f"other weights at the second call with the same seed (parameter {name})",
                    "the same: call torch.manual_seed(seed) first",
                )
        return model.train()

    def _check_whole(self, small: ParameterUses) -> None:
        """Build the whole model, and compute its loss without values where the small one can."""
        if self.training.small_options is None:
            return
        whole = self._call("build_model, whole model", lambda: parameter_uses(self.whole))
        if whole.why_unknown is not None and small.why_unknown is None:
            raise UserError(
                f"{self.file}: the whole model cannot compute a loss, although its small version "
                f"can: {whole.why_unknown}; compare options with small_options"
            )

    def _describe(self, uses: ParameterUses) -> list[str]:
        lines = [
            f"parameters that are {kind}: {len(names)}, among them {min(names)}."
            for kind, names in uses.kinds.items()
        ]
        if uses.why_unknown is not None:
            lines.append(
                "parameters that are unused or reused: unknown, because the model does not run "
                f"without values ({uses.why_unknown}). If it branches on its data, ranks may run "
                "different collectives; FSDP and ZeRO-3 then fail or hang."
            )
        return lines

    def _check_units(self, model: nn.Module) -> list[nn.Module]:
        units = self._call("shard_units", lambda: self.training.shard_units(model))
        self._expect("shard_units", units, list, "a list of modules, such as list(model.blocks)")
        there = {id(module): name for name, module in model.named_modules()}
        for index, unit in enumerate(units):
            self._expect(f"shard_units, element {index}", unit, nn.Module, "a module of the model")
            if id(unit) not in there:
                self._refuse(
                    "shard_units",
                    f"element {index}, a {type(unit).__name__} that is not in the model",
                    "modules of the model",
                )
            if unit is model:
                self._refuse("shard_units", "the model itself", "blocks inside it")
        inside = {id(part): there[id(unit)] for unit in units for part in list(unit.modules())[1:]}
        for unit in units:
            if id(unit) in inside:
                self._refuse(
                    "shard_units",
                    f"{there[id(unit)]}, which is inside {inside[id(unit)]}",
                    "units that do not overlap",
                )
        if len({id(unit) for unit in units}) < len(units):
            self._refuse("shard_units", "a unit twice", "each unit once")
        return units

    def _check_rows(self, training: Training, *, train: bool) -> Rows:
        begin = time.monotonic()
        rows = self._call("load", lambda: training.rows(Path(), train=train))
        for part in rows:
            if part.device.type != "cpu":
                self._refuse("load", f"a tensor on {part.device}", "tensors on the CPU")
        if time.monotonic() - begin < LONGEST_LOAD_S:
            again = self._call("load", lambda: training.rows(Path(), train=train))
            if not all(map(_same, rows, again)):
                self._refuse(
                    "load",
                    "other samples at the second call",
                    "the same in every process, for instance from a torch.Generator with a fixed "
                    "seed",
                )
        return rows

    def _check_batch(self, rows: Rows, samples: Sequence[int] = range(SAMPLES)) -> Inputs:
        chosen = torch.tensor(list(samples))
        keys = sample_keys(SEED, 0, chosen)
        inputs = self._call("batch", lambda: self.training.batch(rows, chosen, keys))
        self._expect("batch", inputs, tuple, "a tuple of tensors")
        for index, part in enumerate(inputs):
            self._expect(f"batch, element {index}", part, Tensor, "a tensor")
            if part.ndim == 0 or len(part) != len(chosen):
                self._refuse(
                    "batch",
                    f"a tensor of shape {tuple(part.shape)} for {len(chosen)} samples",
                    "one entry per sample in the first dimension",
                )
            if part.device.type != "cpu":
                self._refuse(
                    "batch",
                    f"a tensor on {part.device}",
                    f"the device of the rows, {rows[0].device}",
                )
        return inputs

    def _check_loss(self, model: nn.Module, rows: Rows, inputs: Inputs) -> float:
        loss = self._loss(model, inputs)
        if self._loss(model, inputs).item() != loss.item():
            self._refuse(
                "loss",
                "another value at the second call with the same batch",
                "the same. Set dropout to 0, or draw it from the samples' keys: strategies would "
                "draw different numbers, and no longer train the same model",
            )
        self._call("loss, backward pass", loss.backward)
        if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
            alone = sum(
                self._loss(model, self._check_batch(rows, [sample])).item()
                for sample in range(SAMPLES)
            )
            if not math.isclose(alone, loss.item(), rel_tol=TOLERANCE):
                self._refuse(
                    "loss",
                    f"{loss.item():.6g} for {SAMPLES} samples together, and {alone:.6g} as the sum "
                    "over samples one by one",
                    'the sum over samples, not the mean: reduction="sum"',
                )
        return loss.item()

    def _loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        loss = self._call("loss", lambda: self.training.loss(_Wrapped(model), inputs))
        self._expect("loss", loss, Tensor, "a tensor")
        if loss.shape != ():
            self._refuse("loss", f"a tensor of shape {tuple(loss.shape)}", "shape (): one number")
        if not loss.requires_grad:
            self._refuse("loss", "a value without a gradient", "one that is computed by the model")
        if not torch.isfinite(loss):
            self._refuse("loss", f"{loss.item()}", "a finite number")
        return loss

    def _check_terms(self, rows: Rows, inputs: Inputs) -> float:
        terms = self._terms(inputs)
        if not terms > 0 or math.isinf(terms):
            self._refuse(
                "terms",
                f"{terms:g} for samples 0 and 1",
                "how many terms the loss is the sum of, more than 0",
            )
        alone = sum(self._terms(self._check_batch(rows, [sample])) for sample in range(SAMPLES))
        if not math.isclose(alone, terms, rel_tol=TOLERANCE):
            self._refuse(
                "terms",
                f"{terms:g} for {SAMPLES} samples together, and {alone:g} as the sum over samples "
                "one by one",
                "the sum over samples, as in the loss",
            )
        if isinstance(terms, int):
            self._check_equal_terms(rows, terms)
        return terms

    def _check_equal_terms(self, rows: Rows, terms: int) -> None:
        """Check that an integer does not depend on the samples: no step adds it up over ranks."""
        for first in range(SAMPLES, min(len(rows[0]), LOOKED_AT) - SAMPLES + 1, SAMPLES):
            samples = range(first, first + SAMPLES)
            others = self._terms(self._check_batch(rows, samples))
            if others != terms:
                self._refuse(
                    "terms",
                    f"the integer {terms} for samples 0 and 1, and {others} for samples {first} "
                    f"and {first + 1}",
                    "the same for equal batch sizes, or a tensor of shape () if the number depends "
                    "on the samples: without .item() or int()",
                )

    def _terms(self, inputs: Inputs) -> int | float:
        """The terms of a batch; a float if they are a tensor."""
        terms = self._call("terms", lambda: self.training.terms(inputs))
        if not isinstance(terms, Tensor):
            self._expect("terms", terms, int, "an integer, or a tensor of shape ()")
            return terms
        if terms.shape != ():
            self._refuse("terms", f"a tensor of shape {tuple(terms.shape)}", "shape ()")
        if terms.dtype in (torch.bool, torch.float16, torch.bfloat16) or terms.is_complex():
            self._refuse("terms", f"a tensor in {_dtype(terms)}", "int64 or float32")
        if self._ignores_device(inputs):
            self._refuse("terms", "a tensor on the CPU for any inputs", "one on the inputs' device")
        return float(terms)

    def _ignores_device(self, inputs: Inputs) -> bool:
        """Whether the terms are on the CPU although the inputs are elsewhere."""
        try:
            terms = self.training.terms(tuple(part.to("meta") for part in inputs))
        except Exception:
            return False  # the meta device has no values, which the function may need
        return isinstance(terms, Tensor) and terms.device.type != "meta"

    def _check_scores(self, model: nn.Module, rows: Rows) -> None:
        samples = torch.arange(min(SAMPLES, len(rows[0])))
        inputs = self._call("batch", lambda: self.training.batch(rows, samples, None))
        with torch.no_grad():
            wrapped = _Wrapped(model).eval()
            scores = self._call("evaluate", lambda: self.training.evaluate(wrapped, inputs))
        self._expect("evaluate", scores, Tensor, "a tensor")
        if scores.shape != samples.shape:
            self._refuse(
                "evaluate",
                f"a tensor of shape {tuple(scores.shape)} for {len(samples)} samples",
                "one score per sample",
            )
        beyond = scores[~((scores >= 0) & (scores <= 1))]
        if self.whole.definition.test_score == "accuracy" and len(beyond):
            self._refuse(
                "evaluate",
                f"the score {beyond[0].item():g}",
                "an accuracy of 0 to 1 per sample; or set dataset.test_score to loss",
            )

    def _call(self, name: str, work: Callable[[], Result]) -> Result:
        try:
            return call_own(self.file, name, work)
        except UserError as error:
            hint = self._hint(name, error.__cause__)
            raise UserError(f"{error}{hint}") from error.__cause__

    def _hint(self, name: str, cause: BaseException | None) -> str:
        """Return what may help with an exception of the user's code; empty if nothing is known."""
        names = list(self.whole.options)
        key = cause.args[0] if isinstance(cause, KeyError) and cause.args else None
        if isinstance(key, str) and key not in names:
            return f" (self.options has: {', '.join(names) or 'nothing'}{_question(key, names)})"
        if "Found no NVIDIA driver" in str(cause) or "not compiled with CUDA" in str(cause):
            return " (inputs and model are on one device already, so move neither)"
        small = self.training.small_options is not None and "whole model" not in name
        if isinstance(cause, RuntimeError) and small:
            return " (this is the small model, with small_options)"
        return ""

    def _expect(self, name: str, value: object, kind: type, words: str) -> None:
        if not isinstance(value, kind) or isinstance(value, bool):
            self._refuse(name, f"a {type(value).__name__}", words)

    def _refuse(self, name: str, what: str, expected: str) -> NoReturn:
        raise UserError(f"{self.file}: {name} returned {what}; expected {expected}")


def _question(name: str, options: Sequence[str]) -> str:
    """Return a question that names the option with a similar name, if there is one."""
    similar = difflib.get_close_matches(name, options, n=1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
