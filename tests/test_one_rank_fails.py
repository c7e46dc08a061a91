"""One rank of two fails: all end in time, the right one is named, nothing is left on any device.

On the CPU, or with SHARDMARK_TEST_DEVICE=cuda over NCCL on this machine's GPUs (make test-gpu).
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

import run_cell
from parity_cases import DEVICE, ROOT, case_of, skip_without_gpus
from shardmark.launching.endings import Interrupted
from shardmark.measurement.telemetry import memory_used, visible_gpus
from shardmark.metrics import Metrics
from start_up import stall_s

SCRIPT = ROOT / "tests/failing/train_misbehaves.py"
# For the ranks to say where they stand, and to be ended with SIGTERM and SIGKILL.
ENDING_S = 20.0
GPUS = 2


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str = "well", patience_s: float = 300.0
) -> Metrics:
    """The result of a cell of two ranks whose last one does this in its fourth step."""
    monkeypatch.setenv("MISBEHAVIOUR", how)
    cell = case_of("ddp", GPUS, dataset={"name": "synthetic", "train_images": 256}).cell
    short = {
        "steady_min_s": 0.2,
        "steady_max_s": 0.2,
        "warmup_min_steps": 2,
        "warmup_max_steps": 4,
        "idle_s": 0.0,
    }
    cell = cell.model_copy(update={"measure": cell.measure.model_copy(update=short)})
    return run_cell.run_cell(cell, folder, script=SCRIPT, stall_s=patience_s)


def memory_in_use() -> list[int]:
    """Bytes in use on each GPU; none on the CPU."""
    if DEVICE == "cpu":
        return []
    import pynvml

    return [memory_used(pynvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in visible_gpus(GPUS)]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """After each test none of its processes lives; no GPU holds memory, the next cell runs on it.

    Python's resource tracker, which a test before this one may have started, lives on by design.
    """
    skip_without_gpus(GPUS)
    before = memory_in_use()
    processes = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - processes
    assert [process.name() for process in left] == []
    if DEVICE == "cpu":
        return
    time.sleep(1)  # the driver takes a moment
    grown = [now - then for now, then in zip(memory_in_use(), before, strict=True)]
    assert all(growth < 2**20 for growth in grown), grown
    good = tmp_path / "next"
    good.mkdir()
    assert run(good, monkeypatch).status == "ok"


@pytest.mark.slow
def test_memory_that_runs_out_on_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = run(tmp_path, monkeypatch, "out of memory")
    assert metrics.status == "oom"
    assert metrics.failure is not None
    assert (metrics.failure.rank, metrics.failure.phase) == (1, "training")


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = run(tmp_path, monkeypatch, "no number")
    assert metrics.status == "diverged"
    assert metrics.failure is not None
    assert metrics.failure.rank == 1
    assert metrics.failure.exception == "the mean loss of epoch 1 is nan; first on rank 1 at step 4"


@pytest.mark.slow
def test_a_rank_that_is_stopped_in_a_collective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = tmp_path / "stopped"
    monkeypatch.setenv("STOPPED", str(stopped))
    with pytest.raises(Interrupted, match="hung, and rank 1 had been stopped"):
        run(tmp_path, monkeypatch, "stop", stall_s())
    took = time.time() - stopped.stat().st_mtime
    print(f"ended {took:.0f} s after the rank was stopped")
    assert stall_s() < took < stall_s() + ENDING_S


@pytest.mark.skipif(DEVICE == "cpu", reason="test_survival.py kills ranks on the CPU")
def test_a_rank_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    with pytest.raises(Interrupted, match="something else killed rank 1"):
        run(tmp_path, monkeypatch, "killed")
    assert time.monotonic() - begin < stall_s()
