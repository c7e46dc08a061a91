"""The headline of a figure: its main result with numbers, the first sentence of its caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from shardmark.quantities import Quantity, describe_gpus, format_number
from shardmark.report.sentences import join_names
from shardmark.results.cell_rows import QUANTITIES
from shardmark.statistics.eligibility import counted
from shardmark.statistics.findings import Findings
from shardmark.strategies import label_of


@dataclass(frozen=True)
class HeadlineData:
    """The results of one workload that headlines quote.

    Attributes:
        runs: those that are compared, at their largest GPU count; if none is, the others.
        findings: rows of this workload.
        where: the GPU count in words.
        device: cuda or cpu.
    """

    runs: pd.DataFrame
    findings: Findings
    where: str
    device: str

    @classmethod
    def of(cls, cells: pd.DataFrame, findings: Findings) -> HeadlineData:
        """Select the results of the workload of these cells."""
        runs = counted(cells)
        if (compared := runs.excluded == "").any():
            runs = runs[compared]
        runs = runs[runs.gpus == runs.gpus.max()]
        workload = cells.workload.iloc[0]
        of_workload = Findings(
            comparisons=findings.comparisons[findings.comparisons.workload == workload],
            scaling=findings.scaling[findings.scaling.workload == workload],
            verdicts=[verdict for verdict in findings.verdicts if verdict.workload == workload],
        )
        count = runs.gpus.max() if len(runs) else cells.gpus.max()
        device = cells.device.iloc[0]
        return cls(runs, of_workload, describe_gpus(device, int(count)), device)

    def medians(self, column: str) -> dict[str, float]:
        """Return each strategy's median by its label, ascending; empty if nothing was measured."""
        values = self.runs[column].astype(float).groupby(self.runs.strategy).median().dropna()
        return {label_of(str(name)): value for name, value in values.sort_values().items()}


def headline(name: str, data: HeadlineData) -> str:
    """Return a figure's main result in one sentence; empty if there is none."""
    by_figure = {quantity.figure: quantity for quantity in QUANTITIES.values()}
    if name in by_figure:
        return _quantity(data, by_figure[name])
    return _HEADLINES[name](data) if name in _HEADLINES else ""


def _quantity(data: HeadlineData, quantity: Quantity) -> str:
    medians = data.medians(quantity.column)
    if not medians:
        return ""
    quantity = quantity.on(data.device).of(data.runs.unit.iloc[0])
    compiles = quantity.column == "training_s" and (data.runs.compilation_s > 0).any()
    without = ", without compilation" if compiles else ""
    return f"{quantity.label} on {data.where}{without}: {_range(medians, quantity)}."


def _range(medians: Mapping[str, float], quantity: Quantity) -> str:
    """Return the best and the worst, the best first."""
    ends = list(medians)[:: len(medians) - 1 or 1]
    if quantity.better == "higher":
        ends.reverse()
    numbers = [format_number(medians[name] * quantity.scale, 3) for name in ends]
    if len(set(numbers)) == 1 < len(numbers):
        return f"{numbers[0]} {quantity.unit}".strip() + " with every strategy"
    values = [f"{number} {quantity.unit}".strip() for number in numbers]
    if len(ends) == 1:
        return f"{values[0]} with {ends[0]}"
    if quantity.better is None:
        return f"from {values[0]} ({ends[0]}) to {values[1]} ({ends[1]})"
    words = ("highest", "lowest") if quantity.better == "higher" else ("lowest", "highest")
    return ", ".join(
        f"{word} with {name} ({value})"
        for word, name, value in zip(words, ends, values, strict=True)
    )


def _scaling(data: HeadlineData) -> str:
    rows = data.findings.scaling
    rows = _farthest(rows[rows.speedup.notna()]).sort_values("speedup", ascending=False)
    if rows.empty:
        return ""
    factors = {
        label_of(row["strategy"]): f"{row['speedup']:.2f}" for row in rows.to_dict("records")
    }
    return _over_gpus(data, rows, "throughput grows by a factor of", factors)


def _efficiency(data: HeadlineData) -> str:
    rows = data.findings.scaling
    rows = _farthest(rows[rows.efficiency.notna()]).sort_values("efficiency", ascending=False)
    if rows.empty:
        return ""
    shares = {
        label_of(row["strategy"]): f"{100 * row['efficiency']:.0f} %"
        for row in rows.to_dict("records")
    }
    return _over_gpus(data, rows, "the scaling efficiency is", shares)


def _farthest(scaling: pd.DataFrame) -> pd.DataFrame:
    """Return the rows from the smallest to the largest GPU count; only these are comparable."""
    rows = scaling[scaling.gpus > scaling.reference_gpus]
    rows = rows[rows.gpus == rows.gpus.max()]
    farthest: pd.DataFrame = rows[rows.reference_gpus == rows.reference_gpus.min()]
    return farthest


def _over_gpus(data: HeadlineData, rows: pd.DataFrame, what: str, values: Mapping[str, str]) -> str:
    """Return the most and the least of descending values, between the GPU counts of the rows."""
    scaling = data.findings.scaling
    gpus, reference = int(rows.gpus.iloc[0]), int(rows.reference_gpus.iloc[0])
    others = (scaling.gpus == gpus) & scaling.reference_gpus.between(reference + 1, gpus - 1)
    whose = f", of the {len(rows)} strategies measured on both" if others.any() else ""
    (most, high), (least, low) = (list(values.items())[end] for end in (0, -1))
    if len(values) == 1:
        whose, extent = "", f"{high} with {most}"
    elif high == low:
        whose, extent = "", f"{high} with every strategy that ran on both"
    else:
        extent = f"{high} with {most} (most) and {low} with {least} (least)"
    return f"From {reference} to {describe_gpus(data.device, gpus)}{whose}, {what} {extent}."


def _step_split(data: HeadlineData) -> str:
    parts: dict[str, list[str]] = {}
    for column, words in (
        ("host_wait_pct", "waits longest for its host"),
        (
            "exposed_communication_pct",
            "spends the largest part of its step on communication alone",
        ),
    ):
        shares = data.medians(column)
        if shares and (most := max(shares.values())) >= 1:
            name = list(shares)[-1]
            parts.setdefault(name, []).append(f"{words} ({most:.0f} % of a step)")
    clauses = [f"{name} {' and '.join(words)}" for name, words in parts.items()]
    return f"On {data.where} {' and '.join(clauses)}." if clauses else ""


def _step_time(data: HeadlineData) -> str:
    tails = (data.runs.step_ms_p99 / data.runs.step_ms_p50).groupby(data.runs.strategy).median()
    tails = tails.dropna().sort_values().round(2)
    if tails.empty:
        return ""
    many = data.runs[data.runs.strategy == tails.index[-1]].steps.min() >= 100
    slowest = "one step in a hundred takes at least" if many else "the slowest step takes"
    whose = f"{label_of(tails.index[-1])} is the most uneven: in its median run"
    if len(set(tails)) == 1:
        whose = "in the median run of every strategy"
    return f"On {data.where}, {whose}, {slowest} {tails.iloc[-1]:.2f} times the run's median step."


def _wall_clock(data: HeadlineData) -> str:
    medians = data.medians("total_s")
    return f"Time of a cell on {data.where}: {_range(medians, _SECONDS)}." if medians else ""


def _loss(data: HeadlineData) -> str:
    medians = data.medians("final_loss")
    if len(medians) < 2:
        return ""
    low, high = (f"{value:.4g}" for value in (min(medians.values()), max(medians.values())))
    if low == high:
        return f"On {data.where} the final loss is {low} with every strategy."
    return f"On {data.where} the final losses of the strategies lie between {low} and {high}."


def _trade_off(data: HeadlineData) -> str:
    if not data.findings.verdicts:
        return ""
    verdict = max(data.findings.verdicts, key=lambda verdict: verdict.gpus)
    if len(verdict.objectives) < 2 or not verdict.pareto:
        return ""
    objectives = join_names([QUANTITIES[metric].label.lower() for metric in verdict.objectives])
    if len(verdict.pareto) == len(verdict.medians):
        return f"By {objectives} together, no strategy beats another on {data.where}."
    names = join_names(list(map(label_of, verdict.pareto)))
    return f"By {objectives} together, no strategy beats {names} on {data.where}."


_SECONDS = Quantity("Time", "s", "", better="lower")
_HEADLINES: dict[str, Callable[[HeadlineData], str]] = {
    "scaling": _scaling,
    "efficiency": _efficiency,
    "step_split": _step_split,
    "step_time": _step_time,
    "wall_clock": _wall_clock,
    "loss": _loss,
    "trade_off": _trade_off,
}
