"""The learning rate over the training, and over the steps after it that are timed."""

from __future__ import annotations

import pytest

from shardmark.config.loading import load
from shardmark.config.schema import Workload
from shardmark.workload.optimizers import learning_rate_at
from small_matrix import ROOT, changed

STEPS = 10


def workload(**schedule: object) -> Workload:
    config = load(changed(workloads__small__schedule=schedule, workloads__small__epochs=4), ROOT)
    return config.workloads["small"]


def test_cosine_grows_falls_and_is_not_zero_where_steps_are_timed() -> None:
    falling = workload(name="cosine", warmup_epochs=1)
    peak = falling.optimizer.learning_rate
    rates = [learning_rate_at(falling, 1, step, STEPS) for step in range(6 * STEPS)]
    assert rates[0] == pytest.approx(peak / STEPS)
    assert rates[STEPS - 1] == rates[STEPS] == peak
    training = rates[STEPS : 4 * STEPS]
    assert training == sorted(training, reverse=True)
    assert 0 < training[-1] < 0.01 * peak
    assert set(rates[4 * STEPS :]) == {peak / 2}, "inspected, warm-up, steady window, profile"


def test_a_constant_rate_stays() -> None:
    rates = [learning_rate_at(workload(), 1, step, STEPS) for step in range(6 * STEPS)]
    assert set(rates) == {workload().optimizer.learning_rate}
