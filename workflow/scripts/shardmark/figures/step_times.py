"""The distribution of step times in the steady window, one row per strategy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    LEFT_OUT,
    Ticks,
    absent,
    describe_linear_axis,
    marker,
    panels_of_counts,
    ticks_across,
)

# Up to this ratio between the slowest and the fastest steps, the axes are linear.
LINEAR_UP_TO = 4.0
# Margin of a logarithmic axis, as a factor.
MARGIN = 1.2


def step_time_figure(data: Data) -> Figure:
    """Draw the steps of all runs and the median of each run, in one panel per GPU count."""
    if data.steps.empty:
        raise NothingToDraw("no cell has a steps.csv with a steady window")
    counts = [count for count in data.gpus if (data.steps.gpus == count).any()]
    figure, panels = panels_of_counts(data, counts, rows_mm=20)
    for count, axes in panels:
        _distributions(axes, data, count)
    scale = _set_scale([axes for _, axes in panels], data.steps, data.narrow)
    figure.supxlabel(f"Step of the slowest rank (ms)  ←  better\n{scale}", fontsize=8)
    return figure


def _distributions(axes: Axes, data: Data, count: int) -> None:
    part = data.steps[data.steps.gpus == count]
    compared = data.compared_at(count)
    for row, name in enumerate(data.labels):
        steps = part[part.strategy == name]
        if steps.empty:
            absent(axes, row, data.describe_absence(name, count))
            continue
        look = data.looks[name]
        low, first, middle, third, p90, p99 = steps.step_ms.quantile(
            [0.01, 0.25, 0.5, 0.75, 0.9, 0.99]
        )
        alpha = 1.0 if name in compared else LEFT_OUT
        axes.plot([low, p99], [row, row], color=look.colour, linewidth=0.8, alpha=alpha)
        band = 0.45 * alpha
        axes.plot([first, third], [row, row], color=look.colour, linewidth=3.5, alpha=band)
        for end, half in ((p90, 0.18), (p99, 0.3)):
            axes.vlines(end, row - half, row + half, color=look.colour, linewidth=1.0, alpha=alpha)
        runs = steps.groupby("seed").step_ms.median()
        axes.plot(
            runs,
            [row + 0.32] * len(runs),
            linestyle="none",
            marker="|",
            markersize=3,
            markeredgecolor=look.colour,
            markeredgewidth=0.7,
            alpha=alpha,
        )
        axes.plot(middle, row, **marker(look, 5), alpha=alpha)


def _set_scale(panels: Sequence[Axes], steps: pd.DataFrame, narrow: bool) -> str:
    """Set the scale of all panels, and return it in words."""
    lines = steps.groupby(["gpus", "strategy"]).step_ms
    low, high = float(lines.quantile(0.01).min()), float(lines.quantile(0.99).max())
    if high <= LINEAR_UP_TO * low:
        for axes in panels:
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(ticks_across(narrow))
            axes.xaxis.set_major_formatter(Ticks())
        return describe_linear_axis(panels, "x")
    for axes in panels:
        axes.set_xscale("log")
        # All panels share the limits: a logarithmic axis with a narrow range would have no tick.
        axes.set_xlim(low / MARGIN, high * MARGIN)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(Ticks())
    return "logarithmic"
