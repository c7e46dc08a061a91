"""A decoder-only transformer: GPT-2's layout with pre-norm blocks and learned positions."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from shardmark.config.schema import Gpt
from shardmark.workload.keyed_random import INCREMENT, mix

# Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and its code: a
# standard deviation of 0.02. For layers that write to the residual stream it is divided by the root
# of the number of such layers.
STD = 0.02
# Values drawn at a time, an even number. On a CPU: few enough for its cache, enough for several
# threads. On a GPU: few launches (a dozen for each part), in about 100 MB.
_PART_ON_CPU = 2**17
_PART_ON_GPU = 2**22


class Block(nn.Module):
    """Causal attention and a feed-forward network of four times the width, each after its norm.

    Args:
        width: features of a token.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward_in = nn.Linear(width, 4 * width)
        self.feed_forward_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, tokens, width) to the same shape."""
        x = x + self.attention_out(self._attend(self.attention_in(self.attention_norm(x))))
        hidden = functional.gelu(self.feed_forward_in(self.feed_forward_norm(x)))
        out: Tensor = x + self.feed_forward_out(hidden)
        return out

    def _attend(self, projected: Tensor) -> Tensor:
        """Shape (batch, tokens, 3 * width) to (batch, tokens, width)."""
        split = projected.view(*projected.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """The language model: embedding, blocks and output layer.

    Args:
        size: its sizes, and whether its embedding is tied to its output.
    """

    def __init__(self, size: Gpt) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.layers)])
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        if size.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits (batch, tokens, vocabulary) of int64 tokens (batch, tokens)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def fill_parameter(parameter: Tensor, name: str, size: Gpt, seed: int) -> None:
    """Set the initial values of one parameter.

    A value depends only on the seed, the parameter's name and its place in the parameter: not on
    the order of construction, and not on the device.

    Args:
        parameter: the whole parameter.
        name: its name in the model.
        size: the sizes of the model.
        seed: the cell's seed.
    """
    if "norm." in name:
        parameter.fill_(float(name.endswith("weight")))
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        residual = name.endswith("_out.weight")
        std = STD / math.sqrt(2 * size.layers) if residual else STD
        _fill_uniform(parameter, std, seed, name)


def _fill_uniform(parameter: Tensor, std: float, seed: int, name: str) -> None:
    """Fill with uniform numbers between -b and b; b = sqrt(3) std gives the standard deviation.

    Normal numbers need functions that round differently on each device; these do not. splitmix64
    starts from a hash of the seed and the name, and each of its outputs makes two numbers.
    """
    begin = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], signed=True)
    flat = parameter.view(-1)
    size = _PART_ON_GPU if parameter.is_cuda else _PART_ON_CPU
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        counter = torch.arange(start // 2, (start + len(part) + 1) // 2, device=part.device)
        bits = mix(counter * INCREMENT + begin).view(torch.int32)[: len(part)]
        part.copy_(bits.float() * (math.sqrt(3) * std / 2**31))
