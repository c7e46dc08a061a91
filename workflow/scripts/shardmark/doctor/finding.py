"""What the doctor finds: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``FAIL`` where the matrix cannot run, ``warn`` where its figures may suffer.
        what: what was looked at.
        found: what there is.
        advice: what to do about it.
    """

    level: Level
    what: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        found = " ".join(self.found.split())
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:4}  {self.what:14}  {found}{advice}"
