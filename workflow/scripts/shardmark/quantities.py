"""What is measured and shown: each quantity's column, name, unit, and how numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """A column of cells.csv as a reader sees it.

    Attributes:
        column: in cells.csv.
        label: its name.
        unit: of the shown number; empty for a plain number.
        scale: what the column's number is multiplied by to be shown in that unit.
        better: which direction is better, or None where neither is.
    """

    column: str
    label: str
    unit: str
    scale: float = 1.0
    better: Literal["higher", "lower"] | None = None

    @property
    def heading(self) -> str:
        """Name and unit, for the head of a column or an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


UTILISATION = Quantity("utilization_pct", "GPU utilisation", "%")
FINAL_LOSS = Quantity("final_loss", "Final loss", "")
MEMORY = Quantity("memory_used_peak_bytes", "Memory peak", "GiB", 2**-30, "lower")
POWER = Quantity("power_w", "Power", "W")
TRAINING_TIME = Quantity("training_s", "Training time", "s", 1.0, "lower")
THROUGHPUT = Quantity("images_per_s", "Throughput", "images/s", 1.0, "higher")
ENERGY = Quantity("energy_per_image_j", "Energy", "J/image", 1.0, "lower")
ACCURACY = Quantity("final_accuracy", "Test accuracy", "%", 100.0, "higher")

# The summary's, what decides first: the five of the table this project grew out of (utilisation,
# final loss, memory, power, training time), and what it lacked.
SUMMARY = (THROUGHPUT, TRAINING_TIME, MEMORY, ENERGY, POWER, UTILISATION, FINAL_LOSS, ACCURACY)

# The figures with a row a strategy, by their names.
OF_FIGURE = {
    "throughput": THROUGHPUT,
    "training_time": TRAINING_TIME,
    "memory": MEMORY,
    "energy": ENERGY,
    "power": POWER,
    "utilisation": UTILISATION,
    "final_loss": FINAL_LOSS,
    "accuracy": ACCURACY,
}

_ON_CPU = {"GPU utilisation": "CPU utilisation", "Memory peak": "Memory peak (resident)"}


def label_on(quantity: Quantity, device: str) -> Quantity:
    """The quantity as it is called on ``cuda`` or ``cpu``: there, another thing is measured."""
    if device == "cuda" or quantity.label not in _ON_CPU:
        return quantity
    return Quantity(
        quantity.column, _ON_CPU[quantity.label], quantity.unit, quantity.scale, quantity.better
    )


def replicas(device: str, count: int) -> str:
    """A GPU count in words; on a CPU replicas are processes."""
    if device == "cpu":
        return f"{count} process{'' if count == 1 else 'es'}"
    return f"{count} GPU{'' if count == 1 else 's'}"


def written(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits, thousands apart; an en dash where there is none.

    >>> written(14823.4), written(0.012345), written(None)
    ('14,823', '0.01235', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"
