"""The loss of every run by epoch, and the differences between strategies."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    COMPARED,
    FAINT,
    GREY,
    LEFT_OUT,
    MM,
    columns_of,
    describe_linear_axis,
    legend,
    legend_mm,
    marker,
)

# Losses are float32: a smaller difference is only the last bit.
SMALLEST_DIFFERENCE_PCT = 1e-5
# With one epoch, strategies are spread this far to either side of it.
SPREAD = 0.3


def loss_figure(data: Data) -> Figure:
    """Draw every run's loss above, and its difference from the baseline of the same seed below."""
    if data.epochs.empty:
        raise NothingToDraw("no epoch has ended")
    columns = columns_of(data.width_mm, len(data.gpus), first_mm=14)
    bands = math.ceil(len(data.gpus) / columns)
    height = bands * 78 + legend_mm(data, len(data.labels))
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = figure.subplots(
        2 * bands, columns, squeeze=False, sharex=True, height_ratios=[3, 2] * bands
    )
    shift = _shifts(data)
    panels = []
    for index, count in enumerate(data.gpus):
        band, column = divmod(index, columns)
        above, below = grid[2 * band][column], grid[2 * band + 1][column]
        at = data.epochs[data.epochs.gpus == count]
        losses = at.pivot_table(index=["strategy", "seed"], columns="epoch", values="loss")
        _draw(above, data, count, losses, shift)
        of_baseline = losses[losses.index.get_level_values("strategy") == data.baseline]
        others = losses.drop(of_baseline.index)
        reference = of_baseline.droplevel("strategy").reindex(others.index.get_level_values("seed"))
        _draw(below, data, count, others.div(reference.to_numpy()).sub(1).mul(100), shift)
        above.set_title(data.describe_gpus(count), loc="left")
        _axes(above, below, data)
        panels.append(above)
        below.tick_params(labelbottom=True)
        below.set_xlabel("Epoch")
        if column == 0:
            above.set_ylabel("Training loss")
            below.set_ylabel(f"against {data.labels[data.baseline]}\nof the same seed (%)")
    for index in range(len(data.gpus), bands * columns):
        band, column = divmod(index, columns)
        grid[2 * band][column].remove()
        grid[2 * band + 1][column].remove()
    scale = describe_linear_axis(panels, "y")
    drawn = [name for name in data.labels if (data.epochs.strategy == name).any()]
    legend(figure, data, f"Loss {scale}; differences linear, around 0", drawn)
    return figure


def _shifts(data: Data) -> Mapping[str, float]:
    """Return a shift per strategy if there is only one epoch, so that dots don't overlap."""
    if data.epochs.epoch.nunique() > 1 or len(data.labels) == 1:
        return dict.fromkeys(data.labels, 0.0)
    return dict(zip(data.labels, np.linspace(-SPREAD, SPREAD, len(data.labels)), strict=True))


def _axes(above: Axes, below: Axes, data: Data) -> None:
    above.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if data.epochs.epoch.nunique() == 1:
        lone = data.epochs.epoch.iloc[0]
        above.set_xlim(lone - 0.5, lone + 0.5)
        above.set_xticks([lone])
    above.ticklabel_format(axis="y", useOffset=False)
    above.grid(axis="y", color=FAINT, linewidth=0.6)
    below.axhline(0, color=GREY, linewidth=0.6)
    low, high = below.get_ylim()
    reach = max(abs(low), abs(high), SMALLEST_DIFFERENCE_PCT)
    below.set_ylim(-reach, reach)
    below.yaxis.set_major_locator(MaxNLocator(nbins=4))
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _draw(
    axes: Axes, data: Data, count: int, runs: pd.DataFrame, shift: Mapping[str, float]
) -> None:
    """Draw one line per run, with a marker at its end; pale if the run is not compared.

    Args:
        axes: where to draw.
        data: how strategies look, and which runs are compared.
        count: the GPU count.
        runs: losses or differences by strategy and seed, one column per epoch.
        shift: shift of each strategy along the x axis.
    """
    at = data.compared[data.compared.gpus == count]
    compared = pd.MultiIndex.from_frame(at[["strategy", "seed"]])
    for name in data.labels:
        of_strategy = runs[runs.index.get_level_values("strategy") == name]
        full = of_strategy.index.isin(compared)
        for part, alpha in ((of_strategy[full], COMPARED), (of_strategy[~full], LEFT_OUT)):
            lines = [run.dropna() for _, run in part.iterrows()]
            paths = [np.column_stack([run.index + shift[name], run]) for run in lines if len(run)]
            if not paths:
                continue
            # One artist for all runs: matplotlib needs half a minute for a thousand lines.
            look = data.looks[name]
            axes.add_collection(
                LineCollection(paths, colors=look.colour, linewidths=0.7, alpha=alpha)
            )
            ends = np.array([path[-1] for path in paths])
            axes.plot(*ends.T, linestyle="none", **marker(look, 4), alpha=alpha)
    axes.autoscale_view()
