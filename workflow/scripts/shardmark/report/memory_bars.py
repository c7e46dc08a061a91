"""Each strategy's share of the device memory, and its model state beside ZeRO's prediction."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from shardmark.quantities import describe_gpus
from shardmark.statistics.eligibility import counted
from shardmark.strategies import label_of

_COLUMNS = ["memory_used_peak_bytes", "state_bytes", "state_predicted_bytes"]


@dataclass(frozen=True)
class Bar:
    """One strategy.

    Attributes:
        used_pct: peak memory, as a share of the capacity.
        state_pct: model state per rank, as the same share; None if it was not measured.
        predicted_pct: the state that ZeRO's formulas predict, as the same share.
        text: these values in GiB.
    """

    label: str
    used_pct: float
    state_pct: float | None
    predicted_pct: float | None
    text: str


@dataclass(frozen=True)
class MemoryBars:
    """The strategies at the largest GPU count at which memory was measured.

    Attributes:
        headline: the main result in one sentence.
        capacity: memory of the device in GiB, the length of a full bar.
    """

    headline: str
    capacity: str
    bars: list[Bar]


def memory_bars(cells: pd.DataFrame) -> MemoryBars | None:
    """Return the bars of one workload; None if memory or capacity was not measured.

    Args:
        cells: rows of cells.csv of the workload.
    """
    runs = counted(cells)
    runs = runs[runs.memory_used_peak_bytes.notna() & runs.memory_capacity_bytes.notna()]
    if runs.empty:
        return None
    runs = runs[runs.gpus == runs.gpus.max()]
    medians = runs[_COLUMNS].astype(float).groupby(runs.strategy, sort=False).median() / 2**30
    capacity = float(runs.memory_capacity_bytes.min()) / 2**30
    compared = medians.index.isin(runs[runs.excluded == ""].strategy)
    used = medians.memory_used_peak_bytes[compared if compared.any() else slice(None)]
    where = describe_gpus(runs.device.iloc[0], int(runs.gpus.iloc[0]))
    least, most = (
        f"{used[name]:.1f} GiB with {label_of(str(name))}"
        for name in (used.idxmin(), used.idxmax())
    )
    both = least if len(used) == 1 else f"{least} and {most}"
    headline = f"On {where}, the fullest device holds {both}, of {capacity:.0f} GiB."
    return MemoryBars(
        headline,
        f"{capacity:.0f}",
        [_bar(str(name), row, capacity) for name, row in medians.iterrows()],
    )


def _bar(name: str, gib: pd.Series, capacity: float) -> Bar:
    used, state, predicted = gib[_COLUMNS]
    text = f"{used:.1f} GiB"
    if pd.notna(state):
        text += f", {state:.2f} of it model state"
    if pd.notna(predicted):
        text += f" ({predicted:.2f} predicted)"
    used_pct, state_pct, predicted_pct = (
        None if pd.isna(value) else 100 * value / capacity for value in (used, state, predicted)
    )
    return Bar(label_of(name), used_pct or 0.0, state_pct, predicted_pct, text)
