"""Data order, augmentation and dropout: the same for every rank count and both loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parity_cases import case_of
from shardmark.config.schema import VisionWorkload
from shardmark.workload.data import (
    LoadedTrainingData,
    TestData,
    TrainingData,
    epoch_order,
    training_data,
)
from shardmark.workload.keyed_random import KeyedDropout, draw, sample_keys
from shardmark.workload.vision.images import Pipeline, synthetic_images
from shardmark.workload.vision.workload import Vision

CPU = torch.device("cpu")


def workload(**dataset: object) -> VisionWorkload:
    definition = case_of(
        "ddp", 1, dataset={"name": "synthetic", "train_images": 64, "loader_workers": 1} | dataset
    ).cell.definition
    assert isinstance(definition, VisionWorkload)
    return definition


def data_of(replicas: range, world: int, definition: VisionWorkload | None = None) -> TrainingData:
    vision = Vision(definition or workload())
    return training_data(
        vision,
        vision.rows(Path(), train=True),
        seed=7,
        replicas=replicas,
        replica_count=world,
        per_replica=16 // world,
        device=CPU,
    )


@pytest.mark.parametrize("world", [2, 4])
def test_a_global_batch_is_the_same_for_every_rank_count(world: int) -> None:
    alone = [batch for [batch] in data_of(range(1), 1).epoch(3)]
    shares = [[batch for [batch] in data_of(range(r, r + 1), world).epoch(3)] for r in range(world)]
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
        assert torch.equal(whole.keys, torch.cat([part.keys for part in parts]))


def test_one_process_of_all_replicas_has_their_blocks_in_order() -> None:
    together = [batch for [batch] in data_of(range(4), 4).epoch(0)]
    alone = [batch for [batch] in data_of(range(1), 1).epoch(0)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(together, alone, strict=True))


def test_one_process_of_all_replicas_has_the_loader_workers_of_each() -> None:
    definition = workload(loader="dataloader", loader_workers=2)
    assert data_of(range(1, 2), 4, definition).workers == 2
    assert data_of(range(4), 4, definition).workers == 8


def test_micro_batches_of_all_replicas_hold_each_replicas_own_samples() -> None:
    definition = workload().model_copy(
        update={"batch": workload().batch.model_copy(update={"accumulate": 2})}
    )
    together = next(iter(data_of(range(2), 2, definition).epoch(0)))
    ranks = [next(iter(data_of(range(r, r + 1), 2, definition).epoch(0))) for r in range(2)]
    for micro in range(2):
        expected = torch.cat([rank[micro].keys for rank in ranks])
        assert torch.equal(together[micro].keys, expected)


def test_the_prefetching_loader_gives_the_device_loaders_batches() -> None:
    loaded = data_of(range(1, 2), 2, workload(loader="dataloader"))
    assert isinstance(loaded, LoadedTrainingData)
    resident = data_of(range(1, 2), 2)
    for [mine], [its] in zip(loaded.epoch(1), resident.epoch(1), strict=True):
        assert torch.equal(mine.images, its.images)
        assert torch.equal(mine.labels, its.labels)


def test_the_ragged_last_batch_is_dropped_and_every_epoch_is_a_permutation() -> None:
    assert len(list(data_of(range(1), 1).epoch(0))) == 4
    first, second = epoch_order(0, 0, 50), epoch_order(0, 1, 50)
    assert torch.equal(first.sort().values, torch.arange(50))
    assert not torch.equal(first, second)
    assert not torch.equal(first, epoch_order(1, 0, 50))


def test_augmentation_crops_shifts_and_flips_within_its_bounds() -> None:
    vision = Vision(workload(train_images=512))
    rows = vision.rows(Path(), train=True)
    data = training_data(
        vision, rows, 0, replicas=range(1), replica_count=1, per_replica=512, device=CPU
    )
    [batch] = next(iter(data.epoch(0)))
    images = synthetic_images(512, 32, 10, stream=0)
    plain = Pipeline(vision.definition, CPU).to_model(images.pixels[epoch_order(0, 0, 512)])
    unchanged = (batch.images == plain).flatten(1).all(dim=1).float().mean().item()
    # One crop in 81 is the middle one, and half of those are not flipped.
    assert 0 < unchanged < 0.03
    rows = draw(sample_keys(0, 0, torch.arange(100_000)), 0) % 9
    counts = torch.bincount(rows, minlength=9) / 100_000
    assert (counts - 1 / 9).abs().max() < 0.005


def test_images_come_in_channels_last_and_are_resized_to_the_models_side() -> None:
    definition = workload(name="cifar10", train_images=64, image_size=64)
    pixels = Pipeline(definition, CPU).pad(synthetic_images(8, 32, 10, stream=0).pixels)
    rows = (pixels, torch.arange(8))
    data = training_data(
        Vision(definition), rows, 0, replicas=range(1), replica_count=1, per_replica=8, device=CPU
    )
    [batch] = next(iter(data.epoch(0)))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_dropout_masks_follow_the_sample_not_its_place() -> None:
    dropout = KeyedDropout(0.3, layer=1).train()
    keys = sample_keys(0, 0, torch.arange(64))
    dropout.keys = keys
    whole = dropout(torch.ones(64, 128))
    dropout.keys = keys[32:]
    assert torch.equal(dropout(torch.ones(32, 128)), whole[32:])
    kept = (whole > 0).float().mean().item()
    assert abs(kept - 0.7) < 0.02
    other = KeyedDropout(0.3, layer=2).train()
    other.keys = keys
    assert not torch.equal(other(torch.ones(64, 128)), whole)


@pytest.mark.parametrize(("images", "world"), [(10, 1), (10, 3), (7, 4), (64, 2)])
def test_every_test_image_counts_once_in_batches_of_equal_number(images: int, world: int) -> None:
    rows = torch.zeros(images, 32, 32, 3, dtype=torch.uint8), torch.arange(images)
    seen: list[int] = []
    batches = set()
    for rank in range(world):
        data = TestData(
            Vision(workload()), rows, rank=rank, world_size=world, batch_size=4, device=CPU
        )
        batches.add(data.batches)
        for batch, counted in data:
            seen += batch.labels[counted].tolist()
    assert sorted(seen) == list(range(images))
    assert len(batches) == 1
