"""The distribution of step times in the steady window, one row per strategy."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import LEFT_OUT, absent, marker, panels_of_counts, tick

# Up to this ratio between a slower and a faster strategy's steps, the axis is linear.
LINEAR_UP_TO = 4.0


def step_time_figure(data: Data) -> Figure:
    """Draw the steps of all runs and the median of each run, in one panel per GPU count."""
    if data.steps.empty:
        raise NothingToDraw("no cell has a steps.csv with a steady window")
    counts = [count for count in data.gpus if (data.steps.gpus == count).any()]
    figure, panels = panels_of_counts(data, counts, rows_mm=16)
    for count, axes in panels:
        _distributions(axes, data, count)
    figure.supxlabel("Step of the slowest rank (ms)  ←  better", fontsize=8)
    return figure


def _distributions(axes: Axes, data: Data, count: int) -> None:
    part = data.steps[data.steps.gpus == count]
    compared = data.compared_at(count)
    for row, name in enumerate(data.labels):
        steps = part[part.strategy == name]
        if steps.empty:
            absent(axes, row, data.outcome(name, count))
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
    _scale(axes, float(part.step_ms.quantile(0.01)), float(part.step_ms.quantile(0.99)))


def _scale(axes: Axes, low: float, high: float) -> None:
    if low > 0 and high / low > LINEAR_UP_TO:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(tick)
