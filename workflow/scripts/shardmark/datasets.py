"""One record per data set: its size, its classes, and where its files come from.

A login node plans a matrix with these records, so this module must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["cifar10", "cifar100", "synthetic"]
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class DatasetRecord:
    """Everything that is specific to one data set.

    Attributes:
        train_images: number of training images; for a generated set, the workload can change it.
        test_images: number of test images, likewise.
        classes: number of classes; None if the workload chooses it.
        mean: mean of each channel over the training images, in units of the full range.
        std: standard deviation, likewise.
        torchvision_name: its class in ``torchvision.datasets``, which must have the layout of
            CIFAR10; None for generated images.
        side: side of its images, px; None for images generated at the size that the model sees.
    """

    train_images: int
    test_images: int
    classes: int | None
    mean: Channels
    std: Channels
    torchvision_name: str | None = None
    side: int | None = None

    @property
    def generated(self) -> bool:
        """Whether its images are generated, so that it has no files."""
        return self.torchvision_name is None


DATASETS: dict[DatasetName, DatasetRecord] = {
    "cifar10": DatasetRecord(
        train_images=50_000,
        test_images=10_000,
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        torchvision_name="CIFAR10",
        side=32,
    ),
    "cifar100": DatasetRecord(
        train_images=50_000,
        test_images=10_000,
        classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        torchvision_name="CIFAR100",
        side=32,
    ),
    # Generated pixel values are centred on one half.
    "synthetic": DatasetRecord(
        train_images=4096,
        test_images=1024,
        classes=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    ),
}
# Data sets with files to fetch.
FETCHED = tuple(name for name, record in DATASETS.items() if not record.generated)
