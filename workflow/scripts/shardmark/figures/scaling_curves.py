"""Throughput and scaling efficiency over GPU counts, one panel per strategy."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    FAINT,
    GREY,
    LETTERS_PER_MM,
    MM,
    Ticks,
    columns_of,
    describe_linear_axis,
    dots_of_runs,
    keep_wide,
    marker,
)
from shardmark.quantities import replicas_heading
from shardmark.results.cell_rows import QUANTITIES

THROUGHPUT = QUANTITIES["items_per_s"]
# A grey with a contrast of 3:1 on white.
OTHERS = "#949494"
IDEAL = (0, (3, 2))


def scaling_figure(data: Data) -> Figure:
    """Draw each strategy's throughput over GPU counts with ideal growth, the others in grey."""
    medians = data.counted.groupby(["strategy", "gpus"])[THROUGHPUT.column].median().dropna()
    if medians.index.get_level_values("gpus").nunique() < 2:
        raise NothingToDraw("scaling needs two GPU counts with a result")
    figure, panels = _panels(data)
    # Within one decade, ticks at 1, 2 and 5 are too few.
    subs = (1, 2, 5) if medians.max() > 10 * medians.min() else (1, 1.5, 2, 3, 5, 7)
    present = list(medians.index.get_level_values("strategy").unique())
    for name, axes in panels:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_major_formatter(Ticks())
        axes.yaxis.set_minor_locator(NullLocator())
        _draw(axes, data, name, {other: medians[other] for other in present})
        if name in present:
            if name in set(data.compared.strategy):
                own = data.compared[data.compared.strategy == name]
                first, last = int(own.gpus.min()), data.gpus[-1]
                smallest = medians[name][first]
                axes.plot([first, last], [smallest, smallest * last / first], **_IDEAL_LINE)
            runs = data.ok[data.ok.strategy == name]
            dots_of_runs(axes, data, name, runs.gpus, runs[THROUGHPUT.column])
    figure.supylabel(f"{THROUGHPUT.of(data.unit).heading}\nlogarithmic", fontsize=8)
    return figure


def efficiency_figure(data: Data) -> Figure:
    """Draw each strategy's scaling efficiency over GPU counts, with its interval."""
    known = data.scaling.dropna(subset=["efficiency"])
    if known.empty or (known.gpus == known.reference_gpus).all():
        raise NothingToDraw("no strategy has results at two GPU counts that can be compared")
    figure, panels = _panels(data)
    lines = {
        str(name): 100 * part.set_index("gpus").efficiency.sort_index()
        for name, part in known.groupby("strategy")
        if part.gpus.nunique() > 1
    }
    for name, axes in panels:
        axes.axhline(100, **_IDEAL_LINE)
        _draw(axes, data, name, lines, data.why_no_efficiency(name))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[2.5, 5, 10]))
        own = known[(known.strategy == name) & known.efficiency_low.notna()]
        if len(own):
            axes.vlines(
                own.gpus,
                100 * own.efficiency_low,
                100 * own.efficiency_high,
                color=data.looks[name].colour,
                linewidth=1.2,
            )
    for _, axes in panels:
        axes.margins(y=0.1)
        keep_wide(axes, "y")
        axes.yaxis.set_major_formatter(Ticks())
    scale = describe_linear_axis([axes for _, axes in panels], "y")
    figure.supylabel(f"Scaling efficiency (%)\n{scale}", fontsize=8)
    return figure


_IDEAL_LINE: dict[str, Any] = {"color": GREY, "linestyle": IDEAL, "linewidth": 0.8}


def _panels(data: Data) -> tuple[Figure, list[tuple[str, Axes]]]:
    left_mm = 14
    columns = columns_of(data.width_mm, len(data.labels), first_mm=left_mm)
    # Bold letters are wider.
    letters = int((data.width_mm - left_mm) / columns * LETTERS_PER_MM * 0.84)
    rows = math.ceil(len(data.labels) / columns)
    figure = Figure(figsize=(data.width_mm * MM, (rows * 36 + 14) * MM))
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in grid[len(data.labels) :]:
        axes.remove()
    panels = list(zip(data.labels, grid, strict=False))
    for place, (name, axes) in enumerate(panels):
        title = textwrap.fill(data.labels[name], letters)
        axes.set_title(title, loc="left", weight="bold")
        axes.set_xscale("log", base=2)
        axes.set_xticks(data.gpus, [str(count) for count in data.gpus])
        axes.xaxis.set_minor_locator(NullLocator())
        # Label the lowest panel of each column, even if the last row is not full.
        axes.tick_params(labelbottom=place + columns >= len(panels))
        axes.grid(color=FAINT, linewidth=0.5)
    unit = replicas_heading(data.device)
    figure.supxlabel(f"{unit}, logarithmic; {data.scaling_in_words}\ndashed: ideal", fontsize=8)
    return figure, panels


def _draw(
    axes: Axes, data: Data, name: str, lines: dict[str, pd.Series], absent: str = "no result"
) -> None:
    for _, line in _others(lines, name):
        axes.plot(line.index, line, color=OTHERS, linewidth=0.5, zorder=1)
    if name not in lines:
        axes.text(
            *(0.5, 0.05, absent),
            transform=axes.transAxes,
            ha="center",
            color=GREY,
            bbox={"color": "white", "pad": 1},
        )
        return
    look, own = data.looks[name], lines[name]
    axes.plot(own.index, own, color=look.colour, linewidth=1.3)
    axes.plot(own.index, own, linestyle="none", **marker(look, 4.5))


def _others(lines: dict[str, pd.Series], name: str) -> Iterator[tuple[str, pd.Series]]:
    return ((other, line) for other, line in lines.items() if other != name)
