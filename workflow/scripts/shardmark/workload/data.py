"""Which samples a replica sees in each step, and the batches that a workload makes of them.

Every strategy and GPU count sees the same samples in the same order. Replica r takes the r-th
contiguous block of a global batch, because that is how DataParallel scatters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shardmark.workload.contract import Contract, Inputs, Rows
from shardmark.workload.keyed_random import sample_keys


def epoch_order(seed: int, epoch: int, samples: int) -> Tensor:
    """The order of an epoch's samples, int64 (samples,).

    It is drawn on the CPU, so it is the same on every machine.
    """
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator)


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
        order: the epoch's order, int64 (samples,).
        step: index of the step in the epoch.
        replicas: the replicas of this process: one, or all of them under DataParallel.
        replica_count: replicas of the cell.
        per_replica: samples per replica per step.
        micro: index of the micro-batch.
        accumulate: micro-batches per step.

    Returns:
        int64 (len(replicas) * per_replica // accumulate,), each replica's samples contiguous.
    """
    size = replica_count * per_replica
    block = order[step * size : (step + 1) * size].reshape(replica_count, accumulate, -1)
    return block[replicas.start : replicas.stop, micro].reshape(-1)


class TrainingData:
    """The batches of this process's replicas, made from rows that are kept on the device.

    Args:
        workload: makes the batches.
        rows: the training samples, on the CPU.
        seed: the cell's seed.
        replicas: the replicas of this process.
        replica_count: replicas of the cell.
        per_replica: samples per replica per step.
        device: where batches are made.

    Attributes:
        workers: number of worker processes that prefetch for this process.
    """

    workers = 0

    def __init__(
        self,
        workload: Contract[Any],
        rows: Rows,
        seed: int,
        *,
        replicas: range,
        replica_count: int,
        per_replica: int,
        device: torch.device,
    ) -> None:
        self.workload = workload
        self.seed = seed
        self.replicas, self.replica_count, self.per_replica = replicas, replica_count, per_replica
        self.accumulate = workload.definition.batch.accumulate
        self.device = device
        self.count = len(rows[0])
        self.steps_per_epoch = self.count // (replica_count * per_replica)
        self._load(rows)

    def _load(self, rows: Rows) -> None:
        self._rows = tuple(part.to(self.device) for part in rows)

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

    def epoch(self, epoch: int, steps: int | None = None) -> Iterator[list[Inputs]]:
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

    def _batch(self, order: Tensor, epoch: int, step: int, micro: int) -> Inputs:
        samples = self.samples(order, step, micro)
        return self.workload.batch(self._rows, samples, sample_keys(self.seed, epoch, samples))


class LoadedTrainingData(TrainingData):
    """The same batches, prefetched by worker processes, for samples that do not fit on the device.

    Workers only gather the rows of a micro-batch, which are pinned if there is a GPU. The batch is
    made of them on the device, with the same code as in TrainingData.
    """

    def _load(self, rows: Rows) -> None:
        self._rows = rows
        self.workers = self.workload.definition.loader_workers * len(self.replicas)

    def epoch(self, epoch: int, steps: int | None = None) -> Iterator[list[Inputs]]:
        """The steps of an epoch, each a list of ``accumulate`` micro-batches."""
        order = epoch_order(self.seed, epoch, self.count)
        count = self.steps_per_epoch if steps is None else min(steps, self.steps_per_epoch)
        index = [
            self.samples(order, step, micro)
            for step in range(count)
            for micro in range(self.accumulate)
        ]
        loader = DataLoader(
            _MicroBatches(self._rows, index),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4,
        )
        micro_batches = iter(loader)
        for _ in range(count):
            yield [self._to_device(epoch, *next(micro_batches)) for _ in range(self.accumulate)]

    def _to_device(self, epoch: int, samples: Tensor, *rows: Tensor) -> Inputs:
        samples = samples.to(self.device, non_blocking=True)
        on_device = tuple(part.to(self.device, non_blocking=True) for part in rows)
        places = torch.arange(len(samples), device=self.device)
        return self.workload.batch(on_device, places, sample_keys(self.seed, epoch, samples))


class _MicroBatches(Dataset[tuple[Tensor, ...]]):
    def __init__(self, rows: Rows, index: list[Tensor]) -> None:
        self.rows, self.index = rows, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, ...]:
        samples = self.index[item]
        batch = (samples, *(part[samples] for part in self.rows))
        # The queue to the rank would do this too, but drop the batch if /dev/shm is full, and the
        # rank would wait for ever. An error here reaches the rank.
        return tuple(part.share_memory_() for part in batch)  # type: ignore[no-untyped-call]


def training_data(
    workload: Contract[Any],
    rows: Rows,
    seed: int,
    *,
    replicas: range,
    replica_count: int,
    per_replica: int,
    device: torch.device,
) -> TrainingData:
    """The training data with the workload's loader; the arguments are those of TrainingData."""
    kind = LoadedTrainingData if workload.definition.loader_workers else TrainingData
    return kind(
        workload,
        rows,
        seed,
        replicas=replicas,
        replica_count=replica_count,
        per_replica=per_replica,
        device=device,
    )


class TestData:
    """This rank's share of the test samples, in the same number of batches on every rank.

    A sharded model's forward pass is a collective, so every rank must run the same number of
    batches. A rank that runs out of samples fills its batches with others, which the mask leaves
    out.

    Args:
        workload: makes the batches.
        rows: the test samples, on the CPU.
        rank: this process's rank.
        world_size: number of ranks.
        batch_size: samples per batch.
        device: where batches are made.
    """

    __test__ = False  # pytest would collect the class because of its name

    def __init__(
        self,
        workload: Contract[Any],
        rows: Rows,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        count = len(rows[0])
        share = -(-count // world_size)
        batch_size = min(batch_size, share)
        self.batches = -(-share // batch_size)
        index = torch.arange(rank * share, rank * share + self.batches * batch_size)
        last = min((rank + 1) * share, count)
        self._counted = (index < last).reshape(self.batches, batch_size).to(device)
        mine = index.clamp(max=count - 1)
        self._rows = tuple(part[mine].to(device) for part in rows)
        self._places = torch.arange(len(mine), device=device).reshape(self.batches, batch_size)
        self._workload = workload

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield each batch with a bool mask (b,) of the samples that count."""
        for places, counted in zip(self._places, self._counted, strict=True):
            yield self._workload.batch(self._rows, places, None), counted
