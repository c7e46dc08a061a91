"""Where time goes: within a step of the steady state, and within a whole cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    Ticks,
    absent,
    legend_mm,
    legend_of,
    panels_of_counts,
    ticks_across,
)


class Part(NamedTuple):
    """A part of a bar: its name, its colour, and the columns of cells.csv that add up to it."""

    label: str
    colour: str
    columns: tuple[str, ...]


# Okabe and Ito's colours, and greys that differ from them in lightness.
STEP = (
    Part("compute", "#0072B2", ("compute_ms",)),
    Part("exposed communication", "#D55E00", ("exposed_communication_ms",)),
    Part("data", "#F0C040", ("data_ms",)),
    Part("idle, the host is late", "#C4C4C4", ("host_wait_ms",)),
)
CELL = (
    Part(
        "start-up",
        "#8C8C8C",
        ("imports_s", "process_group_s", "probe_s", "data_s", "build_s"),
    ),
    Part("compilation", "#CC79A7", ("compilation_s",)),
    Part("training", "#0072B2", ("training_s",)),
    Part("evaluation", "#56B4E9", ("evaluation_s",)),
    Part("measurement", "#009E73", ("measurement_s",)),
    Part("inspection, profile", "#F0C040", ("inspection_s", "profile_s")),
    Part("shut-down, other", "#D8D8D8", ("shutdown_s", "other_s")),
)


def step_split_figure(data: Data) -> Figure:
    """Draw what a device does in a step: a bar per strategy, a panel per GPU count."""
    known = data.counted.dropna(subset=[part.columns[0] for part in STEP])
    if known.empty:
        raise NothingToDraw("no cell was profiled (measure.profile)")
    return _bars(data, known, STEP, "Step of the rank that waits longest, mean over runs (ms)")


def wall_clock_figure(data: Data) -> Figure:
    """Draw a cell's time from launch to end: a bar per strategy, a panel per GPU count."""
    known = data.counted.dropna(subset=["total_s"])
    if known.empty:
        raise NothingToDraw("no cell has its phases")
    return _bars(data, known, CELL, "Wall clock of a cell, mean over runs (s)")


def _bars(data: Data, cells: pd.DataFrame, parts: Sequence[Part], label: str) -> Figure:
    counts = [count for count in data.gpus if (cells.gpus == count).any()]
    figure, panels = panels_of_counts(data, counts, rows_mm=16 + legend_mm(data, len(parts)))
    for count, axes in panels:
        part = cells[cells.gpus == count]
        means = {name: _lengths(runs, parts) for name, runs in part.groupby("strategy")}
        rows = [row for row, name in enumerate(data.labels) if name in means]
        bars = [means[name] for name in data.labels if name in means]
        ends = [list(itertools.accumulate(bar)) for bar in bars]
        for index, (_, colour, _) in enumerate(parts):
            lengths = [bar[index] for bar in bars]
            begins = [end[index] - bar[index] for end, bar in zip(ends, bars, strict=True)]
            axes.barh(rows, lengths, left=begins, height=0.66, color=colour, linewidth=0)
        for row, name in enumerate(data.labels):
            if name not in means:
                absent(axes, row, data.describe_absence(name, count))
        axes.xaxis.set_major_locator(ticks_across(data.narrow))
        axes.xaxis.set_major_formatter(Ticks())
    longest = max(axes.get_xlim()[1] for _, axes in panels)
    for _, axes in panels:
        axes.set_xlim(0, longest)
    measured = known_parts(cells, parts)
    handles = [Patch(color=part.colour, label=part.label) for part in measured]
    legend_of(figure, data.width_mm, handles, f"{label}\nlinear, from 0")
    return figure


def known_parts(cells: pd.DataFrame, parts: Sequence[Part]) -> list[Part]:
    """Return the parts that were measured in some cell; bars and legend omit the others."""
    return [part for part in parts if cells[list(part.columns)].notna().any(axis=None)]


def _lengths(runs: pd.DataFrame, parts: Sequence[Part]) -> list[float]:
    """Return the mean of each part; a value that was not measured adds nothing."""
    return [float(runs[list(part.columns)].mean().sum()) for part in parts]
