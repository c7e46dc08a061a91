"""Images and their labels: where they come from, and the batches that a model gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shardmark.config.schema import VisionWorkload
from shardmark.datasets import DATASETS
from shardmark.errors import UserError
from shardmark.workload.keyed_random import draw
from shardmark.workload.vision.data_files import torchvision_class, why_not_whole

_CROP_PADDING_PX = 4
_PURPOSE_ROW, _PURPOSE_COLUMN, _PURPOSE_FLIP = 0, 1, 2


@dataclass(frozen=True)
class Images:
    """One split of a data set: uint8 pixels (n, side, side, 3) and int64 labels (n,)."""

    pixels: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """Float32 images (b, 3, side, side) in channels_last, int64 keys (b,) and labels (b,)."""

    images: Tensor
    keys: Tensor
    labels: Tensor


def load_images(workload: VisionWorkload, data_dir: Path, *, train: bool) -> Images:
    """Load a split of the workload's data set, cut to the number of images that it asks for.

    Raises:
        UserError: if the data set is missing or damaged.
    """
    count = workload.train_samples if train else workload.test_samples
    if DATASETS[workload.dataset.name].generated:
        return synthetic_images(
            count, workload.dataset.image_size, workload.classes, stream=0 if train else 1
        )
    name = workload.dataset.name
    try:
        # torchvision checks the files' checksums before it loads them.
        data = torchvision_class(name)(str(data_dir), train=train, download=False)
    except RuntimeError:
        reason = why_not_whole(name, data_dir) or f"{name} could not be read from {data_dir}"
        raise UserError(
            f"data.dir: {reason}; run make fetch where there is internet, or set data.dir to the "
            "folder that has it"
        ) from None
    labels = torch.tensor(data.targets[:count], dtype=torch.int64)
    return Images(torch.from_numpy(data.data[:count].copy()), labels)


def synthetic_images(count: int, side: int, classes: int, *, stream: int) -> Images:
    """Generate learnable images: one pattern per class, plus noise.

    Each class has a fixed coarse pattern, the same in every stream. A sample is its class's pattern
    at half contrast plus noise, so a model that learns reaches an accuracy far above 1 / classes.

    Args:
        count: number of images.
        side: height and width in px.
        classes: number of classes; labels cycle through them.
        stream: 0 for training images, 1 for test images; it changes only the noise.
    """
    patterns = np.random.default_rng(20_240_229).uniform(-1, 1, (classes, 4, 4, 3))
    rows = (np.arange(side) * 4) // side
    patterns = patterns[:, rows][:, :, rows].astype(np.float32)
    labels = np.arange(count) % classes
    noise = np.random.default_rng([20_240_301, stream])
    pixels = np.empty((count, side, side, 3), dtype=np.uint8)
    for start in range(0, count, 1024):
        part = labels[start : start + 1024]
        spread = noise.standard_normal((len(part), side, side, 3), dtype=np.float32)
        values = 127.5 + 32 * patterns[part] + 48 * spread
        pixels[start : start + 1024] = np.clip(values, 0, 255).astype(np.uint8)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


class Pipeline:
    """Turns pixels into model inputs on the pixels' device: crop, flip, resize, normalise.

    Args:
        workload: names the data set and the image size, and says whether to augment.
        device: where batches are made.
    """

    def __init__(self, workload: VisionWorkload, device: torch.device) -> None:
        record = DATASETS[workload.dataset.name]
        mean, std = record.mean, record.std
        self.side = workload.dataset.image_size
        self.augment = workload.dataset.augment
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.scale = torch.tensor(scale, device=device).reshape(1, 3, 1, 1)
        self.shift = torch.tensor(shift, device=device).reshape(1, 3, 1, 1)
        self.device = device

    def pad(self, pixels: Tensor) -> Tensor:
        """Add black margins for the crop: (n, side, side, 3) to (n, side + 8, side + 8, 3).

        Without augmentation, return the pixels unchanged.
        """
        if not self.augment:
            return pixels
        margin = (0, 0, *([_CROP_PADDING_PX] * 4))
        return torch.nn.functional.pad(pixels, margin)

    def training_images(self, padded: Tensor, samples: Tensor, keys: Tensor) -> Tensor:
        """The samples' augmented images, float32 (b, 3, side, side) in channels_last."""
        if not self.augment:
            return self.to_model(padded[samples])
        side = padded.shape[1] - 2 * _CROP_PADDING_PX
        span = 2 * _CROP_PADDING_PX + 1
        steps = torch.arange(side, device=padded.device)
        rows = (draw(keys, _PURPOSE_ROW) % span)[:, None] + steps
        flip = (draw(keys, _PURPOSE_FLIP) & 1).bool()[:, None]
        columns = torch.where(flip, side - 1 - steps, steps)
        columns = columns + (draw(keys, _PURPOSE_COLUMN) % span)[:, None]
        return self.to_model(padded[samples[:, None, None], rows[:, :, None], columns[:, None, :]])

    def to_model(self, pixels: Tensor) -> Tensor:
        """Turn uint8 (b, s, s, 3) into normalised float32 (b, 3, side, side), channels_last."""
        images = pixels.permute(0, 3, 1, 2).float()
        if images.shape[2] != self.side:
            images = torch.nn.functional.interpolate(
                images, size=(self.side, self.side), mode="bilinear", align_corners=False
            )
        images = images * self.scale + self.shift
        return images.contiguous(memory_format=torch.channels_last)
