"""What all figures share: style, panels, legends, and saving."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, MaxNLocator

from shardmark.figures.data import Data, Look
from shardmark.files import replacing

MM = 1 / 25.4
GREY = "#666666"
FAINT = "#DDDDDD"
ROW_MM = 5.0
# A figure with fewer rows has no room for the axis below them.
FEWEST_ROWS = 3
# Minimum width of panels side by side: a column of 85 mm has two.
PANEL_MM = 27.0
# Opacity of a run's marker if it takes part in comparisons, and if it does not.
COMPARED = 0.8
LEFT_OUT = 0.3
# For wrapped text in 8 pt.
LETTERS_PER_MM = 0.6
PNG_DPI = 200
STYLE = mpl.RcParams(
    {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.0,
        "xtick.color": "#333333",
        "ytick.color": "#333333",
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "figure.constrained_layout.use": True,
        # A fixed salt, so that the same data give the same file.
        "svg.hashsalt": "shardmark",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
    }
)


def save(figure: Figure, path: Path) -> None:
    """Write the figure atomically, in the format of the path's suffix.

    The canvases are called directly, because ``Figure.savefig`` draws every figure twice. Dates
    are left out, so that the same data give the same file.
    """
    with replacing(path) as partial, mpl.rc_context(STYLE):
        canvas: Any
        match path.suffix:
            case ".svg":
                canvas = FigureCanvasSVG(figure)
                canvas.print_svg(partial, metadata={"Date": None})
            case ".pdf":
                canvas = FigureCanvasPdf(figure)
                canvas.print_pdf(partial, metadata={"CreationDate": None})
            case _:
                figure.dpi = PNG_DPI
                canvas = FigureCanvasAgg(figure)
                canvas.print_png(partial)


def lay_out(figure: Figure) -> None:
    """Place panels and legends once; matplotlib would do it again for each format."""
    engine = figure.get_layout_engine()
    if engine:
        engine.execute(figure)
        figure.set_layout_engine("none")


def columns_of(width_mm: float, panels: int, *, first_mm: float, panel_mm: float = PANEL_MM) -> int:
    """Return how many panels fit side by side; ``first_mm`` is the width of the left labels."""
    return max(1, min(panels, 4, int((width_mm - first_mm) // panel_mm)))


def panels_of_counts(
    data: Data, counts: Sequence[int], *, rows_mm: float, panel_mm: float = PANEL_MM
) -> tuple[Figure, list[tuple[int, Axes]]]:
    """Return a figure with one panel per GPU count, whose rows are the strategies.

    Args:
        data: names the strategies.
        counts: the GPU counts.
        rows_mm: height of a panel's title and axis, in addition to its rows.
        panel_mm: minimum width of a panel.
    """
    columns = columns_of(data.width_mm, len(counts), first_mm=30, panel_mm=panel_mm)
    bands = math.ceil(len(counts) / columns)
    height = bands * (max(len(data.labels), FEWEST_ROWS) * ROW_MM + rows_mm)
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = list(figure.subplots(bands, columns, squeeze=False, sharey=True).flat)
    for axes in grid[len(counts) :]:
        axes.remove()
    panels = list(zip(counts, grid, strict=False))
    for count, axes in panels:
        axes.set_title(data.describe_gpus(count), loc="left")
        axes.set_ylim(len(data.labels) - 0.4, -0.6)
        axes.set_yticks(range(len(data.labels)), list(data.labels.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def absent(axes: Axes, row: float, text: str) -> None:
    """Write into a row of a panel why nothing is drawn there."""
    axes.text(
        0.03,
        row,
        text,
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=7,
        color=GREY,
        style="italic",
        bbox={"color": "white", "pad": 0.5},
    )


def legend_of(
    figure: Figure, width_mm: float, handles: Sequence[Artist], title: str = "", each_mm: float = 42
) -> None:
    """Draw a legend below the panels, with as many entries side by side as fit.

    Its title replaces the figure's x label, which matplotlib would draw over the legend.
    """
    columns = max(1, min(len(handles), int(width_mm // each_mm)))
    drawn = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=title or None,
        title_fontsize=8,
    )
    drawn.get_title().set_multialignment("center")


def marker(look: Look, size: float) -> dict[str, Any]:
    """Return a strategy's marker as matplotlib's line properties."""
    return {
        "marker": look.marker,
        "markersize": size,
        "markerfacecolor": "white" if look.open_face else look.colour,
        "markeredgecolor": look.colour if look.open_face else "white",
        "markeredgewidth": 1.0 if look.open_face else 0.4,
    }


def dots_of_runs(axes: Axes, data: Data, name: str, x: pd.Series, y: pd.Series) -> None:
    """Draw one open marker per run, pale if the run takes no part in comparisons.

    Args:
        axes: where to draw.
        data: says which runs are compared.
        name: the strategy.
        x: position of each run, by its index in ``data.cells``.
        y: likewise.
    """
    look = data.looks[name]
    compared = x.index.isin(data.compared.index)
    for these, alpha in ((compared, COMPARED), (~compared, LEFT_OUT)):
        axes.plot(
            x[these],
            y[these],
            linestyle="none",
            marker=look.marker,
            markersize=3.5,
            markerfacecolor="none",
            markeredgecolor=look.colour,
            markeredgewidth=0.7,
            alpha=alpha,
        )


def legend(figure: Figure, data: Data, title: str, drawn: Sequence[str]) -> None:
    """Draw the legend of the drawn strategies.

    Its title is a line about the axes, then the strategies that are not drawn with their outcomes.
    """
    handles = [
        Line2D([], [], color=data.looks[name].colour, linewidth=1, label=data.labels[name])
        for name in drawn
    ]
    for handle, name in zip(handles, drawn, strict=True):
        handle.set(**marker(data.looks[name], 5))
    left_out = [
        f"{label} ({data.describe_absence(name)})"
        for name, label in data.labels.items()
        if name not in drawn
    ]
    lines = [title]
    if left_out:
        lines += textwrap.wrap(
            f"Not drawn: {'; '.join(left_out)}", int(data.width_mm * LETTERS_PER_MM)
        )
    legend_of(figure, data.width_mm, handles, "\n".join(lines))


def legend_mm(data: Data, entries: int, each_mm: float = 42) -> float:
    """Return the height of a legend with this many entries, mm."""
    return 5 * math.ceil(entries / max(1, int(data.width_mm // each_mm))) + 8


def describe_linear_axis(panels: Sequence[Axes], name: Literal["x", "y"]) -> str:
    """Return in words where a linear axis of all panels starts.

    If it reaches 0 in one panel, let it start at 0 in all.
    """
    axes = [getattr(panel, f"{name}axis") for panel in panels]
    starts = [axis.get_view_interval()[0] for axis in axes]
    if min(starts) > 0:
        return "linear, not from 0"
    for axis in axes:
        axis.axes.set(**{f"{name}lim": (0, axis.get_view_interval()[1])})
    return "linear, from 0"


def keep_wide(axes: Axes, name: Literal["x", "y"]) -> None:
    """Give an axis at least 2 % of its values, so that noise does not fill it."""
    low, high = getattr(axes, f"get_{name}lim")()
    if high - low < 0.02 * abs(high):
        middle = (low + high) / 2
        axes.set(**{f"{name}lim": (middle - 0.01 * abs(high), middle + 0.01 * abs(high))})


def ticks_across(narrow: bool) -> MaxNLocator:
    """Return a locator of as many ticks as fit side by side in a panel."""
    return MaxNLocator(nbins=3 if narrow else 4, min_n_ticks=2 if narrow else 3)


class Ticks(Formatter):
    """Formats the numbers on an axis; those of a linear axis all in one way."""

    def __call__(self, value: float, pos: object = None) -> str:
        """Return the text of one tick."""
        axis = cast(Axis, self.axis)
        ends = (value,) if axis.get_scale() == "log" else axis.get_view_interval()
        largest = max(map(abs, ends))
        if not value or 0.01 <= largest < 10_000:
            return f"{value:,.4g}"
        return f"{value:.0e}" if largest < 0.01 else f"{value / 1000:,.4g}k"


def signed_tick(value: float, _: object = None) -> str:
    """Format an axis value with its sign; zero gets none."""
    return f"{value:+g}".replace("-", "−") if value else "0"
