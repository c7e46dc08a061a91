"""The figures of the largest matrix that they must bear, and of what was not measured."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from built_pages import data_of
from gpu_matrix import config_of, write_crowded, write_matrix
from plot import draw_all
from shardmark.config.loading import load
from shardmark.config.schema import Config
from shardmark.figures.catalogue import DRAWN_BY, draw
from shardmark.figures.data import Data, NothingToDraw, looks
from shardmark.figures.drawing import LEFT_OUT, Ticks
from shardmark.figures.time_splits import CELL
from shardmark.metrics import Times
from shardmark.report.contents import FIGURE_KINDS, FIGURES, NOT_DRAWN, OUTCOMES, caption
from shardmark.results.outcome import Outcome
from shardmark.statistics.findings import find
from shardmark.strategies import STRATEGIES
from small_matrix import ROOT
from test_config import shipped

COLUMN_MM, PAGE_MM = 85.0, 180.0
# What A4 leaves between margins of 25 mm.
TALLEST_MM = 247.0
SMALLEST_PT = 7


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    root = tmp_path_factory.mktemp("crowded")
    return write_crowded(root), root


def of_width(config: Config, width_mm: float) -> Config:
    report = config.report.model_copy(update={"figure_width_mm": width_mm})
    return config.model_copy(update={"report": report})


@pytest.fixture(scope="module", params=[PAGE_MM, COLUMN_MM], ids=["page", "column"])
def data(crowded: tuple[Config, Path], request: pytest.FixtureRequest) -> Data:
    config, root = crowded
    return data_of(of_width(config, request.param), root)


@pytest.fixture(scope="module")
def drawn(data: Data) -> Callable[[str], Figure]:
    """Each figure of the data, drawn once: for tests that only read it."""
    return functools.cache(lambda name: draw(name, data))


@pytest.fixture(scope="module")
def drawn_smaller(data: Data) -> Callable[[str], Figure]:
    """Each figure of eight strategies on four GPU counts: what a column must bear."""
    first = list(data.labels)[:8]
    cells, epochs = (
        table[table.strategy.isin(first) & (table.gpus <= 8)] for table in (data.cells, data.epochs)
    )
    assert data.findings
    scaling = data.findings.scaling
    scaling = scaling[scaling.strategy.isin(first) & (scaling.gpus <= 8)]
    findings = replace(data.findings, scaling=scaling)
    smaller = replace(data, cells=cells, epochs=epochs, findings=findings)
    return functools.cache(lambda name: draw(name, smaller))


def texts(figure: Figure) -> Iterator[Text]:
    """What is written in a figure, ticks beyond the axes left out."""
    beyond = set()
    for axis in figure.findobj(Axis):
        assert isinstance(axis, Axis)
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and text not in beyond:
            yield text


def check_legible(figure: Figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = [(text, text.get_window_extent(renderer)) for text in texts(figure)]
    assert found
    for text, box in found:
        assert text.get_fontsize() >= SMALLEST_PT, text.get_text()
        room = min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1)
        assert room >= -1, f"{text.get_text()!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one.get_text()!r} stands over {other.get_text()!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_of_a_figure_stands_over_another_or_is_too_small(
    name: str, drawn: Callable[[str], Figure]
) -> None:
    check_legible(drawn(name))


@pytest.mark.parametrize("name", ["scaling", "efficiency"])
def test_a_long_name_over_a_panel_leaves_room_for_its_neighbour(name: str, data: Data) -> None:
    renamed = replace(data)
    long = "FSDP2 + native bf16 + compile"
    labels = {strategy: f"{long} {place}" for place, strategy in enumerate(data.labels)}
    vars(renamed)["labels"] = labels
    check_legible(draw(name, renamed))


@pytest.mark.slow
def test_where_processes_take_the_place_of_gpus_names_are_longer_and_stand_apart(
    data: Data,
) -> None:
    cells = data.cells.assign(device="cpu", energy_per_item_j=float("nan"), power_w=float("nan"))
    for gpus in ([1, 2], [1]):
        small = replace(data, cells=cells[cells.gpus.isin(gpus)])
        for name in FIGURES:
            if name not in ("energy", "power", "scaling", "efficiency"):
                check_legible(draw(name, small))


def test_the_trade_off_says_which_axes_a_slow_strategy_makes_start_at_0(data: Data) -> None:
    cells = data.cells.copy()
    cells.loc[cells.strategy == "dp", "items_per_s"] /= 20
    figure = draw("trade_off", replace(data, cells=cells))
    words = [text.get_text() for text in texts(figure)]
    assert any("from 0: Throughput, the others not" in line for line in words)
    for panel in figure.axes:
        starts = {"Throughput": panel.get_xlim()[0], "Energy": panel.get_ylim()[0]}
        if panel.get_xlabel().startswith("Throughput"):
            assert starts["Throughput"] == 0
        if panel.get_ylabel().startswith("Energy"):
            assert starts["Energy"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trade_off", "loss"])
def test_a_strategy_without_a_result_is_named_and_not_in_the_legend(name: str, data: Data) -> None:
    none = data.cells.strategy == "fsdp2"
    cells = data.cells.copy()
    cells.loc[none, ["status", "outcome", "excluded"]] = "oom"
    cells.loc[none, ["items_per_s", "memory_used_peak_bytes"]] = float("nan")
    epochs = data.epochs[data.epochs.strategy != "fsdp2"]
    figure = draw(name, replace(data, cells=cells, epochs=epochs))
    check_legible(figure)
    words = [text.get_text() for text in texts(figure)]
    assert "FSDP2" not in words
    assert any("Not drawn: FSDP2 (out of memory" in line for line in words)


def contrast_on_white(colour: str) -> float:
    """By WCAG 2.2, "contrast ratio" and "relative luminance"."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in to_rgb(colour)
    ]
    return 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_line_of_a_strategy_stands_out_from_white(name: str) -> None:
    assert contrast_on_white(STRATEGIES[name].colour) >= 3


def test_as_many_variants_as_the_examples_have_differ_without_colour() -> None:
    for name in ("two_gpus", "eight_gpus"):
        matrix = load(shipped(name), ROOT).matrix
        bases = {one: one if one in STRATEGIES else "fsdp2" for one in matrix.strategies}
        drawn = [(look.marker, look.open_face) for look in looks(bases, {}).values()]
        assert len(set(drawn)) == len(drawn), name


def test_the_bar_of_a_cell_has_all_its_phases() -> None:
    within_others = {"first_step_s", "warmup_s", "steady_s", "epochs_s", "total_s"}
    drawn = [column for part in CELL for column in part.columns]
    assert sorted(drawn) == sorted(set(Times.model_fields) - within_others)


def test_the_first_picture_has_the_scaling_beside_the_differences(data: Data) -> None:
    assert data.findings
    rows = data.findings.scaling.set_index(["strategy", "gpus"])
    last = data.gpus[-1]
    rows.loc[("fsdp", last), "efficiency"] = 0.874
    rows.loc[("fsdp2", last), "efficiency"] = float("nan")
    rows.loc[("fairscale_fsdp", last), "reference_gpus"] = 2
    cells = data.cells
    one_count = (cells.strategy == "deepspeed_zero1") & (cells.gpus < last)
    throttled = (cells.strategy == "deepspeed_zero2") & (cells.gpus == last)
    unplanned = (cells.strategy == "deepspeed_zero3") & (cells.gpus == last)
    left_out = cells.assign(excluded=cells.excluded.mask(one_count | throttled, "throttled"))
    without = [(f"deepspeed_zero{stage}", last) for stage in (1, 2, 3)]
    changed = replace(
        data,
        cells=left_out[~unplanned],
        findings=replace(data.findings, scaling=rows.drop(without).reset_index()),
    )
    differences, panel = draw("answer", changed).axes
    names = [label.get_text() for label in differences.get_yticklabels()]
    said = {names[round(text.get_position()[1])]: text.get_text() for text in panel.texts}
    assert said["FSDP1"] == "87 %"
    assert said["FSDP2"] == "not comparable"
    assert said["FairScale FSDP"].endswith(" % from 2")
    assert said["DeepSpeed ZeRO-1"] == "one GPU count only"
    assert "throttled" in said["DeepSpeed ZeRO-2"]
    assert said["DeepSpeed ZeRO-3"] == "not planned"
    assert f"{last} GPUs against 1" in panel.get_title(loc="left")


def test_the_first_picture_keeps_the_scaling_if_the_baseline_lacks_the_largest_count(
    data: Data,
) -> None:
    assert data.findings
    last = data.gpus[-1]
    rows = data.findings.comparisons
    rows = rows.assign(ratio=rows.ratio.mask(rows.gpus == last))
    figure = draw("answer", replace(data, findings=replace(data.findings, comparisons=rows)))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.split()[0] for title in titles] == [str(data.gpus[-2]), str(last)]


def test_noise_does_not_fill_the_axis_of_the_efficiency(data: Data) -> None:
    assert data.findings
    scaling = data.findings.scaling
    noise = 1 + 1e-4 * np.arange(len(scaling)) / len(scaling)
    ideal = scaling.assign(efficiency=noise, efficiency_low=np.nan, efficiency_high=np.nan)
    changed = replace(data, findings=replace(data.findings, scaling=ideal))
    for name in ("answer", "efficiency"):
        axes = draw(name, changed).axes[-1]
        low, high = axes.get_xlim() if name == "answer" else axes.get_ylim()
        assert high - low > 1.9


def test_a_count_without_a_value_does_not_stretch_the_shared_scale(data: Data) -> None:
    first = data.cells.gpus == data.gpus[0]
    energy = data.cells.energy_per_item_j.where(first)
    panels = draw("energy", replace(data, cells=data.cells.assign(energy_per_item_j=energy))).axes
    ((low, high),) = {axes.get_xlim() for axes in panels}
    assert 0.5 * energy.min() < low < energy.min()
    assert energy.max() < high < 2 * energy.max()


def test_strategies_differ_without_colour(data: Data) -> None:
    looks = [(look.marker, look.open_face) for look in data.looks.values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("name", FIGURES)
def test_axes_say_their_scale_and_all_panels_have_the_same(
    name: str, drawn: Callable[[str], Figure]
) -> None:
    figure = drawn(name)
    panels = figure.axes
    # The lower panels of the losses are differences, around 0; trade-offs say it once for all axes.
    assert len({panel.get_xscale() for panel in panels}) == 1
    assert len({panel.get_yscale() for panel in panels}) == 1
    words = " ".join(text.get_text() for text in texts(figure))
    logarithmic = "log" in {panels[0].get_xscale(), panels[0].get_yscale()}
    assert logarithmic == ("logarithmic" in words)
    assert ("linear" in words) == (
        "linear" in {panels[0].get_xscale(), *numeric_scales(name, panels)}
    )


def numeric_scales(name: str, panels: Sequence[Axes]) -> set[str]:
    """The scales of the vertical axes, if these have numbers and not names."""
    with_numbers = name in ("trade_off", "scaling", "efficiency", "timeline", "loss", "answer")
    return {panels[0].get_yscale()} if with_numbers else set()


# The others say it for several axes at once, or have logarithmic axes.
ONE_AXIS_OF_NUMBERS = set(FIGURES) - {"answer", "trade_off", "scaling", "timeline", "loss"}


@pytest.mark.parametrize("name", sorted(ONE_AXIS_OF_NUMBERS))
def test_an_axis_that_starts_at_0_says_so(name: str, drawn: Callable[[str], Figure]) -> None:
    figure = drawn(name)
    words = " ".join(text.get_text() for text in texts(figure))
    if figure.axes[0].get_xscale() == "log" and name == "step_time":
        return
    assert "from 0" in words
    starts = {
        panel.get_ylim()[0] if name == "efficiency" else panel.get_xlim()[0]
        for panel in figure.axes
    }
    assert (starts == {0}) == ("not from 0" not in words)


@pytest.mark.parametrize("name", FIGURES)
def test_an_axis_of_numbers_has_enough_ticks(
    name: str, data: Data, drawn_smaller: Callable[[str], Figure]
) -> None:
    figure = drawn_smaller(name)
    FigureCanvasAgg(figure).draw()
    fewest = 3 if data.width_mm == PAGE_MM else 2
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_ticklocs() if low <= tick <= high]
            # The rows of timelines are 8 mm high.
            assert len(ticks) >= (2 if name == "timeline" else fewest), (name, low, high, ticks)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_on_a_printed_page(
    name: str,
    data: Data,
    drawn: Callable[[str], Figure],
    drawn_smaller: Callable[[str], Figure],
) -> None:
    figure = drawn_smaller(name) if data.width_mm == COLUMN_MM else drawn(name)
    width, height = 25.4 * figure.get_size_inches()
    assert width == pytest.approx(data.width_mm)
    assert height <= TALLEST_MM


def test_the_grid_of_outcomes_has_a_sign_for_every_kind_of_gap(
    drawn: Callable[[str], Figure],
) -> None:
    figure = drawn(OUTCOMES)
    check_legible(figure)
    words = {text.get_text() for text in texts(figure)}
    for sign in ("M", "D", "T", "·", "–", "●"):
        assert sign in words
    assert f"·  {Outcome.MISSING.meaning}" in words


def test_every_figure_has_a_caption_and_a_drawing() -> None:
    assert set(DRAWN_BY) == {*FIGURES, OUTCOMES}
    for name in [*FIGURES, OUTCOMES]:
        assert caption(name)
        assert ".. include" not in caption(name)
    assert "Pale runs are excluded." in caption("throughput")


def test_step_times_are_of_the_slowest_rank_in_the_steady_window(data: Data) -> None:
    steps = data.steps
    one = steps[(steps.strategy == "ddp") & (steps.gpus == 2) & (steps.seed == 0)]
    assert len(one) == 100, "one rank's, and none of the training's"
    of_cell = data.cells[(data.cells.strategy == "ddp") & (data.cells.gpus == 2)]
    assert one.step_ms.median() == pytest.approx(of_cell[of_cell.seed == 0].step_ms_p50.item(), 0.1)


def test_a_timeline_begins_with_the_steady_window(data: Data) -> None:
    timeline = data.timelines["fsdp2"]
    assert (timeline.gpus, timeline.seed) == (4, 0), "where most strategies have one"
    assert len(data.timelines) == 12
    assert timeline.samples.at_s.min() == -40


def test_a_strategy_that_another_beats_is_pale_in_the_trade_off(
    data: Data, drawn: Callable[[str], Figure]
) -> None:
    panels = [axes for axes in drawn("trade_off").axes if axes.get_title("left") == "4 GPUs"]
    assert len(panels) == 3
    for axes in panels:
        alpha = {line.get_marker(): line.get_alpha() for line in axes.lines if line.get_alpha()}
        for name, look in data.looks.items():
            if look.marker in alpha and not look.open_face:
                assert (alpha[look.marker] == 1) == (name in data.pareto(4)), name


@pytest.mark.parametrize(
    ("end", "values", "expected"),
    [
        (16_000, (0, 3_000, 6_000), ["0", "3k", "6k"]),
        (9_000, (0, 3_000, 6_000), ["0", "3,000", "6,000"]),
        (0.016, (0, 0.005, 0.015), ["0", "0.005", "0.015"]),
        (0.008, (0, 0.002, 0.004), ["0", "2e-03", "4e-03"]),
    ],
)
def test_all_numbers_of_an_axis_are_written_in_one_way(
    end: float, values: tuple[float, ...], expected: list[str]
) -> None:
    axes = Figure().subplots()
    axes.set_xlim(0, end)
    axes.xaxis.set_major_formatter(Ticks())
    assert list(map(axes.xaxis.get_major_formatter(), values)) == expected


@pytest.mark.parametrize("name", ["step_split", "wall_clock"])
def test_bars_of_all_counts_have_one_scale(
    name: str, data: Data, drawn: Callable[[str], Figure]
) -> None:
    panels = drawn(name).axes
    assert len(panels) == len(data.gpus)
    ((low, high),) = {axes.get_xlim() for axes in panels}
    assert low == 0
    assert all(bar.get_x() + bar.get_width() <= high for axes in panels for bar in axes.patches)


def test_parts_that_no_cell_has_are_not_in_the_legend(drawn: Callable[[str], Figure]) -> None:
    legend = drawn("wall_clock").legends[0]
    named = [text.get_text() for text in legend.get_texts()]
    assert "training" in named
    assert "inspection, profile" not in named


@pytest.mark.slow
def test_what_was_not_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp", "fsdp2"], gpus=[1])
    for path in write_matrix(config, tmp_path):
        path.with_name("steps.csv").unlink()
        path.with_name("telemetry.csv").unlink()
    data = data_of(config, tmp_path)
    not_drawn = draw_all(data, tmp_path / "figures", (*FIGURES, OUTCOMES))
    assert set(not_drawn) == {"scaling", "efficiency", "step_time", "timeline"}
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = {*FIGURES, OUTCOMES} - not_drawn.keys()
    assert files == {f"{name}.{kind}" for name in drawn for kind in FIGURE_KINDS} | {
        f"{NOT_DRAWN}.json"
    }
    with pytest.raises(NothingToDraw, match="two GPU counts"):
        draw("scaling", data)


@pytest.mark.parametrize(
    ("name", "figure", "damage"),
    [
        ("steps.csv", "step_time", lambda text: text[: len(text) // 2]),
        ("steps.csv", "step_time", lambda text: ""),
        ("steps.csv", "step_time", lambda text: text.replace("steady", "ready")),
        ("steps.csv", "step_time", lambda text: text.replace("step_ms", "other")),
        ("telemetry.csv", "timeline", lambda text: "\0\1\n" * 40),
        ("telemetry.csv", "timeline", lambda text: text.replace(",0.0,", ",much,")),
    ],
    ids=["cut off", "empty", "no steady steps", "no such column", "no text", "no numbers"],
)
def test_a_damaged_file_costs_its_figure_and_names_the_cell(
    name: str, figure: str, damage: Callable[[str], str], tmp_path: Path
) -> None:
    config = config_of(seeds=[0], strategies=["ddp", "fsdp2"], gpus=[1, 2])
    paths = write_matrix(config, tmp_path)
    for path in paths:
        path.with_name(name).write_text(damage(path.with_name(name).read_text()))
    data = data_of(config, tmp_path)
    not_drawn = draw_all(data, tmp_path / "figures", ["loss", figure], ["svg"])
    assert set(not_drawn) == {figure}
    assert f"gpus2/seed0/{name} is damaged (" in not_drawn[figure]
    assert not_drawn[figure].endswith("run its cell again, or delete the file")


def test_the_samplers_last_row_may_be_cut_off(tmp_path: Path) -> None:
    config = config_of(seeds=[0], strategies=["ddp"], gpus=[1])
    (path,) = write_matrix(config, tmp_path)
    with path.with_name("telemetry.csv").open("a") as file:
        file.write("52.")
    data = data_of(config, tmp_path)
    assert data.timelines["ddp"].samples.at_s.notna().all()


def test_a_lone_epoch_has_one_tick_and_strategies_side_by_side(data: Data) -> None:
    first = data.epochs[data.epochs.epoch == data.epochs.epoch.min()]
    figure = draw("loss", replace(data, epochs=first))
    check_legible(figure)
    above = figure.axes[0]
    low, high = above.get_xlim()
    assert [tick for tick in above.get_xticks() if low < tick < high] == [1]
    places = {float(line.get_xdata()[0]) for line in above.lines}
    assert len(places) == len(data.labels)


def test_a_run_that_does_not_count_is_pale_and_not_in_the_median(data: Data) -> None:
    name, count = next(iter(data.labels)), data.gpus[0]
    runs = data.counted[(data.counted.strategy == name) & (data.counted.gpus == count)]
    assert len(runs) > 2
    out = runs.items_per_s.idxmax()
    cells = data.cells.copy()
    cells.loc[out, ["device_faults", "excluded"]] = "throttled"
    axes = draw("throughput", replace(data, cells=cells)).axes[0]
    row = [line for line in axes.lines if list(line.get_ydata())[:1] == [0]]
    pale = [line for line in row if line.get_alpha() == LEFT_OUT]
    assert [list(line.get_xdata()) for line in pale] == [[runs.items_per_s[out]]]
    (median,) = [line for line in row if line.get_alpha() is None]
    assert list(median.get_xdata()) == [runs.items_per_s.drop(out).median()]


def faulty(data: Data, name: str) -> Data:
    """All runs of a strategy on throttled GPUs, and ten times better in everything."""
    cells = data.cells.copy()
    of_it = cells.strategy == name
    cells.loc[of_it, ["device_faults", "excluded"]] = "throttled"
    cells.loc[of_it, ["items_per_s"]] *= 10
    cells.loc[of_it, ["memory_used_peak_bytes", "energy_per_item_j"]] /= 10
    assert data.findings
    findings = find(cells, data.baseline, 0.02)
    return replace(data, cells=cells, findings=findings)


@pytest.mark.slow
def test_a_strategy_of_excluded_runs_alone_beats_nothing_and_is_pale(data: Data) -> None:
    name = list(data.labels)[1]
    odd = faulty(data, name)
    look = odd.looks[name]
    for figure in ("trade_off", "throughput", "step_time"):
        drawn = draw(figure, odd)
        lines = [line for axes in drawn.axes for line in axes.lines if len(line.get_xdata())]
        own = [
            line
            for line in lines
            if line.get_marker() == look.marker
            and look.colour in (line.get_markeredgecolor(), line.get_markerfacecolor())
        ]
        assert own, figure
        alphas = [line.get_alpha() for line in own]
        assert all(alpha is not None and alpha < 0.5 for alpha in alphas), (figure, alphas)
    others = [line for axes in draw("trade_off", odd).axes for line in axes.lines]
    assert any(line.get_alpha() == 1 for line in others), "the Pareto set is of those compared"


@pytest.mark.slow
def test_an_excluded_runs_loss_is_pale(data: Data) -> None:
    name = list(data.labels)[1]
    before, after = draw("loss", data), draw("loss", faulty(data, name))

    def pale(figure: Figure) -> int:
        return sum(
            len(lines.get_segments())
            for axes in figure.axes
            for lines in axes.collections
            if isinstance(lines, LineCollection) and lines.get_alpha() == LEFT_OUT
        )

    # One panel per GPU count, or two: the baseline has no difference from itself.
    runs = len(data.ok[data.ok.strategy == name])
    assert pale(after) - pale(before) in (runs, 2 * runs)


def test_what_only_left_out_runs_have_is_not_drawn_as_measured(data: Data) -> None:
    cells = data.cells.copy()
    first = cells.seed == cells.seed.min()
    cells.loc[first, ["device_faults", "excluded"]] = "throttled"
    cells.loc[~first, "energy_per_item_j"] = float("nan")
    drawn = draw("trade_off", replace(data, cells=cells))
    assert not any("Energy" in axes.get_ylabel() for axes in drawn.axes)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width_mm", [PAGE_MM, COLUMN_MM])
def test_a_strategy_alone_has_room_for_its_axes(tmp_path: Path, width_mm: float) -> None:
    config = of_width(config_of(strategies=["ddp"], gpus=[1, 2]), width_mm)
    write_matrix(config, tmp_path)
    alone = data_of(config, tmp_path)
    for name in FIGURES:
        check_legible(draw(name, alone))
    first = alone.epochs[alone.epochs.epoch == alone.epochs.epoch.min()]
    lone = draw("loss", replace(alone, epochs=first)).axes[0]
    assert {float(line.get_xdata()[0]) for line in lone.lines} == {1.0}, "nothing to stand beside"
