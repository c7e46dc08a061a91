"""How long a cell may take before it is ended, and how long it is expected to take."""

from __future__ import annotations

import math

from shardmark.cells import Cell
from shardmark.config import Cluster

# Imports, process group, probe, data, model, inspection, profile: config/pilot.yaml's arithmetic.
START_S = 40.0
# A limit allows more for it: a shared file system may serve the imports of every rank at once.
LONGEST_START_S = 300.0
# A limit lets a cell train this many times slower than expected.
SLOWER = 10
# The window grows where its steps turn out slower than those before it.
LONGEST_WINDOW = 2
# Of a job of the parity gate: its surrogate and a few steps of the real model.
GATE_MINUTES = 20
GATE_S = 30.0


def limit_minutes(cluster: Cluster, cell: Cell) -> int:
    """Minutes after which a cell is ended and recorded as a time-out.

    cluster.time_limit_minutes; less where cluster.expected_images_per_s says how fast the workload
    should be, so that Slurm can start the job in a gap between others (backfill).
    """
    expected = cluster.expected_images_per_s.get(cell.workload)
    if expected is None:
        return cluster.time_limit_minutes
    seconds = (
        LONGEST_START_S
        + cell.measure.idle_s
        + SLOWER * training_s(cell, expected)
        + LONGEST_WINDOW * cell.measure.steady_s
    )
    return min(cluster.time_limit_minutes, math.ceil(seconds / 60))


def expected_s(cell: Cell, images_per_s: float, start_s: float = START_S) -> float:
    """Seconds that a cell takes from its launch to its end.

    Args:
        cell: the cell.
        images_per_s: of one GPU.
        start_s: seconds in which it neither trains nor measures.
    """
    measure = cell.measure
    return start_s + measure.idle_s + training_s(cell, images_per_s) + measure.steady_s


def training_s(cell: Cell, images_per_s: float) -> float:
    """Seconds of the training, its evaluations and the longest warm-up of the measurement."""
    workload = cell.definition
    images = workload.epochs * (workload.train_images + workload.test_images) / cell.gpus
    images += cell.measure.warmup_max_steps * cell.per_gpu_batch_size
    return images / images_per_s
