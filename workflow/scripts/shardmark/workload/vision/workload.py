"""The workload of an image classifier."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from shardmark.architectures import CIFAR_RESNETS
from shardmark.config.schema import Dataset, VisionWorkload
from shardmark.workload.contract import Contract, Inputs, Rows
from shardmark.workload.vision.images import Batch, Pipeline, load_images
from shardmark.workload.vision.models import (
    build_model,
    build_surrogate,
    shard_units,
    surrogate_name,
)

# Side in px: small, but each channel still has several values at the end of the surrogate.
SURROGATE_SIDE = 32


class Vision(Contract[VisionWorkload]):
    """A classifier; the rows are uint8 pixels (n, side, side, 3) and int64 labels (n,)."""

    def __init__(self, definition: VisionWorkload) -> None:
        super().__init__(definition)
        self._pipelines: dict[torch.device, Pipeline] = {}

    def build_model(self, seed: int) -> nn.Module:
        """The configured network."""
        return build_model(self.definition, seed)

    def shard_units(self, model: nn.Module) -> list[nn.Module]:
        """Its residual, convolution or encoder blocks."""
        return shard_units(model, self.definition)

    def rows(self, data_dir: Path, *, train: bool) -> Rows:
        """The images of a split; training images have margins for the random crop."""
        images = load_images(self.definition, data_dir, train=train)
        pixels = self._pipeline(torch.device("cpu")).pad(images.pixels) if train else images.pixels
        return pixels, images.labels

    def batch(self, rows: Rows, samples: Tensor, keys: Tensor | None) -> Batch:
        """The images, augmented if there are keys; the network's dropout uses the same keys."""
        pixels, labels = rows
        pipeline = self._pipeline(pixels.device)
        if keys is None:
            images = pipeline.to_model(pixels[samples])
            return Batch(images, torch.zeros_like(samples), labels[samples])
        return Batch(pipeline.training_images(pixels, samples, keys), keys, labels[samples])

    def example(self, samples: int) -> Batch:
        """Black images of class 0."""
        side = self.definition.dataset.image_size
        keys, labels = torch.zeros(2, samples, dtype=torch.int64)
        return Batch(torch.zeros(samples, 3, side, side), keys, labels)

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Cross-entropy."""
        images, keys, labels = inputs
        logits = model(images, keys)
        return nn.functional.cross_entropy(logits.float(), labels, reduction="sum")

    def terms(self, inputs: Inputs) -> int:
        """One per image."""
        return len(inputs[0])

    def evaluate(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """1 for each image that is classified correctly, else 0."""
        images, keys, labels = inputs
        predicted: Tensor = model(images, keys).argmax(dim=1)
        return (predicted == labels).float()

    def for_gate(self, samples: int, *, surrogate: bool) -> VisionWorkload | None:
        """Synthetic images with the workload's own augmentation and loader."""
        definition = self.definition
        if not surrogate and CIFAR_RESNETS.get(definition.model.name) == 1:
            return None
        dataset = Dataset(
            name="synthetic",
            image_size=SURROGATE_SIDE if surrogate else definition.dataset.image_size,
            classes=definition.classes,
            train_images=samples,
            test_images=1,
            augment=definition.dataset.augment,
            loader=definition.dataset.loader,
            loader_workers=1,
        )
        return definition.model_copy(update={"dataset": dataset})

    def surrogate(self, seed: int) -> nn.Module:
        """A small network of the model's own blocks."""
        return build_surrogate(self.definition, seed)

    @property
    def surrogate_name(self) -> str:
        """Its kind and number of blocks."""
        return surrogate_name(self.definition)

    def without_collectives(self) -> Vision:
        """Local batch-norm: it costs the same FLOPs as synchronised batch-norm."""
        return Vision(self.definition.model_copy(update={"batchnorm": "local"}))

    def _pipeline(self, device: torch.device) -> Pipeline:
        if device not in self._pipelines:
            self._pipelines[device] = Pipeline(self.definition, device)
        return self._pipelines[device]
