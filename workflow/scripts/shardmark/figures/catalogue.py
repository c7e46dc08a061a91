"""All figures of a workload by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure

from shardmark.figures.answer import answer_figure
from shardmark.figures.data import Data
from shardmark.figures.dot_plots import dot_plot
from shardmark.figures.drawing import STYLE, lay_out
from shardmark.figures.loss_curves import loss_figure
from shardmark.figures.outcome_grid import outcome_figure
from shardmark.figures.scaling_curves import efficiency_figure, scaling_figure
from shardmark.figures.step_times import step_time_figure
from shardmark.figures.time_splits import step_split_figure, wall_clock_figure
from shardmark.figures.timelines import timeline_figure
from shardmark.figures.trade_offs import trade_off_figure
from shardmark.results.cell_rows import QUANTITIES

DRAWN_BY: dict[str, Callable[[Data], Figure]] = {
    "answer": answer_figure,
    "trade_off": trade_off_figure,
    "scaling": scaling_figure,
    "efficiency": efficiency_figure,
    "step_time": step_time_figure,
    "step_split": step_split_figure,
    "wall_clock": wall_clock_figure,
    "timeline": timeline_figure,
    "loss": loss_figure,
    "outcomes": outcome_figure,
    **{
        quantity.figure: functools.partial(dot_plot, quantity=quantity)
        for quantity in QUANTITIES.values()
    },
}


def draw(name: str, data: Data) -> Figure:
    """Draw one of ``contents.FIGURES``.

    Raises:
        KeyError: for any other name.
        NothingToDraw: with the reason, if the data of the figure were not measured.
    """
    with mpl.rc_context(STYLE):
        figure = DRAWN_BY[name](data)
        lay_out(figure)
        return figure
