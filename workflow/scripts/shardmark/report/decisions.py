"""The table to choose a strategy by: the best by each objective, its price, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardmark.config import Config
from shardmark.quantities import replicas
from shardmark.report.summary import Table
from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.wording import percent, quantity

# More names than these say less than their number.
NAMED = 3
# What makes a standing another one; its value is of other runs in any case.
FINDING = ("best", "shown", "worse", "equivalent", "open", "not_compared")

Found = Mapping[str, Any]


def decisions(config: Config, verdicts: Sequence[Found]) -> Table:
    """The best strategy by each objective at every GPU count, and whether that is shown.

    Args:
        config: the matrix.
        verdicts: ``verdict.Verdict`` of one workload as plain mappings, a GPU count each.
    """
    rows = []
    for found in verdicts:
        runs = [number for number in found["runs"].values() if number]
        spread = (
            f"{min(runs)} to {max(runs)}" if len(set(runs)) > 1 else f"{runs[0]}" if runs else "0"
        )
        standings = [_standing(found, name) for name in ("fastest", "memory", "energy")]
        rows.append([replicas(config.cluster.device, found["gpus"]), spread, *standings])
    return Table(
        caption="The best strategy by each objective (median of its runs)",
        headings=["", "Runs", "Highest throughput", "Least memory", "Least energy"],
        rows=rows,
        notes=[
            "Below each: how sure it is; the next by the same objective; what it costs by the "
            "other two (throughput also against the fastest). Shown means that tests at the 5 % "
            "level say so; not told apart means that the runs so far do not, and more seeds may.",
            *_on_suspects(verdicts),
            "Throughput is what the matrix is judged by; memory (the peak of the fullest GPU) and "
            "energy are exploratory: their tests are not corrected for their number.",
        ],
    )


def _on_suspects(verdicts: Sequence[Found]) -> Iterator[str]:
    if any(found["with_suspects"] for found in verdicts):
        yield (
            "Suspect runs are left out by a written rule; what they would change, were they "
            "counted too, is exploratory."
        )


def _standing(found: Found, objective: str) -> str:
    standing = found[objective]
    if found["fastest"]["best"] is None:
        others = _with_suspects(found, objective)
        return "no usable cell" + (f" [{others}]" if others else "")
    if standing is None:
        return "not measured"
    best = f"{standing['best']}, {quantity(standing['metric'], standing['value'])}"
    notes = (
        _sureness(standing, found["margin"]),
        _with_suspects(found, objective),
        _next(found, standing),
        _price(found, standing),
    )
    return " ".join([best, *(f"[{note}]" for note in notes if note)])


def _next(found: Found, standing: Found) -> str:
    """The second best median, and how far it lies behind."""
    metric, best = standing["metric"], standing["best"]
    known = {name: own[metric] for name, own in found["medians"].items() if metric in own}
    others = [name for name in known if name != best]
    if not others:
        return ""
    second = (max if metric == PRIMARY.column else min)(others, key=known.__getitem__)
    return f"next: {second}, {percent(known[second] / known[best])} against it"


def _price(found: Found, standing: Found) -> str:
    parts = list(_by_the_others(found, standing))
    if not parts:
        return ""
    return f"{'with' if standing['metric'] == PRIMARY.column else 'at'} {', '.join(parts)}"


def _by_the_others(found: Found, standing: Found) -> Iterator[str]:
    """What the best by one objective has by the others, as far as they were measured."""
    own, fastest = found["medians"][standing["best"]], found["fastest"]
    for metric in found["objectives"]:
        if metric == standing["metric"] or metric not in own:
            continue
        text = quantity(metric, own[metric])
        if metric == PRIMARY.column and standing["best"] != fastest["best"]:
            text += f" ({percent(own[metric] / fastest['value'])})"
        yield text


def _sureness(standing: Found, margin: float) -> str:
    others = standing["worse"] + standing["equivalent"] + standing["open"]
    if not others:
        return "nothing to compare to"
    if standing["shown"]:
        than = ", ".join(others) if len(others) <= NAMED else f"all {len(others)} others"
        return f"shown to be better than {than}"
    told = (
        ("shown to be better than", "worse"),
        (f"equivalent within {100 * margin:g} % to", "equivalent"),
        ("not told apart yet from", "open"),
    )
    parts = [
        f"{words} {_few(standing[kind], len(others))}" for words, kind in told if standing[kind]
    ]
    return "; ".join(parts)


def _with_suspects(found: Found, objective: str) -> str:
    """What the best would be and how sure, were the suspect runs counted too."""
    all_in, own = found["with_suspects"], found[objective]
    standing = all_in[objective] if all_in else None
    if standing is None or standing["best"] is None:
        return ""
    if own and all(standing[key] == own[key] for key in FINDING):
        return "with the suspect runs too: the same"
    best = "" if own and standing["best"] == own["best"] else f"{standing['best']}, "
    return f"with the suspect runs too: {best}{_sureness(standing, found['margin'])}"


def _few(names: Sequence[str], of: int) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"any of the {of} others" if len(names) == of else f"{len(names)} of the {of} others"
