"""Throughput, memory and energy against each other; highlights strategies that no other beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    FAINT,
    GREY,
    MM,
    columns_of,
    lay_out,
    legend,
    legend_mm,
    marker,
    tick,
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
MARKER_PT = 6.0
# Directions from a point to its name, best first, and distances.
SIDES = tuple(
    (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    for angle in (0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 68, 292, 112, 248)
)
DISTANCES_PT = (4.5, 8.0, 12.0, 17.0, 24.0, 32.0)
# A name without a line is at least this many times nearer to its point than to any other.
CLEARLY_NEARER = 1.5
_ACROSS: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
_UP: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}

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
    legend(figure, data, f"{scales}\npale: another strategy beats it", drawn)
    lay_out(figure)
    for panel in panels:
        _name_points(panel, data, points[panel.gpus])
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


def _name_points(panel: Panel, data: Data, points: Points) -> None:
    """Write names beside the points, first those of strategies that no other beats.

    A line joins a distant name to its point. A name is left out if it would cover something or be
    nearer to another point; the legend has all names.
    """
    axes, pareto = panel.axes, data.pareto(panel.gpus)
    figure = axes.get_figure(root=True)
    assert figure is not None
    places = {name: (own[panel.x.column], own[panel.y.column]) for name, own in points.items()}
    pixels = {name: tuple(axes.transData.transform(place)) for name, place in places.items()}
    scale = figure.dpi / 72
    half = MARKER_PT / 2 * scale
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in pixels.values()]
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    for name in sorted(points, key=lambda name: name not in pareto):
        text = axes.annotate(
            data.labels[name],
            places[name],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7,
            color="black" if name in pareto else GREY,
        )
        text.set_in_layout(False)
        size = np.asarray(text.get_window_extent(renderer).size)
        for distance, (dx, dy) in itertools.product(DISTANCES_PT, SIDES):
            offset = (distance * dx, distance * dy)
            # The side of the name that is towards the point, or its middle, is at the offset.
            near = np.add(pixels[name], np.multiply(offset, scale))
            lowest = near - size * (1 - np.round((dx, dy))) / 2
            box = Bbox([lowest, lowest + size])
            corners_inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
            if not corners_inside or box.count_overlaps(taken):
                continue
            away = distance > DISTANCES_PT[0]
            limit = _distance(box, pixels[name]) * (1 if away else CLEARLY_NEARER)
            if any(_distance(box, pixels[other]) < limit for other in pixels if other != name):
                continue
            if away:
                line = {"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 0}
                axes.annotate(
                    "", places[name], offset, textcoords="offset points", arrowprops=line
                ).set_in_layout(False)
            text.set(ha=_ACROSS[round(dx)], va=_UP[round(dy)], position=offset)
            taken.append(box)
            break
        else:
            text.remove()


def _distance(box: Bbox, point: tuple[float, ...]) -> float:
    """Return the distance from a point to the nearest point of a box, pixels."""
    return math.dist(np.clip(point, box.min, box.max), point)


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
        axis.set_major_formatter(tick)
        if labelled:
            text = f"{one.heading} {arrows[one.better == 'higher']}"
            # A panel's height is less than the length of a heading.
            broken = few or not across
            axis.set_label_text(text.replace(" (", "\n(") if broken else text)
