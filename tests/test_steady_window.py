"""The steady window ends when the mean step time is precise, on every rank at the same step."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import forked_ranks
from shardmark.config.schema import Measure
from shardmark.measurement import clocks
from shardmark.measurement.clocks import Phases
from shardmark.measurement.steady_state import half_width_pct
from shardmark.training import steady_window
from shardmark.training.runtime import Runtime
from shardmark.training.steady_window import Window, further_steps, measure_window

SETTINGS = Measure(
    steady_min_s=0.4,
    steady_max_s=1.2,
    steady_half_width_pct=10.0,
    warmup_min_steps=2,
    warmup_max_steps=4,
)
STEP_S = 0.005


class Clock:
    """Stands in for the module ``time``. Only steps take time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic

    def steady_step(self) -> None:
        self.now_s += STEP_S

    def noisy_step(self) -> None:
        """A step that is fast or ten times as slow, a tenth of a second each."""
        slow = int(self.now_s / 0.1) % 2
        self.now_s += STEP_S * (10 if slow else 1)


def measure(rank: int, world: int, noisy: tuple[int, ...], folder: str) -> None:
    """Measure a window as one rank of a process group, and save it."""
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    device = torch.device("cpu")
    runtime = Runtime(rank, world, range(rank, rank + 1), device, "gloo", shared_device=False)
    clock = Clock()
    steady_window.time = clocks.time = clock  # in a process of its own
    take = clock.noisy_step if rank in noisy else clock.steady_step
    window = measure_window(runtime, SETTINGS, Phases(), take)
    torch.save(window._asdict() | {"host": None}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def windows(folder: Path, world: int, *noisy: int) -> list[Window]:
    """The windows of all ranks; those named have noisy steps."""
    forked_ranks.spawn(measure, (world, noisy, str(folder)), world)
    paths = [folder / f"{rank}.pt" for rank in range(world)]
    return [Window(**torch.load(path, weights_only=False)) for path in paths]


@pytest.mark.parametrize("world", [1, 2])
def test_a_steady_window_ends_at_its_least_length(world: int, tmp_path: Path) -> None:
    for window in windows(tmp_path, world):
        assert 0.4 <= window.end_s - window.begin_s < 0.5
        assert (half_width_pct(window.steady_ms) or 0) <= 10


@pytest.mark.parametrize(("world", "noisy"), [(1, 0), (2, 1)])
def test_a_noisy_window_runs_to_its_cap(world: int, noisy: int, tmp_path: Path) -> None:
    both = windows(tmp_path, world, noisy)
    assert len({len(window.steady_ms) for window in both}) == 1, "all ranks end at the same step"
    assert both[noisy].end_s - both[noisy].begin_s >= 1.2
    assert (half_width_pct(both[noisy].steady_ms) or 0) > 10


def further(steps_ms: list[float], **settings: float) -> int:
    asked = SETTINGS.model_copy(update=settings)
    return further_steps(steps_ms, sum(steps_ms) / 1000, asked)


def test_a_window_grows_by_what_its_precision_needs() -> None:
    generator = random.Random(0)
    steps = [10 + generator.gauss(0, 1) for _ in range(100)]
    half_width = half_width_pct(steps) or 0
    assert further(steps, steady_half_width_pct=half_width) == 0
    # 1.2 times too wide needs 1.44 times the steps.
    assert further(steps, steady_half_width_pct=half_width / 1.2, steady_max_s=60) == 44
    assert further(steps, steady_half_width_pct=half_width / 9, steady_max_s=60) == 100, "doubles"
    assert further(steps, steady_half_width_pct=half_width / 1.01, steady_max_s=60) == 25


def test_a_window_never_grows_beyond_its_cap() -> None:
    steps = [10.0, 30.0] * 30 + [100.0] * 10
    lasted_s = sum(steps) / 1000
    left = further(steps, steady_half_width_pct=0.1, steady_max_s=lasted_s + 0.1)
    assert left == 4, "of 31 ms on average"
    assert further(steps, steady_half_width_pct=0.1, steady_max_s=lasted_s) == 0


def test_a_window_of_a_few_long_steps_goes_on_until_its_precision_is_known() -> None:
    steps = [100.0] * 12
    assert half_width_pct(steps) is None
    assert further(steps, steady_max_s=60) == 8
    assert further(steps) == 0, "but not beyond the cap"


def test_the_half_width_covers_the_mean_of_independent_steps() -> None:
    generator = random.Random(2)
    inside = 0
    for _ in range(400):
        steps = [10 + generator.gauss(0, 1) for _ in range(60)]
        off = 100 * abs(10 / statistics.fmean(steps) - 1)
        inside += off <= (half_width_pct(steps) or 0)
    assert 0.92 <= inside / 400 <= 0.98
