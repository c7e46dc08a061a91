"""Throughput, memory and energy against each other, with the strategies that nothing beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from shardmark.figures.drawing import (
    FAINT,
    MM,
    Data,
    NothingToDraw,
    columns_of,
    legend,
    legend_mm,
    marker,
    tick,
)
from shardmark.quantities import ENERGY, MEMORY, THROUGHPUT, Quantity, label_on

OBJECTIVES = (THROUGHPUT, MEMORY, ENERGY)
ROW_MM = 32.0
# What the labels of x axes take, once a block of panels.
LABEL_MM = 9.0
LABEL_PT = 7
INK = "#333333"
# Those off the front stand back.
BEATEN_ALPHA = 0.35
# How many times nearer its own point than any other a name must stand.
CLEARLY = 1.3
# Where a name may stand beside its point, in points: nearest first.
PLACES = [
    (distance * math.cos(angle), distance * math.sin(angle))
    for distance in (6, 11, 17)
    for angle in (math.radians(degrees) for degrees in (0, 180, 45, -45, 135, -135, 90, -90))
]

# The medians of the strategies at one GPU count, in the units that are shown, by column.
Points = Mapping[str, Mapping[str, float]]


class Panel(NamedTuple):
    """A pair of objectives at a GPU count, where it is drawn, and which axes it labels."""

    axes: Axes
    gpus: int
    x: Quantity
    y: Quantity
    labelled: tuple[bool, bool]


def trade_off_figure(data: Data) -> Figure:
    """A panel a GPU count and pair of objectives: the median of each strategy.

    A row a GPU count, a column a pair; on a narrow figure the GPU counts of one pair, then those of
    the next.
    """
    runs = data.counted
    shown = [label_on(one, data.device) for one in OBJECTIVES if runs[one.column].notna().any()]
    points = {count: points_of(data, count, shown) for count in data.gpus}
    counts = [count for count in data.gpus if points[count]]
    pairs = list(itertools.combinations(shown, 2))
    if not pairs or not counts:
        raise NothingToDraw("it needs two of throughput, memory and energy")
    figure, panels = _panels(data, counts, pairs)
    best = {}
    for count in counts:
        compared = data.compared_at(count)
        rivals = {name: own for name, own in points[count].items() if name in compared}
        best[count] = front(rivals, shown)
    for panel in panels:
        _draw(panel, data, points[panel.gpus], best[panel.gpus])
    legend(figure, data)
    _name(figure, data, panels, points, best)
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
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = figure.subplots(rows, columns, squeeze=False)
    left = dict(np.ndenumerate(grid))
    panels = []
    for (i, count), (j, pair) in itertools.product(enumerate(counts), enumerate(pairs)):
        place = (i, j) if beside else (j * rows_each + i // across, i % across)
        # The lowest panel of its column in a block, and the first of its row.
        labelled = (i + across >= len(counts), beside or place[1] == 0)
        panels.append(Panel(left.pop(place), count, *pair, labelled))
    for axes in left.values():
        axes.remove()
    return figure, panels


def points_of(data: Data, count: int, shown: Sequence[Quantity]) -> Points:
    """Of each strategy with all of the quantities, the medians of its runs at a GPU count."""
    part = data.counted[data.counted.gpus == count]
    found = {}
    for name in data.labels:
        runs = part[part.strategy == name]
        medians = {one.column: float(runs[one.column].median()) * one.scale for one in shown}
        if not any(map(math.isnan, medians.values())):
            found[name] = medians
    return found


def front(points: Points, objectives: Sequence[Quantity]) -> list[str]:
    """The strategies whose medians no other's are better than by one and as good as by all.

    Args:
        points: the medians of each.
        objectives: the columns, and which direction of them is better.
    """
    costs = {
        name: [own[one.column] * (-1 if one.better == "higher" else 1) for one in objectives]
        for name, own in points.items()
    }
    return [
        name
        for name, own in costs.items()
        if not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for other in costs.values()
        )
    ]


def _draw(panel: Panel, data: Data, points: Points, best: Sequence[str]) -> None:
    axes = panel.axes
    axes.set_title(data.replicas(panel.gpus), loc="left")
    for name, own in points.items():
        x, y = own[panel.x.column], own[panel.y.column]
        if name in data.pareto.get(panel.gpus, ()):
            axes.plot(
                x,
                y,
                marker="o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=0.6,
            )
        of_front = name in best
        axes.plot(
            x,
            y,
            **marker(data.looks[name], 5 if of_front else 4),
            alpha=1 if of_front else BEATEN_ALPHA,
            zorder=3 if of_front else 2,
        )
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.margins(0.18)
    sides = ((axes.xaxis, panel.x, "←→"), (axes.yaxis, panel.y, "↓↑"))
    for (axis, one, arrows), labelled in zip(sides, panel.labelled, strict=True):
        across = axis is axes.xaxis
        few = data.narrow and across
        # Side by side, numbers take more room than one above the other.
        bins = (2 if data.narrow else 3) if across else 4
        axis.set_major_locator(MaxNLocator(nbins=bins, min_n_ticks=2))
        axis.set_major_formatter(tick)
        if labelled:
            text = f"{one.heading} {arrows[one.better == 'higher']}"
            # A panel is less high than a heading is long.
            broken = few or not across
            axis.set_label_text(text.replace(" (", "\n(") if broken else text)


def _name(
    figure: Figure,
    data: Data,
    panels: Sequence[Panel],
    points: Mapping[int, Points],
    best: Mapping[int, Sequence[str]],
) -> None:
    """Name the best points, each where there is room; the legend names all.

    Places are tried one by one, since only the laid out figure knows where its texts are.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    for axes, count, x, y, _ in panels:
        at = {name: (own[x.column], own[y.column]) for name, own in points[count].items()}
        pixels = {name: axes.transData.transform(place) for name, place in at.items()}
        reach = 4 * figure.dpi / 72
        taken = [_around(place, reach) for place in pixels.values()]
        frame = axes.get_window_extent(renderer)
        for name in best[count]:
            text = axes.annotate(
                data.labels[name],
                at[name],
                xytext=PLACES[0],
                textcoords="offset points",
                fontsize=LABEL_PT,
                color=INK,
                va="center",
            )
            for offset, side in _places():
                text.set(position=offset, ha=side)
                box = text.get_window_extent(renderer)
                clear = _holds(frame, box) and not any(box.overlaps(other) for other in taken)
                if clear and _names(box, name, pixels):
                    taken.append(box)
                    break
            else:
                text.remove()


def _places() -> Iterator[tuple[tuple[float, float], str]]:
    for x, y in PLACES:
        yield (x, y), "center" if abs(x) < 1 else "left" if x > 0 else "right"


def _names(box: Bbox, name: str, pixels: Mapping[str, Any]) -> bool:
    """Whether a reader would take a text in this place to name that point and no other."""

    def distance(point: str) -> float:
        x, y = pixels[point]
        aside = max(box.x0 - x, 0, x - box.x1)
        return math.hypot(aside, max(box.y0 - y, 0, y - box.y1))

    others = [distance(point) for point in pixels if point != name]
    return distance(name) * CLEARLY < min(others, default=math.inf)


def _around(place: Any, reach: float) -> Bbox:
    return Bbox.from_extents(place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach)


def _holds(frame: Bbox, box: Bbox) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
    return bool(inside and frame.y0 <= box.y0 and box.y1 <= frame.y1)
