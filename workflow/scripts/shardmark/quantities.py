"""How to show measured quantities: label, unit, better direction, and number format."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """How the report shows a column of cells.csv.

    Attributes:
        label: its name.
        unit: unit of the shown number; empty for a plain number. ``item`` in it is an image or a
            token.
        scale: factor from the column's number to the shown number.
        better: which direction is better; None if neither is.
        figure: name of the figure that shows one dot per run.
        label_on_cpu: its name in a matrix on CPUs, if something else is measured there.
        optional: whether a workload may be without it, so that no note calls it missing.
        column: its name in cells.csv; ``cell_rows.QUANTITIES`` fills it in.
    """

    label: str
    unit: str
    figure: str
    scale: float = 1.0
    better: Literal["higher", "lower"] | None = None
    label_on_cpu: str | None = None
    optional: bool = False
    column: str = ""

    @property
    def heading(self) -> str:
        """Label and unit, for a column heading or an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def on(self, device: str) -> Quantity:
        """Return the quantity with its label on this device, ``cuda`` or ``cpu``."""
        if device == "cpu" and self.label_on_cpu:
            return replace(self, label=self.label_on_cpu)
        return self

    def of(self, unit: str) -> Quantity:
        """Return the quantity with its unit in terms of what cells.csv names as ``unit``."""
        words = self.unit.replace("items", unit).replace("item", unit.removesuffix("s"))
        return replace(self, unit=words)


def describe_scaling(scaling: str) -> str:
    """Return in words how the batch grows with the GPU count."""
    fixed = {"strong": "global batch", "weak": "batch per GPU"}[scaling]
    return f"{scaling} scaling (fixed {fixed})"


def describe_gpus(device: str, count: int) -> str:
    """Return a GPU count in words; on CPUs the replicas are processes."""
    if device == "cpu":
        return f"{count} process{'' if count == 1 else 'es'}"
    return f"{count} GPU{'' if count == 1 else 's'}"


def replicas_noun(device: str) -> str:
    """Return what one replica runs on: a GPU, or a process on CPUs."""
    return "process" if device == "cpu" else "GPU"


def replicas_heading(device: str) -> str:
    """Return what a column or an axis of GPU counts is called; on CPUs they are processes."""
    return "Processes" if device == "cpu" else "GPUs"


def format_number(value: float | None, digits: int = 4) -> str:
    """Format a number with this many significant digits; None becomes an en dash.

    >>> format_number(14823.4), format_number(0.012345), format_number(None)
    ('14,823', '0.01235', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")  # 99.96 becomes 100, not 100.0
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}"


def percent(ratio: float, places: int = 1) -> str:
    """Format a ratio as a signed difference, with no sign where it rounds to nothing."""
    change = f"{100 * (ratio - 1):+.{places}f}"
    return f"{0:.{places}f} %" if float(change) == 0 else f"{change.replace('-', '−')} %"
