"""Sequences of tokens: generated ones, and the bytes of a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shardmark.errors import UserError

# Different successors of a token in a generated sequence.
SUCCESSORS = 4


def synthetic_sequences(count: int, length: int, vocabulary: int) -> Tensor:
    """Generate learnable sequences, int32 (count, length).

    Each token has four possible successors, the same in all sequences; a sequence takes one of them
    at random. A model that learns them reaches a loss of ln 4 = 1.39 per token, whatever the
    vocabulary.

    Args:
        count: number of sequences.
        length: tokens per sequence.
        vocabulary: number of different tokens.
    """
    numbers = np.random.default_rng(20_240_229)
    successors = numbers.integers(vocabulary, size=(vocabulary, SUCCESSORS), dtype=np.int32)
    choices = numbers.integers(SUCCESSORS, size=(length, count), dtype=np.int8)
    sequences = np.empty((length, count), dtype=np.int32)
    sequences[0] = numbers.integers(vocabulary, size=count)
    for place in range(1, length):
        sequences[place] = successors[sequences[place - 1], choices[place]]
    return torch.from_numpy(np.ascontiguousarray(sequences.T))


def text_sequences(file: Path, count: int, length: int) -> Tensor:
    """The first sequences of a text, uint8 (count, length); each byte is a token.

    The last token of a sequence is the first of the next one.

    Raises:
        UserError: if the file cannot be read or is too short.
    """
    size = count * (length - 1) + 1
    try:
        with file.open("rb") as text:
            content = bytearray(text.read(size))
    except OSError as error:
        raise UserError(f"dataset.file: {file} cannot be read ({error.strerror})") from None
    if len(content) < size:
        raise UserError(
            f"dataset.sequences: {file} has {len(content)} bytes, and {count} sequences need {size}"
        )
    return torch.frombuffer(content, dtype=torch.uint8).unfold(0, length, length - 1)
