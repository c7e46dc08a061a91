"""The images, and which of them a replica sees in each step.

Every strategy and GPU count sees the same samples in the same order. Replica r takes the r-th
contiguous block of a global batch, because that is how DataParallel scatters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shardmark.config.schema import Workload
from shardmark.datasets import DATASETS
from shardmark.errors import UserError
from shardmark.workload.data_files import torchvision_class, why_not_whole
from shardmark.workload.keyed_random import draw, sample_keys

_CROP_PADDING_PX = 4
_PURPOSE_ROW, _PURPOSE_COLUMN, _PURPOSE_FLIP = 0, 1, 2


@dataclass(frozen=True)
class Images:
    """One split of a data set: uint8 pixels (n, side, side, 3) and int64 labels (n,)."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """Float32 images (b, 3, side, side) in channels_last, int64 keys (b,) and labels (b,)."""

    images: Tensor
    keys: Tensor
    labels: Tensor


def load_images(workload: Workload, data_dir: Path, *, train: bool) -> Images:
    """Load a split of the workload's data set, cut to the number of images that it asks for.

    Raises:
        UserError: if the data set is missing or damaged.
    """
    count = workload.train_images if train else workload.test_images
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
            f"data.dir: {reason}; run make fetch where there is internet, or name the folder that "
            "has it"
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


def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of an epoch's samples, int64 (images,).

    It is drawn on the CPU, so it is the same on every machine.
    """
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
    return torch.randperm(images, generator=generator)


def block_of_step(
    order: Tensor,
    step: int,
    *,
    replicas: range,
    replica_count: int,
    per_replica: int,
    micro: int,
    accumulate: int,
) -> Tensor:
    """The sample indices of one micro-batch, for the replicas that this process holds.

    Args:
        order: the epoch's order, int64 (images,).
        step: index of the step in the epoch.
        replicas: the replicas of this process: one, or all of them under DataParallel.
        replica_count: replicas of the cell.
        per_replica: images per replica per step.
        micro: index of the micro-batch.
        accumulate: micro-batches per step.

    Returns:
        int64 (len(replicas) * per_replica // accumulate,), each replica's samples contiguous.
    """
    size = replica_count * per_replica
    block = order[step * size : (step + 1) * size].reshape(replica_count, accumulate, -1)
    return block[replicas.start : replicas.stop, micro].reshape(-1)


class Pipeline:
    """Turns pixels into model inputs on the pixels' device: crop, flip, resize, normalise.

    Args:
        workload: names the data set and the image size, and says whether to augment.
        device: where batches are made.
    """

    def __init__(self, workload: Workload, device: torch.device) -> None:
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


class TrainingData:
    """The batches of this process's replicas, made from pixels that are kept on the device.

    Args:
        images: the training split, on the CPU.
        workload: the cell's workload.
        seed: the cell's seed.
        replicas: the replicas of this process.
        replica_count: replicas of the cell.
        per_replica: images per replica per step.
        device: where batches are made.

    Attributes:
        workers: number of worker processes that prefetch for this process.
    """

    workers = 0

    def __init__(
        self,
        images: Images,
        workload: Workload,
        seed: int,
        *,
        replicas: range,
        replica_count: int,
        per_replica: int,
        device: torch.device,
    ) -> None:
        self.pipeline = Pipeline(workload, device)
        self.seed = seed
        self.replicas, self.replica_count, self.per_replica = replicas, replica_count, per_replica
        self.accumulate = workload.batch.accumulate
        self.device = device
        self.count = len(images.labels)
        self.steps_per_epoch = self.count // (replica_count * per_replica)
        self._load(images, workload)

    def _load(self, images: Images, workload: Workload) -> None:
        self._padded = self.pipeline.pad(images.pixels).to(self.device)
        self._labels = images.labels.to(self.device)

    def samples(self, order: Tensor, step: int, micro: int) -> Tensor:
        """The sample indices of one micro-batch of this process, on the device of ``order``."""
        return block_of_step(
            order,
            step,
            replicas=self.replicas,
            replica_count=self.replica_count,
            per_replica=self.per_replica,
            micro=micro,
            accumulate=self.accumulate,
        )

    def epoch(self, epoch: int, steps: int | None = None) -> Iterator[list[Batch]]:
        """The steps of an epoch, each a list of ``accumulate`` micro-batches."""
        order = epoch_order(self.seed, epoch, self.count)
        if self.device.type == "cuda":
            # A copy from pageable memory would wait for all queued work of the device, and an epoch
            # may begin inside the steady window.
            order = order.pin_memory()
        order = order.to(self.device, non_blocking=True)
        for step in range(
            self.steps_per_epoch if steps is None else min(steps, self.steps_per_epoch)
        ):
            yield [self._batch(order, epoch, step, micro) for micro in range(self.accumulate)]

    def _batch(self, order: Tensor, epoch: int, step: int, micro: int) -> Batch:
        samples = self.samples(order, step, micro)
        keys = sample_keys(self.seed, epoch, samples)
        images = self.pipeline.training_images(self._padded, samples, keys)
        return Batch(images, keys, self._labels[samples])


class LoadedTrainingData(TrainingData):
    """The same batches, prefetched by worker processes, for images that do not fit on the device.

    Workers only gather the padded pixels of a micro-batch, which are pinned if there is a GPU.
    Crop, flip and normalisation run on the device, with the same code as in TrainingData.
    """

    def _load(self, images: Images, workload: Workload) -> None:
        self._padded = self.pipeline.pad(images.pixels)
        self._labels = images.labels
        self.workers = workload.dataset.loader_workers * len(self.replicas)

    def epoch(self, epoch: int, steps: int | None = None) -> Iterator[list[Batch]]:
        """The steps of an epoch, each a list of ``accumulate`` micro-batches."""
        order = epoch_order(self.seed, epoch, self.count)
        count = self.steps_per_epoch if steps is None else min(steps, self.steps_per_epoch)
        index = [
            self.samples(order, step, micro)
            for step in range(count)
            for micro in range(self.accumulate)
        ]
        loader = DataLoader(
            _MicroBatches(self._padded, self._labels, index),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4,
        )
        micro_batches = iter(loader)
        for _ in range(count):
            yield [self._to_device(epoch, *next(micro_batches)) for _ in range(self.accumulate)]

    def _to_device(self, epoch: int, samples: Tensor, pixels: Tensor, labels: Tensor) -> Batch:
        samples = samples.to(self.device, non_blocking=True)
        pixels = pixels.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        keys = sample_keys(self.seed, epoch, samples)
        rows = torch.arange(len(samples), device=self.device)
        return Batch(self.pipeline.training_images(pixels, rows, keys), keys, labels)


class _MicroBatches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    def __init__(self, pixels: Tensor, labels: Tensor, index: list[Tensor]) -> None:
        self.pixels, self.labels, self.index = pixels, labels, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, Tensor]:
        samples = self.index[item]
        return samples, self.pixels[samples], self.labels[samples]


def training_data(
    images: Images,
    workload: Workload,
    seed: int,
    *,
    replicas: range,
    replica_count: int,
    per_replica: int,
    device: torch.device,
) -> TrainingData:
    """The training data with the workload's loader; the arguments are those of TrainingData."""
    kind = TrainingData if workload.dataset.loader == "device" else LoadedTrainingData
    return kind(
        images,
        workload,
        seed,
        replicas=replicas,
        replica_count=replica_count,
        per_replica=per_replica,
        device=device,
    )


class TestData:
    """This rank's share of the test images, in the same number of batches on every rank.

    A sharded model's forward pass is a collective, so every rank must run the same number of
    batches. A rank that runs out of images fills its batches with others, which the mask leaves
    out.

    Args:
        images: the test split, on the CPU.
        workload: the cell's workload.
        rank: this process's rank.
        world_size: number of ranks.
        batch_size: images per batch.
        device: where batches are made.
    """

    __test__ = False  # pytest would collect the class because of its name

    def __init__(
        self,
        images: Images,
        workload: Workload,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        count = len(images.labels)
        share = -(-count // world_size)
        batch_size = min(batch_size, share)
        self.batches = -(-share // batch_size)
        index = torch.arange(rank * share, rank * share + self.batches * batch_size)
        last = min((rank + 1) * share, count)
        self._counted = (index < last).reshape(self.batches, batch_size).to(device)
        rows = index.clamp(max=count - 1)
        self._pixels = images.pixels[rows].to(device)
        self._labels = images.labels[rows].to(device)
        self._pipeline = Pipeline(workload, device)
        self._size = batch_size

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each batch with a bool mask (b,) of the images that count."""
        for number in range(self.batches):
            part = slice(number * self._size, (number + 1) * self._size)
            images = self._pipeline.to_model(self._pixels[part])
            keys = torch.zeros(self._size, dtype=torch.int64, device=images.device)
            yield Batch(images, keys, self._labels[part]), self._counted[number]
