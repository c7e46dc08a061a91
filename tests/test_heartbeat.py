"""The ranks' signs of life: whole whenever they are read, and never acted on too soon."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parity_cases import ROOT
from shardmark.launching import node
from shardmark.processes.heartbeat import FILE_VARIABLE, Beat, Heartbeat, Heartbeats

# As a rank: a beat as fast as it can.
WRITER = """
import os, sys
from shardmark.processes.heartbeat import Heartbeat
heart = Heartbeat()
print(os.getpid(), flush=True)
heart.phase("training")
while True:
    heart.step()
"""


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Heartbeats, Heartbeat]:
    """The records of one rank, which is this process, and what writes them."""
    beats = Heartbeats(tmp_path / "beats", 1)
    monkeypatch.setenv(FILE_VARIABLE, str(beats.path))
    heart = Heartbeat()
    heart.phase("training")
    return beats, heart


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[Heartbeats, int]]:
    beats = Heartbeats(tmp_path / "beats", 2)
    env = {FILE_VARIABLE: str(beats.path), "LOCAL_RANK": "1", "RANK": "5"}
    env["PYTHONPATH"] = str(ROOT / "workflow/scripts")
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield beats, int(process.stdout.readline())
        process.kill()


def test_a_rank_that_writes_while_it_is_read_is_always_whole(
    writer: tuple[Heartbeats, int],
) -> None:
    # Rewritten in place, about one reading in 8,000 was torn: all zero, and "silent" since the
    # machine had started.
    beats, pid = writer
    end = time.monotonic() + 20
    while not beats.read()[1].steps:
        assert time.monotonic() < end, "the writer writes nothing"
    readings, last = 0, 0
    end = time.monotonic() + 3
    while time.monotonic() < end:
        other, mine = beats.read()
        assert (other.pid, other.phase) == (0, "imports")
        assert (mine.pid, mine.rank, mine.phase) == (pid, 5, "training")
        assert mine.beats == mine.steps + 1 >= last
        # It is a process of a busy machine, and may wait for a core.
        assert mine.silent_s < 3
        readings, last = readings + 1, mine.beats
    assert readings > 10_000, "too few readings to see a torn one"


def test_broken_and_impossible_records_leave_the_last_whole_one(
    alone: tuple[Heartbeats, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, heart = alone
    heart.step()
    good = beats.read()[0]
    assert (good.beats, good.steps) == (2, 1)
    monkeypatch.setattr(time, "monotonic", lambda: -5717.0)
    heart.step()  # from before the launch
    monkeypatch.undo()
    assert beats.read()[0].beats == 2, "the other record, which is whole and possible"
    beats.path.write_bytes(bytes(beats.path.stat().st_size))
    later = beats.read()[0]
    assert (later.pid, later.beats, later.phase) == (good.pid, 2, "training")
    assert 0 <= later.silent_s < 60


def test_a_record_of_which_a_part_is_old_does_not_count(
    alone: tuple[Heartbeats, Heartbeat],
) -> None:
    beats, heart = alone
    before = beats.path.read_bytes()
    heart.step()
    record = len(before) // 2
    # Beat 2 is in the first record; its phase is as it was before.
    torn = beats.path.read_bytes()[: record // 2] + before[record // 2 :]
    with beats.path.open("r+b") as file:
        file.write(torn)
    (beat,) = beats.read()
    assert (beat.beats, beat.steps, beat.phase) == (1, 0, "training")


def test_a_suspension_takes_nothing_from_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=100.0)
    monkeypatch.setattr(
        node, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time)
    )
    monkeypatch.setattr(node, "POLL_S", 0.05)
    beats: Any = SimpleNamespace(read=lambda: [beat(0)])
    plan: Any = SimpleNamespace(
        scratch=tmp_path, limit_s=500.0, stall_s=None, grace_s=1.0, cell=SimpleNamespace(nodes=1)
    )
    process = subprocess.Popen(["sleep", "1"])
    # Each look at the clock is 100 s after the last: the job is suspended again and again.
    assert node._watch(process, plan, 0, 0.0, beats) is None


def beat(silent_s: float) -> Beat:
    return Beat(pid=1, rank=0, beats=1, steps=1, phase="training", silent_s=silent_s)


@pytest.mark.parametrize(
    ("silences", "frozen_s", "ends"),
    [
        ([0, 99, 0, 99, 0, 0], 10.0, False),
        ([0, 99, 99, 99], 10.0, True),
        # The job was suspended, and its ranks with it.
        ([99] * 99, 0.01, False),
    ],
)
def test_the_watch_acts_on_two_readings_and_not_after_a_freeze(
    silences: list[float],
    frozen_s: float,
    ends: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node, "FROZEN_S", frozen_s)
    readings = iter([[beat(silent)] for silent in silences])
    beats: Any = SimpleNamespace(read=lambda: next(readings, [beat(0)]))
    plan: Any = SimpleNamespace(
        scratch=tmp_path, limit_s=None, stall_s=10.0, grace_s=1.0, cell=SimpleNamespace(nodes=1)
    )
    monkeypatch.setattr(node, "POLL_S", 0.02)
    monkeypatch.setattr(node, "_print_stacks", lambda *_: None)
    process = subprocess.Popen(["sleep", "60" if ends else "0.6"])
    intervention = node._watch(process, plan, 0, time.monotonic() - 60, beats)
    process.wait()
    assert (intervention is not None and intervention.cause == "stall") == ends
