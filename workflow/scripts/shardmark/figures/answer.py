"""The picture of the first screen: ratios to the baseline, and scaling efficiency."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from shardmark.figures.data import Data, NothingToDraw
from shardmark.figures.drawing import (
    FAINT,
    GREY,
    MM,
    Ticks,
    absent,
    describe_linear_axis,
    keep_wide,
    marker,
    signed_tick,
)
from shardmark.quantities import percent
from shardmark.results.exclusion import describe_absence

BAND = "#E3E3E3"
LOWEST_MM = 46.0
# The first screen has little room.
ROW_MM = 4.3


def answer_figure(data: Data) -> Figure:
    """Draw each strategy's difference from the baseline, and its scaling efficiency.

    Each is that at the largest GPU count at which there is one.
    """
    assert data.findings
    rows = data.findings.comparisons
    rows = rows[(rows.workload == data.workload) & (rows.family == "primary") & rows.ratio.notna()]
    rows = rows[rows.gpus.isin(data.gpus)]
    scaling = data.scaling[data.scaling.gpus > data.scaling.reference_gpus]
    scaling = scaling[scaling.efficiency.notna()]
    number = (not rows.empty) + (not scaling.empty)
    if not number:
        raise NothingToDraw("no strategy could be compared with the baseline")
    height = max(LOWEST_MM, len(data.labels) * ROW_MM + 15)
    shape = (number, 1) if data.narrow else (1, number)
    figure = Figure(figsize=(data.width_mm * MM, shape[0] * height * MM))
    panels = list(figure.subplots(*shape, squeeze=False, sharey=not data.narrow).flat)
    rows = rows[rows.gpus == rows.gpus.max()].set_index("strategy")
    names = _fastest_first(data, rows.ratio)
    if not rows.empty:
        _ratios(panels[0], data, rows, names)
    if not scaling.empty:
        _efficiency(panels[-1], data, scaling[scaling.gpus == scaling.gpus.max()], names)
    return figure


def _fastest_first(data: Data, ratios: pd.Series) -> list[str]:
    """Return the strategies by their ratio to the baseline, then those without one."""
    known = {**ratios, data.baseline: 1.0}
    return sorted(data.labels, key=lambda name: -known.get(name, 0.0))


def _ratios(axes: Axes, data: Data, rows: pd.DataFrame, names: Sequence[str]) -> None:
    count = int(rows.gpus.iloc[0])
    margin = float(rows.margin.iloc[0])
    axes.axvspan(100 * (1 / (1 + margin) - 1), 100 * margin, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for place, name in enumerate(names):
        look = data.looks[name]
        if name == data.baseline:
            axes.plot(0, place, **marker(look, 6))
            continue
        if name not in rows.index:
            absent(axes, place, _why_absent(data, name, count))
            continue
        row = rows.loc[name]
        middle, low, high = (100 * (row[column] - 1) for column in ("ratio", "ci_low", "ci_high"))
        if pd.notna(low):
            axes.hlines(place, low, high, color=look.colour, linewidth=1.6)
        axes.plot(middle, place, **marker(look, 6))
        _write_right_of(axes, place, percent(rows.ratio[name]))
    _lay_out_rows(axes, data, names)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(signed_tick))
    axes.set_xlabel(f"Throughput against {data.labels[data.baseline]} (%), linear")
    bars = ["bars: 95 % intervals"] if rows.ci_low.notna().any() else []
    first = _join_title(data, data.describe_gpus(count), *bars)
    axes.set_title(f"{first}\ngrey band: equal within {100 * margin:g} %", loc="left")


def _join_title(data: Data, *parts: str) -> str:
    return (";\n" if data.narrow else "; ").join(parts)


def _efficiency(axes: Axes, data: Data, rows: pd.DataFrame, names: Sequence[str]) -> None:
    """Draw the scaling efficiency of each strategy, in the same rows."""
    count, fewest = int(rows.gpus.iloc[0]), int(rows.reference_gpus.min())
    axes.axvline(100, color=GREY, linestyle=(0, (3, 2)), linewidth=0.9)
    by_name = rows.set_index("strategy")
    for place, name in enumerate(names):
        if name not in by_name.index:
            if name in data.compared_at(count):
                absent(axes, place, data.why_no_efficiency(name))
            else:
                absent(axes, place, _why_absent(data, name, count))
            continue
        row, look = by_name.loc[name], data.looks[name]
        if pd.notna(row.efficiency_low):
            low, high = 100 * row.efficiency_low, 100 * row.efficiency_high
            axes.hlines(place, low, high, color=look.colour, linewidth=1.6)
        axes.plot(100 * row.efficiency, place, **marker(look, 6))
        start = "" if row.reference_gpus == fewest else f" from {row.reference_gpus}"
        _write_right_of(axes, place, f"{100 * row.efficiency:.0f} %{start}")
    _lay_out_rows(axes, data, names)
    keep_wide(axes, "x")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
    axes.xaxis.set_major_formatter(Ticks())
    axes.set_xlabel(f"Scaling efficiency (%), {describe_linear_axis([axes], 'x')}")
    axes.set_title(
        f"{data.describe_gpus(count)} against {fewest}\ndashed: ideal scaling", loc="left"
    )


def _why_absent(data: Data, name: str, count: int) -> str:
    """Return in words why a strategy has no value at a GPU count."""
    runs = data.cells[(data.cells.strategy == name) & (data.cells.gpus == count)]
    if runs.empty:
        return "not planned"
    return "not comparable" if name in data.compared_at(count) else describe_absence(runs)


def _lay_out_rows(axes: Axes, data: Data, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [data.labels[name] for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _write_right_of(axes: Axes, place: int, text: str) -> None:
    axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7)
