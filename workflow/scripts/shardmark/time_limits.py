"""How long a cell may take before it is stopped, and how long it is expected to take."""

from __future__ import annotations

import math

from shardmark.cells import BatchSearch, Cell
from shardmark.config.schema import Cluster

# Expected seconds in which a cell neither trains nor measures: imports, process group, probe, data,
# model, inspection, profile, but no compilation. With gpt_1b4, 50 cells on two and four H200 took
# 12 to 26 s, with a median of 17 s, and cells on one H200 took 8 to 13 s. A shared file system
# takes longer, so this is rather high.
START_S = 25.0
# A time limit allows more for the start: all ranks may import from a shared file system at once.
LONGEST_START_S = 300.0
# A time limit allows a training this many times slower than expected.
MOST_TIMES_SLOWER = 10
# Time limit of a parity gate job: its surrogate and a few steps of the real model.
GATE_MINUTES = 20
GATE_S = 30.0
# A search for the largest batch starts new processes after each size that does not fit. On two
# H100, searches with gpt_1b4 took 60 to 120 s: two or three starts. A larger batch takes more.
SEARCH_STARTS = 3


def search_s(search: BatchSearch) -> float:
    """Return the expected seconds of a search for the largest batch."""
    return SEARCH_STARTS * START_S + search.cell.measure.steady_min_s


def limit_minutes(cluster: Cluster, cell: Cell) -> int:
    """Return the minutes after which a cell is stopped and recorded as a time-out.

    This is cluster.time_limit_minutes, or less if cluster.expected_items_per_s says how fast the
    workload should be. A shorter limit lets Slurm start the job in a gap between others (backfill).
    """
    expected = cluster.expected_items_per_s.get(cell.workload)
    if expected is None:
        return cluster.time_limit_minutes
    seconds = (
        LONGEST_START_S
        + cell.measure.idle_s
        + MOST_TIMES_SLOWER * training_s(cell, expected)
        # The first part of the window may be too long, if its steps are slower than those before.
        + cell.measure.steady_min_s
        + cell.measure.steady_max_s
    )
    return min(cluster.time_limit_minutes, math.ceil(seconds / 60))


def expected_s(cell: Cell, items_per_s: float, start: float) -> float:
    """Return the expected seconds of a cell from its launch to its end.

    Args:
        cell: the cell.
        items_per_s: images or tokens per second of one GPU.
        start: seconds in which the cell neither trains nor measures.
    """
    measure = cell.measure
    return start + measure.idle_s + training_s(cell, items_per_s) + measure.steady_min_s


def training_s(cell: Cell, items_per_s: float) -> float:
    """Return the seconds of the training, its evaluations and the longest possible warm-up."""
    workload = cell.definition
    samples = workload.epochs * (workload.train_samples + workload.test_samples) / cell.gpus
    samples += cell.measure.warmup_max_steps * cell.per_gpu_batch_size
    return samples * workload.items_per_sample / items_per_s
