"""How far a running cell has come, in a file that other machines can read. Free of torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from shardmark.cells import Cell
from shardmark.config.schema import Section
from shardmark.files import write_text
from shardmark.processes.heartbeat import Beat

# A file on a shared file system is for people, who look every few seconds.
WRITE_S = 5.0
TRAINING = ("first_step", "training", "evaluation")


class CellProgress(Section):
    """The rank that is furthest behind on the first node.

    Attributes:
        phase: the phase it is in.
        steps: optimizer steps it has begun.
        silent_s: seconds since it last got further.
        first_step_at: when it was first seen to step, in seconds since the epoch.
        at: when this was so.
    """

    phase: str
    steps: int
    silent_s: float
    first_step_at: float | None
    at: float

    def left_s(self, cell: Cell) -> float | None:
        """Seconds until the cell ends, at the pace of its steps so far; None where it has none.

        The set-up that is still to come, and the last evaluation, are left out.
        """
        total = cell.definition.epochs * cell.steps_per_epoch
        if self.phase not in TRAINING or self.first_step_at is None or self.steps < 2:
            return None
        pace_s = (self.at - self.first_step_at) / self.steps
        return max(0, total - self.steps) * pace_s + cell.measure.steady_s

    def __str__(self) -> str:
        silent = f", silent for {self.silent_s:.0f} s" if self.silent_s >= WRITE_S else ""
        return f"{self.phase}, {self.steps} steps{silent}"


def progress_path(scratch: Path) -> Path:
    """Where the first node of a run leaves its progress."""
    return scratch / "progress.json"


class ProgressNote:
    """Writes the progress of one node's ranks, now and then.

    Args:
        scratch: the folder in which the cell's processes meet.
    """

    def __init__(self, scratch: Path) -> None:
        self._path = progress_path(scratch)
        self._first_step_at: float | None = None
        self._due = 0.0

    def take(self, beats: Sequence[Beat]) -> None:
        """Note how far the ranks have come. A disk that is full does not end them."""
        if self._first_step_at is None and any(beat.steps for beat in beats):
            self._first_step_at = time.time()
        if time.monotonic() < self._due or not beats:
            return
        self._due = time.monotonic() + WRITE_S
        last = min(beats, key=lambda beat: beat.beats)
        note = CellProgress(
            phase=last.phase,
            steps=last.steps,
            silent_s=last.silent_s,
            first_step_at=self._first_step_at,
            at=time.time(),
        )
        with contextlib.suppress(OSError):
            write_text(self._path, note.model_dump_json())


def read_progress(scratch: Path) -> CellProgress | None:
    """The progress of a run; None where it has left none yet."""
    try:
        return CellProgress.model_validate_json(progress_path(scratch).read_text())
    except (OSError, ValidationError):
        return None
