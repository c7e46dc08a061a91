"""The grid of outcomes: one row per strategy, one column per seed, one panel per GPU count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from shardmark.figures.data import Data
from shardmark.figures.drawing import GREY, MM, ROW_MM, columns_of, legend_of
from shardmark.results.outcome import Outcome

# Colours of a field and of its sign. Groups of outcomes also differ in lightness.
_BAD = ("#B34A00", "white")
FIELDS = {
    Outcome.OK: ("#BFE3D3", "#00553D"),
    Outcome.DEVICE_FAULT: ("#F6D58C", "#5C4300"),
    Outcome.STALE: ("#BFDDF0", "#003F63"),
    Outcome.OOM: _BAD,
    Outcome.TIMEOUT: _BAD,
    Outcome.DIVERGED: _BAD,
    Outcome.FAILED: _BAD,
    Outcome.REFUSED: ("#8E4A73", "white"),
    Outcome.UNSUPPORTED: ("#E6E6E6", GREY),
    Outcome.MISSING: ("white", GREY),
}
FIELD_MM = 4.0


def outcome_figure(data: Data) -> Figure:
    """Draw the outcome of every planned cell of a workload."""
    seeds = list(data.cells.seed.unique())
    panel_mm = max(18.0, len(seeds) * FIELD_MM + 3)
    columns = columns_of(data.width_mm, len(data.gpus), first_mm=30, panel_mm=panel_mm)
    bands = math.ceil(len(data.gpus) / columns)
    seen = [outcome for outcome in Outcome if (data.cells.outcome == outcome).any()]
    entries = max(1, int(data.width_mm // 42))
    height = bands * (len(data.labels) * ROW_MM + 15) + 5 * math.ceil(len(seen) / entries) + 9
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = list(figure.subplots(bands, columns, squeeze=False, sharey=True).flat)
    for axes in grid[len(data.gpus) :]:
        axes.remove()
    for count, axes in zip(data.gpus, grid, strict=False):
        axes.set_title(data.describe_gpus(count), loc="left")
        _axes(axes, seeds, list(data.labels.values()))
        _fields(axes, data.cells[data.cells.gpus == count], seeds, list(data.labels))
    handles = [
        Patch(
            facecolor=FIELDS[outcome][0],
            edgecolor=GREY,
            linewidth=0.4,
            label=f"{outcome.sign}  {outcome.meaning}",
        )
        for outcome in seen
    ]
    legend_of(figure, data.width_mm, handles, "Seeds across; no box: not planned")
    return figure


def _axes(axes: Axes, seeds: Sequence[int], labels: Sequence[str]) -> None:
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(-0.6, len(seeds) - 0.4)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _fields(
    axes: Axes, cells: pd.DataFrame, seeds: Sequence[int], strategies: Sequence[str]
) -> None:
    for outcome, (colour, ink) in FIELDS.items():
        own = cells[cells.outcome == outcome]
        places = [
            (seeds.index(seed), strategies.index(strategy))
            for seed, strategy in zip(own.seed, own.strategy, strict=True)
        ]
        # One artist for all fields of a colour, because a large matrix has a thousand fields.
        fields = [Rectangle((x - 0.44, y - 0.42), 0.88, 0.84) for x, y in places]
        axes.add_collection(
            PatchCollection(fields, facecolor=colour, edgecolor=GREY, linewidth=0.3)
        )
        for x, y in places:
            axes.text(x, y, outcome.sign, ha="center", va="center", fontsize=7, color=ink)
