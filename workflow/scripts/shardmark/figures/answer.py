"""The picture of the first screen: ratios to the baseline, and throughput against GPUs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import FAINT, GREY, LEFT_OUT, MM, absent, marker, signed_tick, tick
from shardmark.quantities import percent, replicas_heading
from shardmark.results.cell_rows import QUANTITIES
from shardmark.results.exclusion import describe_absence

THROUGHPUT = QUANTITIES["items_per_s"]
BAND = "#E3E3E3"
# With fewer GPU counts, there is no throughput panel.
FEWEST_COUNTS = 2
LOWEST_MM = 46.0
# The first screen has little room.
ROW_MM = 4.3
# Height of a label, and of everything above and below a panel together.
LABEL_MM = 3.4
AROUND_MM = 20.0
# Labels of ticks that are closer than this share of the axis would overlap.
TICK_SHARE = 0.05


def answer_figure(data: Data) -> Figure:
    """Draw each strategy's difference from the baseline, and its throughput against GPUs.

    The differences are those at the largest GPU count that has comparisons.
    """
    assert data.findings
    rows = data.findings.comparisons
    rows = rows[(rows.workload == data.workload) & (rows.family == "primary") & rows.ratio.notna()]
    rows = rows[rows.gpus.isin(data.gpus)]
    medians = data.counted.groupby(["strategy", "gpus"])[THROUGHPUT.column].median().dropna()
    scales = medians.index.get_level_values("gpus").nunique() >= FEWEST_COUNTS
    number = (not rows.empty) + scales
    if not number:
        raise NothingToDraw("no strategy could be compared with the baseline")
    height = max(LOWEST_MM, len(data.labels) * ROW_MM + 15)
    shape = (number, 1) if data.narrow else (1, number)
    figure = Figure(figsize=(data.width_mm * MM, shape[0] * height * MM))
    panels = list(figure.subplots(*shape, squeeze=False).flat)
    if not rows.empty:
        count = int(rows.gpus.max())
        _ratios(panels[0], data, rows[rows.gpus == count].set_index("strategy"), count)
    if scales:
        _throughput(panels[-1], data, medians, height)
    return figure


def _ratios(axes: Axes, data: Data, rows: pd.DataFrame, count: int) -> None:
    margin = float(rows.margin.iloc[0])
    axes.axvspan(100 * (1 / (1 + margin) - 1), 100 * margin, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    names = [name for name in data.labels if name in rows.index or name == data.baseline]
    names.sort(key=lambda name: -(1.0 if name == data.baseline else rows.ratio[name]))
    names += [name for name in data.labels if name not in names]
    for place, name in enumerate(names):
        look = data.looks[name]
        if name == data.baseline:
            axes.plot(0, place, **marker(look, 6))
            continue
        if name not in rows.index:
            runs = data.cells[(data.cells.strategy == name) & (data.cells.gpus == count)]
            absent(axes, place, describe_absence(runs))
            continue
        row = rows.loc[name]
        middle, low, high = (100 * (row[column] - 1) for column in ("ratio", "ci_low", "ci_high"))
        if pd.notna(low):
            axes.hlines(place, low, high, color=look.colour, linewidth=1.6)
        axes.plot(middle, place, **marker(look, 6))
        axes.text(
            1.01,
            place,
            percent(rows.ratio[name]),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(names)), [data.labels[name] for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(signed_tick))
    axes.set_xlabel(f"Throughput against {data.labels[data.baseline]} (%), linear")
    bars = ["bars: 95 % intervals"] if rows.ci_low.notna().any() else []
    first = _join_title(data, data.describe_gpus(count), *bars)
    axes.set_title(f"{first}\ngrey band: equal within {100 * margin:g} %", loc="left")


def _join_title(data: Data, *parts: str) -> str:
    return (";\n" if data.narrow else "; ").join(parts)


def _throughput(axes: Axes, data: Data, medians: pd.Series, height_mm: float) -> None:
    ends = {}
    for name in data.labels:
        if name not in medians.index.get_level_values("strategy"):
            continue
        speeds, look = medians[name].sort_index(), data.looks[name]
        last = int(speeds.index[-1])
        pale = None if name in data.compared_at(last) else LEFT_OUT
        axes.plot(speeds.index, speeds, color=look.colour, linewidth=1.3, alpha=pale)
        axes.plot(speeds.index, speeds, linestyle="none", **marker(look, 5), alpha=pale)
        ends[name] = (last, float(speeds.iloc[-1]))
    first = int(medians.index.get_level_values("gpus").min())
    start = float(medians.xs(first, level="gpus").max())
    axes.plot(
        [first, data.gpus[-1]],
        [start, start * data.gpus[-1] / first],
        color=GREY,
        linestyle=(0, (3, 2)),
        linewidth=0.9,
    )
    axes.set_ylim(0, None)
    axes.set_xlim(0, data.gpus[-1] * 1.02)
    counts = readable_ticks(data.gpus)
    axes.set_xticks(counts, list(map(str, counts)))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
    axes.yaxis.set_major_formatter(tick)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    unit = replicas_heading(data.device)
    axes.set_xlabel(f"{unit}, linear")
    heading = THROUGHPUT.of(data.unit).heading
    axes.set_title(_join_title(data, f"{heading}, linear", "dashed: ideal"), loc="left")
    _label_ends(axes, data, ends, height_mm)


def _label_ends(
    axes: Axes, data: Data, ends: Mapping[str, tuple[int, float]], height_mm: float
) -> None:
    """Write each strategy's name right of the panel, at the height of its line's end."""
    top = axes.get_ylim()[1]
    step = LABEL_MM / (height_mm - AROUND_MM)
    names = sorted(ends, key=lambda name: ends[name][1])
    wanted = [ends[name][1] / top for name in names]
    for name, height in zip(names, spread(wanted, step), strict=True):
        look = data.looks[name]
        label = data.labels[name]
        if name not in data.compared_at(ends[name][0]):
            label += ", excluded"
        axes.text(1.06, height, label, transform=axes.transAxes, va="center", fontsize=7)
        # A separate annotation, so that the line is not part of the label's box.
        axes.annotate(
            "",
            ends[name],
            xytext=(1.05, height),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.5, "shrinkA": 0},
        )


def readable_ticks(counts: list[int]) -> list[int]:
    """Choose from ascending counts those whose labels do not overlap on a linear axis.

    The largest comes first.

    >>> readable_ticks([1, 2, 4, 8, 16, 32])
    [32, 16, 8, 4, 2]
    """
    chosen: list[int] = []
    for count in reversed(counts):
        if not chosen or chosen[-1] - count >= TICK_SHARE * counts[-1]:
            chosen.append(count)
    return chosen


def spread(places: list[float], step: float) -> list[float]:
    """Move ascending places apart until neighbours keep a distance.

    Each stays close to where it was.

    >>> [round(place, 2) for place in spread([0.5, 0.5, 0.9], 0.1)]
    [0.45, 0.55, 0.9]
    """
    blocks: list[list[float]] = []
    for place in places:
        blocks.append([place])
        # Two blocks that would overlap become one, centred on the mean place of its members.
        while len(blocks) > 1 and _start(blocks[-1], step) < _end(blocks[-2], step) + step:
            last = blocks.pop()
            blocks[-1] += last
    return [_start(block, step) + step * i for block in blocks for i in range(len(block))]


def _start(block: list[float], step: float) -> float:
    length = step * (len(block) - 1)
    return max(0.0, min(float(np.mean(block)) - length / 2, 1.0 - length))


def _end(block: list[float], step: float) -> float:
    return _start(block, step) + step * (len(block) - 1)
