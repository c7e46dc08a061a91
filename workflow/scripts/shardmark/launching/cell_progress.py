"""Keep a running cell's progress in a file that other machines can read. Imports no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from shardmark.cells import Cell
from shardmark.config.values import Section
from shardmark.files import write_text
from shardmark.processes.heartbeat import Beat

# Seconds between two writes. People read the file, on a shared file system.
WRITE_S = 5.0
TRAINING = ("compilation", "first_step", "training", "evaluation")


class CellProgress(Section):
    """Progress of the rank that is furthest behind on the first node.

    Attributes:
        phase: the phase it is in.
        steps: optimizer steps it has begun.
        silent_s: seconds since its last progress.
        first_step_at: when a rank's first step was noticed, in seconds since the epoch.
        at: when this was recorded, in seconds since the epoch.
    """

    phase: str
    steps: int
    silent_s: float
    first_step_at: float | None
    at: float

    def left_s(self, cell: Cell) -> float | None:
        """Estimate the seconds until the cell ends from its pace; None before it has one.

        The estimate leaves out remaining set-up and the last evaluation.
        """
        total = cell.definition.epochs * cell.steps_per_epoch
        if self.phase not in TRAINING or self.first_step_at is None or self.steps < 2:
            return None
        pace_s = (self.at - self.first_step_at) / self.steps
        return max(0, total - self.steps) * pace_s + cell.measure.steady_min_s

    def __str__(self) -> str:
        silent = f", silent for {self.silent_s:.0f} s" if self.silent_s >= WRITE_S else ""
        return f"{self.phase}, {self.steps} steps{silent}"


def progress_path(scratch: Path) -> Path:
    """Return the path of the progress that the first node of a run writes."""
    return scratch / "progress.json"


class ProgressNote:
    """Writes the progress of one node's ranks, at most once in WRITE_S seconds.

    Args:
        scratch: the scratch folder of the cell.
    """

    def __init__(self, scratch: Path) -> None:
        self._path = progress_path(scratch)
        self._first_step_at: float | None = None
        self._due = 0.0

    def take(self, beats: Sequence[Beat]) -> None:
        """Record how far the ranks have come; a full disk is ignored and does not end them."""
        if self._first_step_at is None and any(beat.steps for beat in beats):
            self._first_step_at = time.time()
        if time.monotonic() < self._due or not beats:
            return
        self._due = time.monotonic() + WRITE_S
        slowest = min(beats, key=lambda beat: beat.beats)
        note = CellProgress(
            phase=slowest.phase,
            steps=slowest.steps,
            silent_s=slowest.silent_s,
            first_step_at=self._first_step_at,
            at=time.time(),
        )
        with contextlib.suppress(OSError):
            write_text(self._path, note.model_dump_json())


def read_progress(scratch: Path) -> CellProgress | None:
    """Read the progress of a run; None if it has not written any yet."""
    try:
        return CellProgress.model_validate_json(progress_path(scratch).read_text())
    except (OSError, ValidationError):
        return None
