"""A cell with a device fault is measured once more, and both results are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import run_cell
from gpu_matrix import metrics_of
from saved_cells import cell_arguments
from shardmark.measurement.validity import judge, names_of_rules
from shardmark.metrics import Failure, Metrics, read_metrics
from small_matrix import cell_at

CELL = cell_at()
Run = Callable[..., Metrics]


def measured(speed: float, **device: Any) -> Metrics:
    """A result on a GPU; ``device`` are changes to that GPU."""
    good = metrics_of(CELL)
    assert good.throughput is not None
    throughput = good.throughput.model_copy(update={"items_per_s": speed})
    devices = [one.model_copy(update=device) for one in good.devices]
    return judge(good.model_copy(update={"throughput": throughput, "devices": devices}))


def throttled(speed: float) -> Metrics:
    return measured(speed, throttled_pct={"hw_slowdown": 50.0})


def failed(status: Any) -> Metrics:
    return run_cell.bare_metrics(CELL, status, Failure.plain("memory ran out"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / CELL.folder / "metrics.json"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def run(output: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the cell, whose measurements give these results; return the result that counts."""

    def run(*results: Metrics, limit_minutes: float = 60, left: int = 0) -> Metrics:
        attempts: Iterator[Metrics] = iter(results)

        def attempt(cell: object, scratch: Path, **limits: object) -> Metrics:
            assert [path.name for path in scratch.iterdir()] == ["owner.json"], "as a new folder"
            result = next(attempts)
            if result.throughput:
                (scratch / "steps.csv").write_text(str(result.throughput.items_per_s))
            return result

        monkeypatch.setattr(run_cell, "run_cell", attempt)
        arguments = [*cell_arguments(CELL), "--output", str(output)]
        limit = ["--time-limit-minutes", str(limit_minutes)]
        monkeypatch.setattr("sys.argv", ["run_cell.py", *arguments, *limit])
        run_cell.main()
        assert len(list(attempts)) == left
        return read_metrics(output)

    return run


def steps_beside(metrics_json: Path) -> float:
    return float((metrics_json.parent / "steps.csv").read_text())


def first_attempt(output: Path) -> Path:
    return output.parent / "first_attempt/metrics.json"


def test_a_cell_without_a_fault_is_measured_once(output: Path, run: Run) -> None:
    assert run(measured(900), measured(800), left=1).other_attempt is None
    assert not first_attempt(output).parent.exists()


def test_a_device_fault_is_measured_again_and_the_second_result_counts(
    output: Path, run: Run
) -> None:
    counts = run(throttled(500), measured(900))
    assert counts.throughput is not None
    assert (counts.throughput.items_per_s, steps_beside(output)) == (900, 900)
    assert counts.device_faults == []
    (label,) = (label for label in counts.labels if label.startswith("measured twice"))
    assert "the first measurement had a device fault: throttled: GPU 0" in label
    first = first_attempt(output)
    assert names_of_rules(read_metrics(first).device_faults) == ["throttled"]
    assert steps_beside(first) == 500


def test_a_device_fault_that_stays_excludes_the_cell_after_two_measurements(run: Run) -> None:
    counts = run(throttled(500), throttled(510), measured(900), left=1)
    assert names_of_rules(counts.device_faults) == ["throttled"]
    assert "measured twice" in names_of_rules(counts.labels)


def test_a_second_measurement_that_fails_does_not_replace_the_first(output: Path, run: Run) -> None:
    counts = run(throttled(500), failed("oom"))
    assert (counts.status, steps_beside(output)) == ("ok", 500)
    assert names_of_rules(counts.device_faults) == ["throttled"]
    assert "measured twice: the first measurement counts, because the second ended as oom" in (
        counts.labels
    )
    assert read_metrics(output.with_name("metrics.failed.json")).status == "oom"
    assert not first_attempt(output).parent.exists()


def test_a_fault_that_only_peers_show_is_measured_again(output: Path, run: Run) -> None:
    peer = output.parents[1] / "seed7/metrics.json"
    peer.parent.mkdir()
    peer.write_text(measured(900, sm_clock_mean_mhz=1980.0).model_dump_json(by_alias=True))
    run(measured(500, sm_clock_mean_mhz=1200.0), measured(900, sm_clock_mean_mhz=1980.0))
    assert first_attempt(output).exists()


def test_without_time_for_a_second_measurement_the_first_counts(output: Path, run: Run) -> None:
    counts = run(throttled(500), measured(900), limit_minutes=1e-6, left=1)
    assert names_of_rules(counts.device_faults) == ["throttled"]
    assert not first_attempt(output).parent.exists()


def test_the_first_attempt_of_an_earlier_run_does_not_stay(output: Path, run: Run) -> None:
    run(throttled(500), measured(900))
    output.unlink()
    run(measured(950))
    assert not first_attempt(output).parent.exists()
