"""Random numbers that depend on the sample they are for, not on the rank that draws them.

Augmentation and dropout are drawn per sample from a key made of (seed, epoch, sample index). So a
sample gets the same crop, flip and mask on any rank and with any number of ranks.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

# splitmix64's increment and multipliers (Steele, Lea and Flood, "Fast splittable pseudorandom
# number generators", OOPSLA 2014), as signed 64-bit integers: torch has no unsigned arithmetic.
INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch shifts signed integers arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Apply splitmix64's finaliser elementwise to int64."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


def sample_keys(seed: int, epoch: int, samples: Tensor) -> Tensor:
    """One int64 key per sample, with the shape and device of ``samples`` (int64 indices)."""
    return mix(samples * INCREMENT + _base(seed, epoch))


@functools.cache
def _base(seed: int, epoch: int) -> int:
    stream = torch.tensor([seed, epoch], dtype=torch.int64) + 1
    return int(mix(mix(stream[0] * INCREMENT) + stream[1] * INCREMENT))


def draw(keys: Tensor, purpose: int) -> Tensor:
    """Draw one uniform int64 in [0, 2**32) per key; each ``purpose`` has independent numbers."""
    step = (purpose + 1) * 0x632BE59BD9B4E019
    wrapped = (step + (1 << 63)) % (1 << 64) - (1 << 63)
    return _shift_right(mix(keys + wrapped), 32)


class Keyed(nn.Module):
    """A layer that draws what it drops from the keys of the batch's samples.

    Args:
        rate: probability that a feature, or the branch, is set to zero.
        layer: number of the layer in its model, so that layers draw independent masks.
    """

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.rate = rate
        self.layer = layer
        self.keys: Tensor | None = None


class KeyedDropout(Keyed):
    """Dropout of single features."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, ...) to the same shape; the identity in evaluation."""
        if not self.training or not self.rate:
            return x
        assert self.keys is not None, "Classifier.forward hands the keys down"
        features = torch.arange(x[0].numel(), device=x.device).reshape(1, *x.shape[1:])
        keys = self.keys.reshape(-1, *([1] * (x.dim() - 1)))
        kept = draw(mix(keys + features * INCREMENT), self.layer) >= round(self.rate * 2**32)
        return x * kept / (1 - self.rate)


class KeyedStochasticDepth(Keyed):
    """Stochastic depth per sample (torchvision's mode ``row``)."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, ...) to the same shape; the identity in evaluation."""
        if not self.training or not self.rate:
            return x
        assert self.keys is not None, "Classifier.forward hands the keys down"
        kept = draw(self.keys, self.layer) >= round(self.rate * 2**32)
        return x * kept.reshape(-1, *([1] * (x.dim() - 1))) / (1 - self.rate)
