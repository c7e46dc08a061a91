"""Throughput, memory and energy against each other; highlights strategies that no other beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    FAINT,
    MM,
    Ticks,
    columns_of,
    lay_out,
    legend,
    legend_mm,
    marker,
    ticks_across,
)
from shardmark.quantities import Quantity
from shardmark.results.cell_rows import QUANTITIES

OBJECTIVES = ("items_per_s", "memory_used_peak_bytes", "energy_per_item_j")
ROW_MM = 32.0
# Height of the x axis labels, once per block of panels.
LABEL_MM = 9.0
# The legend's second line, for which a column of panels has room.
LINE_MM = 3.5
# Opacity of strategies that another one beats.
BEATEN_ALPHA = 0.35
# Medians of each strategy at one GPU count, by column, in the units that the figure shows.
Points = Mapping[str, Mapping[str, float]]


class Panel(NamedTuple):
    """A pair of objectives at one GPU count, its position, and which of its axes have labels."""

    axes: Axes
    gpus: int
    x: Quantity
    y: Quantity
    labelled: tuple[bool, bool]


def trade_off_figure(data: Data) -> Figure:
    """Draw the median of each strategy, in one panel per GPU count and pair of objectives.

    There is one row per GPU count and one column per pair. A narrow figure shows the GPU counts of
    one pair, then those of the next.
    """
    runs = data.counted
    measured = [QUANTITIES[name] for name in OBJECTIVES if runs[name].notna().any()]
    quantities = [quantity.on(data.device).of(data.unit) for quantity in measured]
    points = {count: median_points(data, count, quantities) for count in data.gpus}
    counts = [count for count in data.gpus if points[count]]
    pairs = list(itertools.combinations(quantities, 2))
    if not pairs or not counts:
        raise NothingToDraw("it needs two of throughput, memory and energy")
    figure, panels = _panels(data, counts, pairs)
    for panel in panels:
        _draw(panel, data, points[panel.gpus])
    drawn = [name for name in data.labels if any(name in own for own in points.values())]
    scales = _set_scales(panels, quantities)
    legend(figure, data, f"{scales}\npale: not compared, or another strategy beats it", drawn)
    lay_out(figure)
    return figure


def _panels(
    data: Data, counts: Sequence[int], pairs: Sequence[tuple[Quantity, Quantity]]
) -> tuple[Figure, list[Panel]]:
    columns = columns_of(data.width_mm, len(pairs), first_mm=4, panel_mm=40)
    beside = columns == len(pairs)
    across = 1 if beside else columns
    blocks = 1 if beside else len(pairs)
    rows_each = math.ceil(len(counts) / across)
    rows = rows_each * blocks
    height = rows * ROW_MM + blocks * LABEL_MM + legend_mm(data, len(data.labels))
    if beside:
        height += LINE_MM
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = figure.subplots(rows, columns, squeeze=False)
    left = dict(np.ndenumerate(grid))
    panels = []
    for (i, count), (j, pair) in itertools.product(enumerate(counts), enumerate(pairs)):
        place = (i, j) if beside else (j * rows_each + i // across, i % across)
        # Label x on the lowest panel of a column within a block, and y on the first of a row.
        labelled = (i + across >= len(counts), beside or place[1] == 0)
        panels.append(Panel(left.pop(place), count, *pair, labelled))
    for axes in left.values():
        axes.remove()
    return figure, panels


def _set_scales(panels: Sequence[Panel], quantities: Sequence[Quantity]) -> str:
    """Start an axis at 0 in all panels if it reaches 0 in one; return the scales in words."""
    from_0 = []
    for quantity in quantities:
        across = [panel.axes for panel in panels if panel.x == quantity]
        up = [panel.axes for panel in panels if panel.y == quantity]
        if any(axes.get_xlim()[0] <= 0 for axes in across) or any(
            axes.get_ylim()[0] <= 0 for axes in up
        ):
            from_0.append(quantity.label)
            for axes in across:
                axes.set_xlim(left=0)
            for axes in up:
                axes.set_ylim(bottom=0)
    if not from_0:
        return "All axes linear, not from 0"
    rest = ", the others not" if len(from_0) < len(quantities) else ""
    return f"All axes linear; from 0: {', '.join(from_0)}{rest}"


def median_points(data: Data, count: int, quantities: Sequence[Quantity]) -> Points:
    """Return the medians at a GPU count for each strategy that has all of the quantities."""
    part = data.counted[data.counted.gpus == count]
    points = {}
    for name in data.labels:
        runs = part[part.strategy == name]
        medians = {
            quantity.column: float(runs[quantity.column].median()) * quantity.scale
            for quantity in quantities
        }
        if not any(map(math.isnan, medians.values())):
            points[name] = medians
    return points


def _draw(panel: Panel, data: Data, points: Points) -> None:
    axes, pareto = panel.axes, data.pareto(panel.gpus)
    axes.set_title(data.describe_gpus(panel.gpus), loc="left")
    for name, own in points.items():
        unbeaten = name in pareto
        axes.plot(
            own[panel.x.column],
            own[panel.y.column],
            **marker(data.looks[name], 5 if unbeaten else 4),
            alpha=1 if unbeaten else BEATEN_ALPHA,
            zorder=3 if unbeaten else 2,
        )
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.margins(0.18)
    sides = ((axes.xaxis, panel.x, "←→"), (axes.yaxis, panel.y, "↓↑"))
    for (axis, one, arrows), labelled in zip(sides, panel.labelled, strict=True):
        across = axis is axes.xaxis
        few = data.narrow and across
        # Tick labels side by side need more room than above each other.
        axis.set_major_locator(ticks_across(few))
        axis.set_major_formatter(Ticks())
        if labelled:
            text = f"{one.heading} {arrows[one.better == 'higher']}"
            # A panel's height is less than the length of a heading.
            broken = few or not across
            axis.set_label_text(text.replace(" (", "\n(") if broken else text)
