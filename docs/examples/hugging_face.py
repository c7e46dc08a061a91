"""A Hugging Face causal language model of your own size, with random weights.

docs/examples/hugging_face.yaml runs it. It needs transformers, which ``make installed`` installs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from shardmark.workload.contract import Inputs
from shardmark.workload.own import Training


class CausalLanguageModel(Training):
    """Predicts each next token of sequences that count in steps of their own."""

    # The parity gate trains a model of this size.
    small_options: ClassVar[dict[str, int]] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }

    def build_model(self, seed: int) -> nn.Module:
        """The model that the options describe."""
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**self.options, use_cache=False))

    def shard_units(self, model: nn.Module) -> list[nn.Module]:
        """Its layers."""
        return list(model.model.layers)

    def load(self, *, train: bool) -> Tensor:
        """Sequences of tokens, int64 (samples, tokens + 1)."""
        generator = torch.Generator().manual_seed(0 if train else 1)
        data, vocabulary = self.definition.dataset, self.options["vocab_size"]
        first = torch.randint(vocabulary, (data.samples, 1), generator=generator)
        step = torch.randint(1, 8, (data.samples, 1), generator=generator)
        return (first + step * torch.arange(data.items_per_sample + 1)) % vocabulary

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The sum of the losses of all next tokens."""
        (tokens,) = inputs
        logits = model(input_ids=tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")
