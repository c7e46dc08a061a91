"""Sequences of tokens: generated ones, and the bytes of a text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shardmark.errors import UserError

# Different successors of a token in a generated sequence.
SUCCESSORS = 4


def synthetic_sequences(count: int, length: int, vocabulary: int, *, train: bool = True) -> Tensor:
    """Generate learnable sequences, int32 (count, length).

    Each token has four possible successors, the same in all sequences; a sequence takes one of them
    at random. A model that learns them reaches a loss of ln 4 = 1.39 per token, whatever the
    vocabulary.

    Args:
        count: number of sequences.
        length: tokens per sequence.
        vocabulary: number of different tokens.
        train: whether to generate training sequences. Test sequences have the same successors, but
            take them in another order.
    """
    numbers = np.random.default_rng(20_240_229)
    successors = numbers.integers(vocabulary, size=(vocabulary, SUCCESSORS), dtype=np.int32)
    if not train:
        numbers = np.random.default_rng(20_240_301)
    choices = numbers.integers(SUCCESSORS, size=(length, count), dtype=np.int8)
    sequences = np.empty((length, count), dtype=np.int32)
    sequences[0] = numbers.integers(vocabulary, size=count)
    for place in range(1, length):
        sequences[place] = successors[sequences[place - 1], choices[place]]
    return torch.from_numpy(np.ascontiguousarray(sequences.T))


def text_sequences(
    file: Path, count: int, length: int, *, held_out: int = 0, train: bool = True
) -> Tensor:
    """The first sequences of a text, or the last ones, uint8 (sequences, length).

    Each byte is a token. The last token of a sequence is the first of the next one.

    Args:
        file: the text.
        count: number of training sequences, the first ones.
        length: tokens per sequence.
        held_out: number of test sequences, the last ones.
        train: which of the two to read.

    Raises:
        UserError: if the file cannot be read, or is too short for both.
    """
    step = length - 1
    needed = (count + held_out) * step + 1
    size = (count if train else held_out) * step + 1
    try:
        with file.open("rb") as text:
            there = text.seek(0, os.SEEK_END)
            text.seek(0 if train else max(0, there - size))
            content = bytearray(text.read(size))
    except OSError as error:
        raise UserError(f"dataset.file: {file} cannot be read ({error.strerror})") from None
    if there < needed:
        raise UserError(
            f"dataset.sequences: {file} has {there} bytes, and {count + held_out} sequences need "
            f"{needed}"
        )
    return torch.frombuffer(content, dtype=torch.uint8).unfold(0, length, step)
