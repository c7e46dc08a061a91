"""The loss of every run by epoch, and the differences between strategies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
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
    for index, count in enumerate(data.gpus):
        band, column = divmod(index, columns)
        above, below = grid[2 * band][column], grid[2 * band + 1][column]
        part = data.epochs[data.epochs.gpus == count]
        _losses(above, data, part, shift)
        above.set_title(data.describe_gpus(count), loc="left")
        _differences(below, data, part, shift)
        below.tick_params(labelbottom=True)
        below.set_xlabel("Epoch")
        if column == 0:
            above.set_ylabel("Training loss")
            below.set_ylabel(f"against {data.labels[data.baseline]}\nof the same seed (%)")
    for index in range(len(data.gpus), bands * columns):
        band, column = divmod(index, columns)
        grid[2 * band][column].remove()
        grid[2 * band + 1][column].remove()
    legend(figure, data)
    return figure


def _shifts(data: Data) -> Mapping[str, float]:
    """Return a shift per strategy if there is only one epoch, so that dots don't overlap."""
    if data.epochs.epoch.nunique() > 1 or len(data.labels) == 1:
        return dict.fromkeys(data.labels, 0.0)
    return dict(zip(data.labels, np.linspace(-SPREAD, SPREAD, len(data.labels)), strict=True))


def _losses(axes: Axes, data: Data, epochs: pd.DataFrame, shift: Mapping[str, float]) -> None:
    for name, run in _runs(data, epochs):
        look, alpha = data.looks[name], _alpha(data, name, run)
        at = run.epoch + shift[name]
        axes.plot(at, run.loss, color=look.colour, linewidth=0.7, alpha=alpha)
        axes.plot(at.iloc[-1], run.loss.iloc[-1], **marker(look, 4), alpha=alpha)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if data.epochs.epoch.nunique() == 1:
        lone = data.epochs.epoch.iloc[0]
        axes.set_xlim(lone - 0.5, lone + 0.5)
        axes.set_xticks([lone])
    axes.grid(axis="y", color=FAINT, linewidth=0.6)


def _differences(axes: Axes, data: Data, epochs: pd.DataFrame, shift: Mapping[str, float]) -> None:
    of_baseline = epochs[epochs.strategy == data.baseline].set_index(["seed", "epoch"]).loss
    axes.axhline(0, color=GREY, linewidth=0.6)
    for name, run in _runs(data, epochs):
        if name == data.baseline:
            continue
        its = of_baseline.reindex(pd.MultiIndex.from_frame(run[["seed", "epoch"]])).to_numpy()
        look, alpha = data.looks[name], _alpha(data, name, run)
        at, apart = run.epoch + shift[name], 100 * (run.loss / its - 1)
        axes.plot(at, apart, color=look.colour, linewidth=0.7, alpha=alpha)
        axes.plot(at.iloc[-1], apart.iloc[-1], **marker(look, 4), alpha=alpha)
    low, high = axes.get_ylim()
    reach = max(abs(low), abs(high), SMALLEST_DIFFERENCE_PCT)
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _alpha(data: Data, name: str, run: pd.DataFrame) -> float:
    its = data.compared
    its = its[
        (its.strategy == name) & (its.gpus == run.gpus.iloc[0]) & (its.seed == run.seed.iloc[0])
    ]
    return COMPARED if len(its) else LEFT_OUT


def _runs(data: Data, epochs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for name in data.labels:
        for _, run in epochs[epochs.strategy == name].groupby("seed"):
            yield name, run.sort_values("epoch")
