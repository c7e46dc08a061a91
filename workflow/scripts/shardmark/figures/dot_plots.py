"""Dot plots of one quantity: one dot per run, one row per strategy, one panel per GPU count."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    LEFT_OUT,
    Ticks,
    absent,
    describe_linear_axis,
    dots_of_runs,
    keep_wide,
    marker,
    panels_of_counts,
    ticks_across,
)
from shardmark.quantities import Quantity

# What can be compared between GPU counts, so that their panels have one scale.
_OF_ONE_DEVICE_OR_ITEM = ("memory_used_peak_bytes", "energy_per_item_j", "utilization_pct")


def dot_plot(data: Data, quantity: Quantity) -> Figure:
    """Draw one dot per run and a larger one for the median, in a row per strategy.

    There is one panel per GPU count. Runs that take no part in comparisons are pale.
    """
    quantity = quantity.on(data.device).of(data.unit)
    if not len(data.ok) or data.ok[quantity.column].isna().all():
        raise NothingToDraw(f"{quantity.label} was not measured")
    figure, panels = panels_of_counts(data, data.gpus, rows_mm=20)
    for count, axes in panels:
        _dots(axes, data, quantity, count)
    if quantity.column in _OF_ONE_DEVICE_OR_ITEM:
        ends = [end for _, axes in panels if axes.has_data() for end in axes.get_xlim()]
        # Room for a marker of a panel whose values lie close together, at the end of the scale.
        room = 0.04 * (max(ends) - min(ends))
        for _, axes in panels:
            axes.set_xlim(min(ends) - room, max(ends) + room)
    scale = describe_linear_axis([axes for _, axes in panels], "x")
    figure.supxlabel(f"{quantity.heading}{_arrow(quantity)}\n{scale}", fontsize=8)
    return figure


def _dots(axes: Axes, data: Data, quantity: Quantity, count: int) -> None:
    part, compared = data.ok[data.ok.gpus == count], data.compared_at(count)
    for row, name in enumerate(data.labels):
        values = part[quantity.column].astype(float)[part.strategy == name] * quantity.scale
        if values.isna().all():
            absent(axes, row, data.describe_absence(name, count))
            continue
        look = data.looks[name]
        dots_of_runs(axes, data, name, values, pd.Series(row, index=values.index))
        middle = values[values.index.isin(data.counted.index)].median()
        axes.plot(middle, row, **marker(look, 5.5), alpha=None if name in compared else LEFT_OUT)
    _x_of_dots(axes, data.narrow)


def _x_of_dots(axes: Axes, narrow: bool) -> None:
    """Set ticks and some margin. The axis need not start at zero: dots compare by position."""
    keep_wide(axes, "x")
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(ticks_across(narrow))
    axes.xaxis.set_major_formatter(Ticks())


def _arrow(quantity: Quantity) -> str:
    return {"higher": "  →  better", "lower": "  ←  better", None: ""}[quantity.better]
