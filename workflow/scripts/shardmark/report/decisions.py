"""The table to choose a strategy by: the best by each objective, its price, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardmark.quantities import describe_gpus
from shardmark.report.sentences import percent, quantity, with_labels
from shardmark.report.table import Table
from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.standing import Standing, Verdict

# More names than these say less than their number.
NAMED = 3
_SHOWN = {"established": "shown to be better than", "likely": "likely better than"}


def decision_table(verdicts: Sequence[Verdict], device: str) -> Table:
    """The best strategy by each objective at every GPU count, and whether the tests show it.

    Args:
        verdicts: of one workload, one per GPU count.
        device: cuda or cpu.
    """
    rows = []
    for verdict in map(with_labels, verdicts):
        runs = [number for number in verdict.runs.values() if number]
        spread = (
            f"{min(runs)} to {max(runs)}" if len(set(runs)) > 1 else f"{runs[0]}" if runs else "0"
        )
        standings = [
            _standing(verdict, one) for one in (verdict.fastest, verdict.memory, verdict.energy)
        ]
        rows.append([describe_gpus(device, verdict.gpus), spread, *standings])
    return Table(
        caption="The best strategy by each objective (median of its runs)",
        headings=["", "Runs", "Highest throughput", "Least memory", "Least energy"],
        rows=rows,
        notes=[
            "Below each: how sure it is; the next by the same objective; what it costs by the "
            "other two (throughput also against the fastest). Shown means that tests at the 5 % "
            "level say so; likely, that they do if noise is normal; not told apart, that the runs "
            "so far do not, and more seeds may.",
            "Throughput is what the matrix is judged by; memory (the peak of the fullest GPU) and "
            "energy are exploratory: their tests are not corrected for their number.",
        ],
    )


def _standing(verdict: Verdict, standing: Standing | None) -> str:
    if verdict.fastest.best is None:
        return "no usable cell"
    if standing is None or standing.best is None or standing.value is None:
        return "not measured"
    best = f"{standing.best}, {quantity(standing.metric, standing.value)}"
    notes = (
        _sureness(standing, verdict.margin),
        _next(standing),
        _price(verdict, standing),
    )
    return " ".join([best, *(f"[{note}]" for note in notes if note)])


def _next(standing: Standing) -> str:
    """The second best ratio to the best."""
    if not standing.ratios:
        return ""
    best_first = max if standing.metric == PRIMARY.column else min
    second = best_first(standing.ratios, key=standing.ratios.__getitem__)
    return f"next: {second}, {percent(standing.ratios[second])} against it"


def _price(verdict: Verdict, standing: Standing) -> str:
    parts = list(_by_the_others(verdict, standing))
    if not parts:
        return ""
    return f"{'with' if standing.metric == PRIMARY.column else 'at'} {', '.join(parts)}"


def _by_the_others(verdict: Verdict, standing: Standing) -> Iterator[str]:
    """What the best by one objective has by the others, as far as they were measured."""
    own, fastest = verdict.medians[standing.best or ""], verdict.fastest
    for metric in verdict.objectives:
        if metric == standing.metric or metric not in own:
            continue
        text = quantity(metric, own[metric])
        if metric == PRIMARY.column and standing.best in fastest.ratios:
            text += f" ({percent(fastest.ratios[standing.best])})"
        yield text


def _sureness(standing: Standing, margin: float) -> str:
    others = standing.worse + standing.equivalent + standing.open
    if not others:
        return "nothing to compare to"
    if standing.shown:
        than = ", ".join(others) if len(others) <= NAMED else f"all {len(others)} others"
        return f"{_SHOWN[standing.tier]} {than}"
    groups = (
        ("better than", standing.worse),
        (f"equivalent within {100 * margin:g} % to", standing.equivalent),
        ("not told apart yet from", standing.open),
    )
    return "; ".join(f"{words} {_few(names, len(others))}" for words, names in groups if names)


def _few(names: Sequence[str], of: int) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"any of the {of} others" if len(names) == of else f"{len(names)} of the {of} others"
