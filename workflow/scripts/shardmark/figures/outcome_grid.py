"""The grid of outcomes: strategies down, seeds across, a panel a GPU count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from shardmark.cells import Cell, cells_of
from shardmark.config import Config, labels_of
from shardmark.figures.drawing import GREY, MM, ROW_MM, STYLE, columns_of, legend_of
from shardmark.quantities import replicas
from shardmark.results.outcomes import SIGNS

# A field's colour and its sign's: families of outcomes differ in lightness too.
_BAD = ("#B34A00", "white")
FIELDS = {
    "ok": ("#BFE3D3", "#00553D"),
    "suspect": ("#F6D58C", "#5C4300"),
    "stale": ("#BFDDF0", "#003F63"),
    **dict.fromkeys(("oom", "timeout", "diverged", "failed"), _BAD),
    "refused": ("#8E4A73", "white"),
    "unsupported": ("#E6E6E6", GREY),
    "missing": ("white", GREY),
}
FIELD_MM = 4.0


def outcome_figure(config: Config, workload: str, signs: Mapping[Path, str]) -> Figure:
    """The outcome of every planned cell of a workload.

    Args:
        config: the matrix.
        workload: its name.
        signs: the outcome of each cell, as ``outcomes.status_signs`` gives it.
    """
    with mpl.rc_context(STYLE):
        counts, seeds = sorted(config.matrix.gpus), list(config.matrix.seeds)
        labels, width = labels_of(config), config.report.figure_width_mm
        panel_mm = max(18.0, len(seeds) * FIELD_MM + 3)
        columns = columns_of(width, len(counts), first_mm=30, panel_mm=panel_mm)
        bands = math.ceil(len(counts) / columns)
        cells = [cell for cell in cells_of(config) if cell.workload == workload]
        seen = [status for status in SIGNS if status in {signs[cell.folder] for cell in cells}]
        entries = max(1, int(width // 42))
        height = bands * (len(labels) * ROW_MM + 15) + 5 * math.ceil(len(seen) / entries) + 9
        figure = Figure(figsize=(width * MM, height * MM))
        grid = list(figure.subplots(bands, columns, squeeze=False, sharey=True).flat)
        for axes in grid[len(counts) :]:
            axes.remove()
        for count, axes in zip(counts, grid, strict=False):
            axes.set_title(replicas(config.cluster.device, count), loc="left")
            _axes(axes, seeds, list(labels.values()))
            _fields(axes, [cell for cell in cells if cell.gpus == count], config, signs)
        handles = [
            Patch(
                facecolor=FIELDS[status][0],
                edgecolor=GREY,
                linewidth=0.4,
                label=f"{SIGNS[status][0]}  {status}",
            )
            for status in seen
        ]
        legend_of(figure, width, handles, "Seeds across")
        return figure


def _axes(axes: Axes, seeds: Sequence[int], labels: Sequence[str]) -> None:
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(-0.6, len(seeds) - 0.4)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _fields(axes: Axes, cells: Sequence[Cell], config: Config, signs: Mapping[Path, str]) -> None:
    for cell in cells:
        status = signs[cell.folder]
        x = list(config.matrix.seeds).index(cell.seed)
        y = list(config.matrix.strategies).index(cell.strategy)
        colour, ink = FIELDS[status]
        axes.add_patch(
            Rectangle(
                (x - 0.44, y - 0.42), 0.88, 0.84, facecolor=colour, edgecolor=GREY, linewidth=0.3
            )
        )
        axes.text(x, y, SIGNS[status][0], ha="center", va="center", fontsize=7, color=ink)
