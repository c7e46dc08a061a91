"""Whole cells: real processes from the launch to metrics.json and the files beside it."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from parity_cases import ROOT
from real_cells import cell_named, folder_of_run, metrics_of_run
from run_cell import run_cell
from shardmark.metrics import Metrics
from shardmark.results.exclusion import why_excluded
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome

PARTS_OF_OTHERS = ("first_step_s", "warmup_s", "steady_s", "total_s")


@pytest.fixture(scope="module")
def folder() -> Path:
    return folder_of_run("ddp", launched=True)


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return metrics_of_run("ddp", launched=True)


def test_the_phases_share_out_the_wall_clock(metrics: Metrics) -> None:
    times = metrics.time_s
    assert times is not None
    shares = times.model_dump(exclude={*PARTS_OF_OTHERS, "epochs_s"})
    assert shares.pop("profile_s") is None, "no profiled pass was asked for"
    assert shares.pop("compilation_s") is None, "nothing is compiled"
    assert all(seconds is not None for seconds in shares.values()), shares
    assert sum(shares.values()) == pytest.approx(times.total_s, rel=0.01)
    assert times.other_s is not None
    assert times.other_s < 0.01 * (times.total_s or 0)
    assert (times.first_step_s or 0) < (times.training_s or 0)
    assert (times.warmup_s or 0) + (times.steady_s or 0) == times.measurement_s
    assert sum(times.epochs_s) <= (times.training_s or 0)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "calls"), [("train_compiled.py", 3), ("train_given_up.py", 0)])
def test_a_cell_counts_the_blocks_that_run_compiled_after_its_inspection(
    script: str, calls: int, tmp_path: Path
) -> None:
    cell = cell_named("fsdp2", 1, compile="block")
    metrics = run_cell(cell, tmp_path, script=ROOT / "tests/compiling" / script)
    assert metrics.throughput is not None
    assert metrics.throughput.compiled_calls == calls
    assert metrics.effective_config is not None
    assert metrics.effective_config.compiled
    planned = PlannedCell(cell, Outcome.OK, metrics)
    assert why_excluded(planned, "passed") == ("" if calls else "not compiled")


def test_steps_csv_holds_every_step_of_every_rank(metrics: Metrics, folder: Path) -> None:
    throughput = metrics.throughput
    assert throughput is not None
    with (folder / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = Counter((row["rank"], row["phase"]) for row in rows)
    for rank in ("0", "1"):
        assert counts[rank, "training"] == 4
        assert counts[rank, "warmup"] == throughput.warmup_steps
        assert counts[rank, "steady"] == throughput.steps
    assert 4 <= throughput.warmup_steps <= 8
    measured = [(int(row["epoch"]), int(row["step"])) for row in rows if row["rank"] == "0"]
    assert measured == [divmod(index, 4) for index in range(len(measured))]
    steady = {
        rank: [
            float(row["step_ms"]) for row in rows if (row["rank"], row["phase"]) == (rank, "steady")
        ]
        for rank in ("0", "1")
    }
    slowest = max(sum(steps) for steps in steady.values())
    assert throughput.items_per_s == pytest.approx(
        16 * throughput.steps / (slowest / 1000), rel=1e-4
    )


def test_the_strategy_is_gone_before_its_process_group_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "tests/failing/train_outlives_its_group.py"
    assert run_cell(cell_named("ddp", 1), tmp_path, script=script).status == "ok"
    assert "strategies alive: 0" in capfd.readouterr().out


@pytest.mark.slow
def test_a_window_whose_steps_became_faster_is_as_long_as_was_asked_for_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    script = ROOT / "tests/failing/train_quickens.py"
    throughput = run_cell(cell_named("ddp", 2), tmp_path, script=script).throughput
    assert throughput is not None
    assert throughput.window_s >= 0.3
    # A user's cache of torch's compiler is meant to stay.
    assert [path for path in temporary.iterdir() if "torchinductor_" not in path.name] == []


def test_the_windows_are_on_the_clock_of_the_samples(metrics: Metrics, folder: Path) -> None:
    assert metrics.windows is not None
    assert metrics.time_s is not None
    begin, end = metrics.windows.steady_monotonic_s
    assert end - begin == pytest.approx(metrics.time_s.steady_s, rel=0.2)
    evaluations = metrics.windows.evaluations_monotonic_s
    assert len(evaluations) == len(metrics.time_s.epochs_s)
    assert all(start < stop < begin for start, stop in evaluations)
    with (folder / "telemetry.csv").open() as file:
        samples = [float(row["monotonic_s"]) for row in csv.DictReader(file)]
    assert samples[0] < evaluations[0][0]
    assert any(begin <= at <= end for at in samples)
