"""The answer of the first screen: which strategy to use and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from shardmark.quantities import describe_gpus, percent
from shardmark.report.sentences import listed, quantity
from shardmark.results.outcome import Outcome
from shardmark.results.run_record import RunRecord
from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.family import FEWEST_LIKELY
from shardmark.statistics.standing import Standing, Verdict
from shardmark.statistics.verdict import MEMORY
from shardmark.strategies import label_of

Badge = Literal["established", "likely", "open", "no answer"]

# The choices of this page, not of the statistics.
# An accuracy of less than this many times that of guessing is at the level of chance.
NEAR_CHANCE = 1.5
# Shorter windows hold too few steps, and too few readings of power.
SHORTEST_WINDOW_S = 2.0
# A strategy slower than this share of the fastest is no contender: it is to be avoided if it is
# shown to be slower.
AVOIDED = 0.7
# More names than these are a number.
NAMED = 3
# Why a strategy has no run that counts, worst for the reader first.
_FAILED = {
    Outcome.OOM: "Out of memory",
    Outcome.DIVERGED: "Diverged",
    Outcome.TIMEOUT: "Out of time",
    Outcome.FAILED: "Failed",
    Outcome.UNSUPPORTED: "Cannot run",
    Outcome.DEVICE_FAULT: "Excluded for a device fault",
    Outcome.MISSING: "No result yet",
}


@dataclass(frozen=True)
class Answer:
    """What the first screen says about one workload.

    Attributes:
        badge: how sure the choice is; "no answer" if the data cannot give one.
        lead: the choice, or why there is none.
        rest: its reasons and the alternatives, one sentence each, with the bold part first.
        missing: how many more runs would settle an open choice; empty if that is not so.
    """

    badge: Badge
    lead: str
    rest: list[tuple[str, str]]
    missing: str = ""

    @property
    def text(self) -> str:
        """The whole answer as plain text."""
        parts = [self.lead, *(f"{bold} {plain}".strip() for bold, plain in self.rest)]
        return " ".join([*parts, *([self.missing] if self.missing else [])])


def answer(
    workload: str,
    cells: pd.DataFrame,
    record: RunRecord,
    verdicts: Sequence[Verdict],
    scaling: pd.DataFrame,
) -> Answer:
    """Return the answer for the largest GPU count that has usable cells.

    Args:
        workload: its name.
        cells: rows of cells.csv of the workload.
        record: what is known of the matrix.
        verdicts: of the workload, one per GPU count.
        scaling: rows of scaling.csv of the workload.
    """
    usable = [verdict for verdict in verdicts if verdict.fastest.best is not None]
    if not usable:
        return Answer("no answer", "No strategy has a result that counts.", list(_failures(cells)))
    verdict = max(usable, key=lambda one: one.gpus)
    here = cells[cells.gpus == verdict.gpus]
    reason = why_no_answer(workload, cells, record)
    if reason:
        measured = _measured(verdict, here, record.device)
        return Answer("no answer", reason, [*measured, *_failures(here)])
    badge, lead, about = _choice(verdict)
    rest = [
        ("", f"{about} on {_facts(verdict, here, scaling, record.device)}."),
        *_alternatives(verdict),
        *_failures(here),
        *_elsewhere(usable, verdict, record.device),
    ]
    return Answer(badge, lead, rest, _missing_runs(verdict))


def why_no_answer(workload: str, cells: pd.DataFrame, record: RunRecord) -> str:
    """Return why the data cannot say which strategy is best; empty if they can."""
    ok = cells[cells.status == "ok"]
    if record.device == "cpu":
        return "These are processes on CPUs: they cannot say which strategy is best on GPUs."
    if set(cells.gpus) == {1}:
        return (
            "One GPU cannot say which strategy is best on several: nothing is sharded and nothing "
            "is communicated."
        )
    if ok.window_s.median() < SHORTEST_WINDOW_S:
        return (
            f"The timed windows last {ok.window_s.median():.1f} s, too short to rank strategies "
            f"(at least {SHORTEST_WINDOW_S:g} s)."
        )
    chance = record.chance_accuracy.get(workload)
    best = ok.groupby("strategy").final_accuracy.median().max()
    if chance is not None and best < NEAR_CHANCE * chance:
        return (
            f"No strategy learned anything: the best test accuracy is {100 * best:.0f} %, and "
            f"guessing gives {100 * chance:.0f} %. Speed counts only where a training works."
        )
    return ""


def _measured(verdict: Verdict, here: pd.DataFrame, device: str) -> Iterator[tuple[str, str]]:
    """What was measured, without a choice."""
    speeds = {
        label_of(name): own[PRIMARY.column]
        for name, own in verdict.medians.items()
        if PRIMARY.column in own
    }
    if len(speeds) > 1:
        unit = here.unit.iloc[0]
        low, high = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
        yield (
            "",
            f"Measured on {describe_gpus(device, verdict.gpus)}: from "
            f"{quantity(PRIMARY.column, speeds[low], unit)} ({low}) to "
            f"{quantity(PRIMARY.column, speeds[high], unit)} ({high}).",
        )


def _choice(verdict: Verdict) -> tuple[Badge, str, str]:
    """Return how sure the choice is, the choice, and what it is."""
    found = verdict.fastest
    best = label_of(found.best or "")
    if not (found.ratios or found.not_compared):
        return "open", f"Only {best} has results.", "It runs"
    few = any(verdict.runs[name] < FEWEST_LIKELY for name in (found.best or "", *found.open))
    if found.open and few and not (found.worse or found.equivalent):
        return "open", "Too few runs to choose.", f"Ahead so far: {best}"
    contenders = _contenders(found)
    rivals = contenders or found.equivalent
    names = [best, *map(label_of, rivals)]
    if contenders:
        chosen = listed(names, "or") if len(names) <= NAMED else f"{best} or {len(rivals)} others"
        return "open", f"Use {chosen}.", f"Ahead so far: {best}"
    if found.equivalent:
        chosen = listed(names, "or") if len(names) <= NAMED else best
        return (
            found.tier,
            f"Use {chosen}.",
            f"Equal within {100 * verdict.margin:g} %: {listed(names)}. {best}",
        )
    return found.tier, f"Use {best}.", "Ahead so far" if found.open else "Fastest"


def _contenders(found: Standing) -> list[str]:
    """Return the open strategies that more runs could show to be as fast as the best."""
    return [name for name in found.open if found.ratios[name] >= AVOIDED]


def _facts(verdict: Verdict, here: pd.DataFrame, scaling: pd.DataFrame, device: str) -> str:
    """Return throughput, efficiency and memory of the best."""
    found = verdict.fastest
    unit = here.unit.iloc[0]
    speed = quantity(PRIMARY.column, found.value or 0.0, unit)
    row = scaling[(scaling.strategy == found.best) & (scaling.gpus == verdict.gpus)]
    if len(row) and row.iloc[0].reference_gpus != verdict.gpus and pd.notna(row.iloc[0].efficiency):
        speed += f", {100 * row.iloc[0].efficiency:.0f} % efficiency"
    text = f"{describe_gpus(device, verdict.gpus)} ({speed})"
    memory = verdict.medians[found.best or ""].get(MEMORY.column)
    if memory is None:
        return text
    capacity = here[here.strategy == found.best].memory_capacity_bytes.median()
    of = f"{memory / 2**30:.1f} of {capacity / 2**30:.0f} GiB" if pd.notna(capacity) else ""
    return f"{text}, {of or quantity(MEMORY.column, memory, unit)}"


def _alternatives(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """What to use if memory is tight, and what to avoid."""
    speeds = verdict.fastest.ratios
    frugal = _frugal(verdict)
    if frugal:
        name, memory = frugal
        if memory > 1 - verdict.margin:
            yield "", "No strategy needs less memory."
        else:
            yield (
                f"If memory is tight: {label_of(name)}",
                f"({_roughly(speeds[name])} speed, {_roughly(memory)} memory).",
            )
    other = [name for name in verdict.fastest.worse if not frugal or name != frugal[0]]
    if verdict.fastest.not_compared:
        yield "Not comparable:", f"{listed(list(map(label_of, verdict.fastest.not_compared)))}."
    behind = [name for name in verdict.fastest.open if speeds[name] < AVOIDED]
    if behind:
        names = [f"{label_of(name)} ({_roughly(speeds[name])})" for name in behind]
        yield "Not ranked yet:", f"{listed(names)}."
    slow = sorted((one for one in other if speeds[one] < AVOIDED), key=speeds.__getitem__)
    if slow:
        names = [f"{label_of(name)} ({_roughly(speeds[name])})" for name in slow[:NAMED]]
        yield "Avoid", f"{listed(names)}."


def _roughly(ratio: float) -> str:
    """Return a ratio as a difference that is read at a glance: no decimals from 10 % on."""
    return percent(ratio, places=0 if abs(ratio - 1) >= 0.1 else 1)


def _frugal(verdict: Verdict) -> tuple[str, float] | None:
    """Return the fastest of the strategies that need the least memory, and its ratio to the best.

    None if memory was not measured.
    """
    memory, best = verdict.memory, verdict.fastest.best
    if memory is None or memory.best is None or best is None:
        return None
    needs = {memory.best: 1.0, **memory.ratios}
    speeds = {best: 1.0, **verdict.fastest.ratios}
    least = [name for name in needs if needs[name] <= 1 + verdict.margin and name in speeds]
    if best not in needs or not least:
        return None
    name = max(least, key=speeds.__getitem__)
    return name, needs[name] / needs[best]


def _failures(here: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Of the strategies without a run that counts: what became of their runs."""
    left = here[~here.strategy.isin(here[here.excluded == ""].strategy)]
    for outcome, words in _FAILED.items():
        names = left[left.outcome == outcome].strategy.unique()
        left = left[~left.strategy.isin(names)]
        if len(names):
            yield f"{words}:", f"{listed(list(map(label_of, names)))}."
    unproven = left[left.excluded.str.startswith(("parity", "not training"))].strategy.unique()
    if len(unproven):
        yield "Not shown to train the same model:", f"{listed(list(map(label_of, unproven)))}."


def _elsewhere(
    verdicts: Sequence[Verdict], chosen: Verdict, device: str
) -> Iterator[tuple[str, str]]:
    """Where another strategy is the best, and how sure that is."""
    by_best: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        best = verdict.fastest.best
        if device == "cuda" and verdict.gpus == 1:
            # Nothing is sharded or communicated there.
            continue
        if best and verdict.fastest.shown and best != chosen.fastest.best:
            by_best.setdefault(best, []).append(verdict)
    for best, those in by_best.items():
        counts = [str(one.gpus) for one in those[:-1]] + [describe_gpus(device, those[-1].gpus)]
        sure = "likely " if any(one.fastest.tier == "likely" for one in those) else ""
        yield "", f"On {listed(counts)}, {label_of(best)} is {sure}fastest."


def _missing_runs(verdict: Verdict) -> str:
    """Return how many more runs would settle what is open."""
    found: Standing = verdict.fastest
    if not found.open:
        return ""
    runs: Mapping[str, int] = {name: verdict.runs[name] for name in (found.best or "", *found.open)}
    fewest = min(runs.values())
    if fewest < FEWEST_LIKELY:
        more = FEWEST_LIKELY - fewest
        lacking = [label_of(name) for name in runs if runs[name] < FEWEST_LIKELY]
        all_or_many = len(lacking) == len(runs) or len(lacking) > NAMED
        whose = "each" if all_or_many else listed(lacking)
        return f"It takes at least {more} more run{'' if more == 1 else 's'} of {whose}."
    if found.seeds_needed is None:
        return "More runs are unlikely to settle it."
    more = found.seeds_needed - fewest
    return f"About {more} more run{'' if more == 1 else 's'} of each would settle it."
