"""The figures of one workload: every run visible, units on every axis, one look a strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from shardmark.appearance import Look
from shardmark.quantities import OF_FIGURE, THROUGHPUT, Quantity, label_on, written

MM = 1 / 25.4
ROW_MM = 5.0
GREY = "#666666"
FAINT = "#DDDDDD"
# As many panels side by side as leave each at least about this wide.
PANEL_MM = 34.0
# Losses are float32: a smaller difference is the last bit.
SMALLEST_DIFFERENCE_PCT = 1e-5
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
        "savefig.dpi": 200,
        "figure.constrained_layout.use": True,
        # The same data give the same file.
        "svg.hashsalt": "shardmark",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
    }
)


@dataclass(frozen=True)
class Data:
    """What the figures of one workload are drawn from.

    Attributes:
        workload: its name.
        cells: rows of cells.csv of this workload.
        epochs: rows of epochs.csv of this workload.
        baseline: the strategy that losses are held against.
        labels: what a reader calls each strategy, in the order of the matrix.
        looks: colour and marker of each strategy.
        width_mm: width of a figure.
    """

    workload: str
    cells: pd.DataFrame
    epochs: pd.DataFrame
    baseline: str
    labels: Mapping[str, str]
    looks: Mapping[str, Look]
    width_mm: float

    @property
    def ok(self) -> pd.DataFrame:
        """Cells that ran to their end."""
        return self.cells[self.cells.status == "ok"]

    @property
    def gpus(self) -> list[int]:
        """GPU counts, ascending."""
        return sorted({int(count) for count in self.cells.gpus})

    @property
    def device(self) -> str:
        """Cuda or cpu."""
        return str(self.cells.device.iloc[0]) if len(self.cells) else "cuda"

    @property
    def regime(self) -> str:
        """How the batch grows with the GPU count, in words."""
        weak = "weak" in set(self.cells.scaling)
        return "weak scaling (fixed batch a GPU)" if weak else "strong scaling (fixed global batch)"

    def replicas(self, count: int) -> str:
        """A GPU count in words."""
        if self.device == "cpu":
            return f"{count} process{'' if count == 1 else 'es'}"
        return f"{count} GPU{'' if count == 1 else 's'}"


def draw(name: str, data: Data) -> Figure:
    """One of ``captions.FIGURES``.

    Raises:
        KeyError: for another name.
    """
    with mpl.rc_context(STYLE):
        if name == "loss":
            return loss_figure(data)
        if name == "scaling":
            return scaling_figure(data)
        return dot_plot(data, OF_FIGURE[name])


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format its name ends with, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}
    kind = path.suffix[1:]
    with mpl.rc_context(STYLE):
        figure.savefig(partial, format=kind, metadata=no_date[kind])
    partial.replace(path)


def dot_plot(data: Data, quantity: Quantity) -> Figure:
    """A row a strategy, a panel a GPU count: every run a dot, the median a larger one."""
    quantity = label_on(quantity, data.device)
    if not len(data.ok) or data.ok[quantity.column].isna().all():
        return _nothing(data, f"{quantity.label}: not measured in this matrix")
    columns = _columns(data, len(data.gpus), first_mm=30)
    bands = math.ceil(len(data.gpus) / columns)
    height = bands * (len(data.labels) * ROW_MM + 16)
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = figure.subplots(bands, columns, squeeze=False, sharey=True)
    panels = list(grid.flat)
    for axes, count in zip(panels, data.gpus, strict=False):
        _dots(axes, data, quantity, count)
    for axes in panels[len(data.gpus) :]:
        axes.remove()
    figure.supxlabel(f"{quantity.heading}{_arrow(quantity)}", fontsize=8)
    return figure


def _dots(axes: Axes, data: Data, quantity: Quantity, count: int) -> None:
    names = list(data.labels)
    part = data.cells[data.cells.gpus == count]
    axes.set_title(data.replicas(count), loc="left")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [data.labels[name] for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for row, name in enumerate(names):
        runs = part[part.strategy == name]
        values = runs[runs.status == "ok"][quantity.column].dropna().astype(float) * quantity.scale
        if values.empty:
            words = ", ".join(sorted(set(runs.status) - {"ok"})) or "no result"
            axes.text(
                0.03,
                row,
                words,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7,
                color=GREY,
                style="italic",
            )
            continue
        look = data.looks[name]
        axes.plot(
            values,
            [row] * len(values),
            linestyle="none",
            marker=look.marker,
            markersize=3.5,
            markerfacecolor="none",
            markeredgecolor=look.colour,
            markeredgewidth=0.7,
            alpha=0.8,
        )
        axes.plot(values.median(), row, **_marker(look, 5.5))
    _x_of_dots(axes)


def _x_of_dots(axes: Axes) -> None:
    """Few ticks, and room: not from zero, for a position is compared here and not a length."""
    low, high = axes.get_xlim()
    if high - low < 0.02 * abs(high):
        middle = (low + high) / 2
        axes.set_xlim(middle - 0.01 * abs(high), middle + 0.01 * abs(high))
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
    axes.xaxis.set_major_formatter(lambda value, _: _tick(value))


def loss_figure(data: Data) -> Figure:
    """Above, every run's loss; below, how far it lies from the baseline's of the same seed."""
    if data.epochs.empty:
        return _nothing(data, "Loss: no epoch has ended")
    columns = _columns(data, len(data.gpus), first_mm=14)
    bands = math.ceil(len(data.gpus) / columns)
    legend_mm = 5 * math.ceil(len(data.labels) / 4) + 6
    figure = Figure(figsize=(data.width_mm * MM, (bands * 78 + legend_mm) * MM))
    grid = figure.subplots(
        2 * bands, columns, squeeze=False, sharex=True, height_ratios=[3, 2] * bands
    )
    for index, count in enumerate(data.gpus):
        band, column = divmod(index, columns)
        above, below = grid[2 * band][column], grid[2 * band + 1][column]
        part = data.epochs[data.epochs.gpus == count]
        _losses(above, data, part)
        above.set_title(data.replicas(count), loc="left")
        _differences(below, data, part)
        below.tick_params(labelbottom=True)
        below.set_xlabel("Epoch")
        if column == 0:
            above.set_ylabel("Training loss")
            below.set_ylabel(f"against {data.labels[data.baseline]}\nof the same seed (%)")
    for index in range(len(data.gpus), bands * columns):
        band, column = divmod(index, columns)
        grid[2 * band][column].remove()
        grid[2 * band + 1][column].remove()
    _legend(figure, data)
    return figure


def _losses(axes: Axes, data: Data, epochs: pd.DataFrame) -> None:
    for name, run in _runs(data, epochs):
        look = data.looks[name]
        axes.plot(run.epoch, run.loss, color=look.colour, linewidth=0.7, alpha=0.7)
        axes.plot(run.epoch.iloc[-1], run.loss.iloc[-1], **_marker(look, 4))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)


def _differences(axes: Axes, data: Data, epochs: pd.DataFrame) -> None:
    of_baseline = epochs[epochs.strategy == data.baseline].set_index(["seed", "epoch"]).loss
    axes.axhline(0, color=GREY, linewidth=0.6)
    for name, run in _runs(data, epochs):
        if name == data.baseline:
            continue
        its = of_baseline.reindex(pd.MultiIndex.from_frame(run[["seed", "epoch"]])).to_numpy()
        look = data.looks[name]
        axes.plot(run.epoch, 100 * (run.loss / its - 1), color=look.colour, linewidth=0.7)
        axes.plot(run.epoch.iloc[-1], 100 * (run.loss / its - 1).iloc[-1], **_marker(look, 4))
    low, high = axes.get_ylim()
    reach = max(abs(low), abs(high), SMALLEST_DIFFERENCE_PCT)
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _runs(data: Data, epochs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for name in data.labels:
        for _, run in epochs[epochs.strategy == name].groupby("seed"):
            yield name, run.sort_values("epoch")


def scaling_figure(data: Data) -> Figure:
    """A panel a strategy: its throughput over GPU counts, ideal growth, the others in grey."""
    medians = data.ok.groupby(["strategy", "gpus"])[THROUGHPUT.column].median()
    if len(data.gpus) < 2 or medians.dropna().empty:
        return _nothing(data, "Scaling: needs two GPU counts with a result")
    columns = _columns(data, len(data.labels), first_mm=14)
    rows = math.ceil(len(data.labels) / columns)
    figure = Figure(figsize=(data.width_mm * MM, (rows * 36 + 10) * MM))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    panels = list(grid.flat)
    present = set(medians.index.get_level_values(0))
    for axes, name in zip(panels, data.labels, strict=False):
        for other in present - {name}:
            line = medians[other]
            axes.plot(line.index, line, color="#C8C8C8", linewidth=0.7, zorder=1)
        _scaling_of(axes, data, name, medians[name] if name in present else pd.Series(dtype=float))
    for axes in panels[len(data.labels) :]:
        axes.remove()
    figure.supxlabel(
        f"{'Processes' if data.device == 'cpu' else 'GPUs'} — {data.regime}", fontsize=8
    )
    figure.supylabel(f"{THROUGHPUT.heading}, both axes logarithmic", fontsize=8)
    return figure


def _scaling_of(axes: Axes, data: Data, name: str, line: pd.Series) -> None:
    look = data.looks[name]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(data.labels[name], loc="left", color=look.colour, fontweight="bold")
    axes.set_xticks(data.gpus, [str(count) for count in data.gpus])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=FAINT, linewidth=0.5)
    line = line.dropna()
    if line.empty:
        axes.text(0.5, 0.5, "no result", transform=axes.transAxes, ha="center", color=GREY)
        return
    first = line.index[0]
    ideal = [line.iloc[0] * count / first for count in (first, data.gpus[-1])]
    axes.plot([first, data.gpus[-1]], ideal, color=GREY, linestyle=(0, (3, 2)), linewidth=0.8)
    axes.annotate(
        "ideal",
        (data.gpus[-1], ideal[-1]),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=6.5,
        color=GREY,
    )
    runs = data.ok[data.ok.strategy == name]
    axes.plot(
        runs.gpus,
        runs[THROUGHPUT.column],
        linestyle="none",
        marker=look.marker,
        markersize=3,
        markerfacecolor="none",
        markeredgecolor=look.colour,
        markeredgewidth=0.6,
    )
    axes.plot(line.index, line, color=look.colour, linewidth=1.3)
    axes.plot(line.index, line, linestyle="none", **_marker(look, 4.5))


def _nothing(data: Data, words: str) -> Figure:
    figure = Figure(figsize=(data.width_mm * MM, 14 * MM))
    figure.text(0.5, 0.5, words, ha="center", va="center", color=GREY, fontsize=8)
    return figure


def _columns(data: Data, panels: int, *, first_mm: float) -> int:
    """Panels side by side; ``first_mm`` is what the labels on the left take."""
    return max(1, min(panels, 4, int((data.width_mm - first_mm) // PANEL_MM)))


def _marker(look: Look, size: float) -> dict[str, Any]:
    return {
        "marker": look.marker,
        "markersize": size,
        "markerfacecolor": "white" if look.open_face else look.colour,
        "markeredgecolor": look.colour if look.open_face else "white",
        "markeredgewidth": 1.0 if look.open_face else 0.4,
    }


def _legend(figure: Figure, data: Data) -> None:
    handles = [
        Line2D([], [], color=data.looks[name].colour, linewidth=1, label=label)
        for name, label in data.labels.items()
    ]
    for handle, name in zip(handles, data.labels, strict=True):
        handle.set(**_marker(data.looks[name], 5))
    columns = max(2, min(4, int(data.width_mm // 40)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _arrow(quantity: Quantity) -> str:
    return {"higher": "  →  better", "lower": "  ←  better", None: ""}[quantity.better]


def _tick(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.0e}"
    return f"{value:,.4g}" if abs(value) < 10_000 else written(value, 5)
