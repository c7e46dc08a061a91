"""A finding of the doctor, printed as one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``FAIL`` if the matrix cannot run, ``warn`` if its figures may suffer.
        what: what was checked.
        detail: what the check showed.
        advice: what to do about it.
    """

    level: Level
    what: str
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        detail = " ".join(self.detail.split())
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:4}  {self.what:14}  {detail}{advice}"
