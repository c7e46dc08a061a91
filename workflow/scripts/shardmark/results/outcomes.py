"""How every planned cell ended: one word and one sign for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shardmark.cells import cells_of
from shardmark.config import Config
from shardmark.metrics import Metrics
from shardmark.results.gaps import Gaps

# One sign for each outcome of a cell in the grid: told apart without colour.
SIGNS = {
    "ok": ("●", "ran to its end"),
    "suspect": ("◐", "ran, but a validity rule marks it"),
    "stale": ("○", "ran, with earlier code"),
    "oom": ("M", "out of memory"),
    "timeout": ("T", "over its time limit"),
    "diverged": ("D", "the loss diverged"),
    "failed": ("F", "failed"),
    "refused": ("R", "its file does not count: unreadable or of another definition"),
    "unsupported": ("–", "cannot run there, by plan"),
    "missing": ("·", "no result yet"),
}


def status_signs(config: Config, gaps: Gaps, metrics: Sequence[Metrics]) -> dict[Path, str]:
    """The outcome of each planned cell by its folder, one of ``SIGNS``."""
    signs = {cell.folder: "missing" for cell in cells_of(config)}
    for result in metrics:
        suspect = result.status == "ok" and result.validity == "suspect"
        signs[result.cell.folder] = "suspect" if suspect else result.status
    for cell, _ in gaps.stale:
        if signs[cell.folder] == "ok":
            signs[cell.folder] = "stale"
    for cell, _ in gaps.refused:
        signs[cell.folder] = "refused"
    return signs


def outcomes(config: Config, gaps: Gaps, metrics: Sequence[Metrics]) -> dict[str, int]:
    """How many cells ended how, in the order of ``SIGNS``."""
    count = Counter(status_signs(config, gaps, metrics).values())
    return {status: count[status] for status in SIGNS if count[status]}
