"""How a cell ended: the words that tables, terminal, figures and report page share."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a planned cell ended, in the order in which outcomes are listed."""

    OK = "ok"
    DEVICE_FAULT = "device fault"
    STALE = "stale"
    OOM = "oom"
    TIMEOUT = "timeout"
    DIVERGED = "diverged"
    FAILED = "failed"
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    MISSING = "missing"

    @property
    def sign(self) -> str:
        """One character for a grid; the signs differ even without colour."""
        return _SIGNS[self][0]

    @property
    def meaning(self) -> str:
        """What it means, in words."""
        return _SIGNS[self][1]


_SIGNS = {
    Outcome.OK: ("●", "ran to its end"),
    Outcome.DEVICE_FAULT: ("◐", "excluded for a device fault"),
    Outcome.STALE: ("○", "ran, with earlier code"),
    Outcome.OOM: ("M", "out of memory"),
    Outcome.TIMEOUT: ("T", "out of time"),
    Outcome.DIVERGED: ("D", "diverged"),
    Outcome.FAILED: ("F", "failed"),
    Outcome.REFUSED: ("R", "its file does not count"),
    Outcome.UNSUPPORTED: ("–", "cannot run"),
    Outcome.MISSING: ("·", "no result yet"),
}
