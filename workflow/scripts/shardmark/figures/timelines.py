"""Utilisation, power and memory of one run of each strategy over time."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import FAINT, MM, Ticks, legend_of
from shardmark.figures.side_files import QUANTITIES, Timeline

PANEL_ROW_MM = 15.0
STEADY, EVALUATION = "#CDEBDD", "#E3E3E3"


def timeline_figure(data: Data) -> Figure:
    """Draw one row per strategy and one column per quantity; the steady window begins at 0."""
    lines = {name: data.timelines[name] for name in data.labels if name in data.timelines}
    measured = [
        column
        for column in QUANTITIES
        if any(line.samples[column].notna().any() for line in lines.values())
    ]
    if not measured:
        raise NothingToDraw("no cell has a telemetry.csv with its windows")
    height = len(lines) * PANEL_ROW_MM + 30
    figure = Figure(figsize=(data.width_mm * MM, height * MM))
    grid = figure.subplots(len(lines), len(measured), squeeze=False, sharex=True, sharey="col")
    for row, (name, line) in zip(grid, lines.items(), strict=True):
        for axes, column in zip(row, measured, strict=True):
            _over_time(axes, line, column, data.looks[name].colour)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=2 if data.narrow else 4))
        row[0].set_title(data.labels[name], loc="left", pad=2)
    for axes in grid[0]:
        # Only after all panels are drawn: setting a limit turns off the shared autoscaling.
        axes.set_ylim(bottom=0)
    first = next(iter(lines))
    for axes, column in zip(grid[0], measured, strict=True):
        below = data.labels[first] if axes is grid[0][0] else " "
        axes.set_title(f"{QUANTITIES[column][0]}\n{below}", loc="left", pad=2)
    handles = [
        Patch(color=STEADY, label="steady window"),
        Patch(color=EVALUATION, label="evaluation"),
    ]
    where = data.describe_gpus(lines[first].gpus)
    title = f"Seconds since the steady window began; {where}\nlinear, vertical axes from 0"
    legend_of(figure, data.width_mm, handles, title, 36)
    return figure


def _over_time(axes: Axes, line: Timeline, column: str, colour: str) -> None:
    axes.axvspan(0, line.steady_s, color=STEADY, linewidth=0)
    for begin, end in line.evaluations_s:
        axes.axvspan(begin, end, color=EVALUATION, linewidth=0)
    for _, samples in line.samples.groupby("device"):
        known = samples.dropna(subset=[column])
        axes.plot(known.at_s, known[column] * QUANTITIES[column][1], color=colour, linewidth=0.6)
    axes.grid(axis="y", color=FAINT, linewidth=0.4)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(Ticks())
    axes.tick_params(labelsize=7)
