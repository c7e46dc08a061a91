"""The workload of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shardmark.config.schema import Gpt, LanguageWorkload, Tokens
from shardmark.workload.contract import Contract, Inputs, Rows
from shardmark.workload.language.gpt import Transformer, fill_parameter
from shardmark.workload.language.tokens import synthetic_sequences, text_sequences
from shardmark.workload.materialising import Fill, Materialiser

# Large enough for several tokens of each kind in a batch, small enough to train in seconds.
_SURROGATE = {"layers": 2, "width": 64, "heads": 2, "context": 32, "vocabulary": 128}
_SURROGATE_HEAD_SCALE = 3.0
# The gate trains at most so many blocks of the real model. All blocks are alike, and the oracle,
# which neither shards nor checkpoints, must fit on one GPU.
_MOST_GATE_BLOCKS = 2


class Sequences(NamedTuple):
    """Int64 tokens (b, context), and the token that follows each of them."""

    tokens: Tensor
    targets: Tensor


class Language(Contract[LanguageWorkload]):
    """A model that predicts each next token; a row is a sequence of context + 1 tokens."""

    def build_model(self, seed: int) -> Transformer:
        """The configured transformer."""
        return self._built(self.filler(seed, surrogate=False))

    def filler(self, seed: int, *, surrogate: bool) -> Fill:
        """Fill the transformer's parameters; the surrogate's output layer has larger ones."""
        size = self.definition.model

        def fill(name: str, parameter: Tensor) -> None:
            fill_parameter(parameter, name, size, seed)
            if surrogate and name == ("embedding.weight" if size.tied else "head.weight"):
                parameter.mul_(_SURROGATE_HEAD_SCALE)

        return fill

    def _built(self, fill: Fill) -> Transformer:
        # On meta first: torch's own initial values would cost time and draw from torch's generator.
        with torch.device("meta"):
            model = Transformer(self.definition.model)
        device = torch.get_default_device()
        if device.type != "meta":
            Materialiser(model, fill, device).whole(model)
        return model

    def shard_units(self, model: nn.Module) -> list[nn.Module]:
        """Its blocks; embeddings and output layer belong to no unit, since they may be tied."""
        assert isinstance(model, Transformer)
        return list(model.blocks)

    def rows(self, data_dir: Path, *, train: bool) -> Rows:
        """The sequences of the workload."""
        data, model = self.definition.dataset, self.definition.model
        length = model.context + 1
        if data.file is not None:
            file, held_out = Path(data.file), data.test_sequences
            return (text_sequences(file, data.sequences, length, held_out=held_out, train=train),)
        count = data.sequences if train else data.test_sequences
        return (synthetic_sequences(count, length, model.vocabulary, train=train),)

    def batch(self, rows: Rows, samples: Tensor, keys: Tensor | None) -> Sequences:
        """The sequences as they are, without random changes."""
        sequences = rows[0][samples].long()
        return Sequences(sequences[:, :-1], sequences[:, 1:])

    def example(self, samples: int) -> Sequences:
        """Sequences of token 0."""
        tokens = torch.zeros(samples, self.definition.model.context, dtype=torch.int64)
        return Sequences(tokens, tokens)

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Cross-entropy of each next token."""
        tokens, targets = inputs
        logits = model(tokens).flatten(0, 1)
        return nn.functional.cross_entropy(logits.float(), targets.flatten(), reduction="sum")

    def terms(self, inputs: Inputs) -> int:
        """One per token."""
        return inputs[1].numel()

    def evaluate(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The loss per token of each sequence."""
        tokens, targets = inputs
        logits = model(tokens).flatten(0, 1)
        losses = nn.functional.cross_entropy(logits.float(), targets.flatten(), reduction="none")
        return losses.reshape(targets.shape).mean(dim=1)

    def for_gate(self, samples: int, *, surrogate: bool) -> LanguageWorkload | None:
        """Generated sequences, and the first blocks of the model.

        The surrogate is the model made small, tied if the model is.
        """
        size = self.definition.model
        if surrogate:
            size = Gpt(name="gpt", tied=size.tied, **_SURROGATE)
        else:
            size = size.model_copy(update={"layers": min(size.layers, _MOST_GATE_BLOCKS)})
        return self.definition.model_copy(
            update={"model": size, "dataset": Tokens(name="synthetic_tokens", sequences=samples)}
        )

    def surrogate(self, seed: int) -> nn.Module:
        """A small transformer with large logits.

        They make the gradient's norm exceed any threshold at which a framework might clip.
        """
        return self._built(self.filler(seed, surrogate=True))

    @property
    def surrogate_name(self) -> str:
        """Its sizes."""
        tied = "tied" if self.definition.model.tied else "untied"
        return f"Block x {_SURROGATE['layers']}, narrow, {tied}"
