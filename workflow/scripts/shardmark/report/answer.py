"""The report's first screen: which strategy to use, and how sure the choice is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from shardmark.lanes import LANES
from shardmark.quantities import describe_gpus, format_number, replicas_noun
from shardmark.report.sentences import format_quantity, join_names
from shardmark.results.outcome import Outcome
from shardmark.results.run_record import RunRecord
from shardmark.statistics.comparisons import PRIMARY
from shardmark.statistics.family import FEWEST_ESTABLISHED, FEWEST_LIKELY
from shardmark.statistics.standing import Standing, Verdict
from shardmark.statistics.verdict import MEMORY
from shardmark.strategies import label_of

Badge = Literal["established", "likely", "open", "no answer"]
# What each badge means, for the line below the answers.
BADGES: dict[str, str] = {
    "established": f"p<0.05, {FEWEST_ESTABLISHED}+ runs each",
    "likely": f"p<0.05, under {FEWEST_ESTABLISHED} runs each",
    "open": "undecided",
}

# These limits belong to this page, not to the statistics.
# Below this multiple of the accuracy of guessing, a model has learned nothing.
NEAR_CHANCE = 1.5
# Shorter windows hold too few steps, and too few readings of power.
SHORTEST_WINDOW_S = 2.0
# A strategy below this share of the best throughput is no contender. If the tests confirm that it
# is slower, the page advises against it.
FAR_BEHIND = 0.7
# The page names the second fastest from this share on: a reader may have another reason to use it.
CLOSE_BEHIND = 0.97
# A sentence names at most this many strategies.
MOST_NAMES = 3
AT_LEAST = {False: "", True: " or more"}
# A strategy is frugal if it needs at most this multiple of the least memory.
FRUGAL = 1.1
# If the page names a strategy for tight memory, it advises only against those below this share of
# that one's throughput.
CLEARLY_SLOWER = 0.9
# How a run may fail, worst for the reader first.
_FAILED = (Outcome.OOM, Outcome.DIVERGED, Outcome.TIMEOUT, Outcome.FAILED)
_UNPROVEN = "not proven to train the same model"
_UNCOMPILED = "ran uncompiled, although it should be compiled"
_UNCHECKED = "not yet checked by the parity gate"
_EXCLUDED = "excluded"
# Why a strategy has no run that counts, in the order in which the reasons are given.
_LEFT_OUT = (
    *(outcome.meaning for outcome in (*_FAILED, Outcome.REFUSED)),
    _UNPROVEN,
    _UNCOMPILED,
    _UNCHECKED,
    *(outcome.meaning for outcome in (Outcome.UNSUPPORTED, Outcome.DEVICE_FAULT, Outcome.MISSING)),
    _EXCLUDED,
)


@dataclass(frozen=True)
class Answer:
    """What the first screen says about one workload.

    Attributes:
        badge: how sure the choice is; "no answer" if the data cannot give one.
        lead: the choice, or why there is none.
        rest: its reasons and the alternatives, one sentence each, with the bold part first.
        more_runs: how many more runs would settle an open choice; empty if the choice is not open.
    """

    badge: Badge
    lead: str
    rest: list[tuple[str, str]]
    more_runs: str = ""

    @property
    def text(self) -> str:
        """The whole answer as plain text."""
        parts = [self.lead, *(f"{bold} {plain}".strip() for bold, plain in self.rest)]
        return " ".join([*parts, *([self.more_runs] if self.more_runs else [])])


def make_answer(
    workload: str,
    cells: pd.DataFrame,
    record: RunRecord,
    verdicts: Sequence[Verdict],
    scaling: pd.DataFrame,
    largest: pd.DataFrame,
) -> Answer:
    """Return the answer for the largest GPU count that has usable cells.

    Args:
        workload: its name.
        cells: rows of cells.csv of the workload.
        record: facts about the matrix.
        verdicts: the verdicts on the workload, one per GPU count.
        scaling: rows of scaling.csv of the workload.
        largest: rows of largest_batches.csv of the workload.
    """
    usable = [verdict for verdict in verdicts if verdict.fastest.best is not None]
    if (cells.outcome == Outcome.MISSING).all():
        return Answer("no answer", "No result yet.", [])
    if not usable:
        return Answer(
            "no answer",
            "No strategy has a result that counts.",
            list(_outcomes_without_result(cells)),
        )
    verdict = max(usable, key=lambda verdict: verdict.gpus)
    cells_there = cells[cells.gpus == verdict.gpus]
    without = [
        *_outcomes_without_result(cells_there),
        *_without_result_above(cells[cells.gpus > verdict.gpus], record.device),
    ]
    reason = why_no_answer(workload, cells, verdict.gpus, record)
    if reason:
        return Answer(
            "no answer", reason, [*_measured(verdict, cells_there, record.device), *without]
        )
    badge, lead, place = _choice(verdict)
    rest = [
        ("", f"{place} on {_facts(verdict, cells_there, scaling, record.device)}."),
        *_reservations(verdict, cells_there),
        *_alternatives(verdict),
        *without,
        *_elsewhere(usable, verdict, record.device),
        *_at_largest_batch(largest[largest.gpus == verdict.gpus], cells_there, record.device),
    ]
    return Answer(badge, lead, rest, _more_runs(verdict))


def why_no_answer(workload: str, cells: pd.DataFrame, gpus: int, record: RunRecord) -> str:
    """Return why the data do not answer which strategy is best; empty if they do.

    Args:
        workload: its name.
        cells: rows of cells.csv of the workload.
        gpus: the largest GPU count that has usable cells.
        record: facts about the matrix.
    """
    ok = cells[cells.status == "ok"]
    if record.device == "cpu":
        return "All cells ran on CPUs, and these cannot answer which strategy is best on GPUs."
    if gpus == 1:
        return (
            "One GPU cannot answer which strategy is best on several, because nothing is sharded "
            "or communicated."
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
            f"guessing gives {100 * chance:.0f} %. Speed matters only if the training works."
        )
    return ""


def _measured(
    verdict: Verdict, cells_there: pd.DataFrame, device: str
) -> Iterator[tuple[str, str]]:
    """Yield the range of the measured throughput, without a choice."""
    speeds = {
        label_of(name): medians[PRIMARY.column]
        for name, medians in verdict.medians.items()
        if PRIMARY.column in medians
    }
    if len(speeds) > 1:
        unit = cells_there.unit.iloc[0]
        low, high = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
        yield (
            "",
            f"Measured on {_each_of(verdict.gpus, device)}: from "
            f"{format_quantity(PRIMARY.column, speeds[low] / verdict.gpus, unit)} ({low}) to "
            f"{format_quantity(PRIMARY.column, speeds[high] / verdict.gpus, unit)} ({high}).",
        )


def _choice(verdict: Verdict) -> tuple[Badge, str, str]:
    """Return how sure the choice is, the choice, and the place of the best strategy in words."""
    standing = verdict.fastest
    best = label_of(standing.best or "")
    if not (standing.ratios or standing.not_compared):
        return "open", f"Only {best} has results.", "It runs"
    if not standing.ratios:
        return "open", f"No strategy can be compared with {best}.", f"{best} ran"
    if standing.too_few and not (standing.worse or standing.equivalent):
        return "open", "Too few runs to choose.", f"{best} is ahead so far"
    contenders = _contenders(standing)
    rivals = [*standing.equivalent, *contenders]
    names = [best, *map(label_of, rivals)]
    if contenders:
        chosen = (
            join_names(names, "or")
            if len(names) <= MOST_NAMES
            else f"{best} or {len(rivals)} others"
        )
        return "open", f"Use {chosen}.", f"{best} is ahead so far"
    if standing.equivalent:
        chosen = join_names(names, "or") if len(names) <= MOST_NAMES else best
        return (
            standing.tier,
            f"Use {chosen}.",
            f"Equal within {100 * verdict.margin:g} %: {join_names(names)}. {best}",
        )
    if standing.not_compared:
        return "open", f"Use {best}, as far as can be compared.", "Fastest of those compared"
    return standing.tier, f"Use {best}.", "Ahead so far" if standing.open else "Fastest"


def _contenders(standing: Standing) -> list[str]:
    """Return the unranked strategies that may still be as fast as the best."""
    return [
        name
        for name in standing.open
        if standing.ratios[name] >= FAR_BEHIND and name not in standing.behind_baseline
    ]


def _facts(verdict: Verdict, cells_there: pd.DataFrame, scaling: pd.DataFrame, device: str) -> str:
    """Return GPUs, throughput, efficiency and memory of the best strategy, in words."""
    standing = verdict.fastest
    unit = cells_there.unit.iloc[0]
    speed = format_quantity(PRIMARY.column, (standing.value or 0.0) / verdict.gpus, unit)
    row = scaling[(scaling.strategy == standing.best) & (scaling.gpus == verdict.gpus)]
    if len(row) and row.iloc[0].reference_gpus != verdict.gpus and pd.notna(row.iloc[0].efficiency):
        start = "" if row.iloc[0].reference_gpus == 1 else f" from {row.iloc[0].reference_gpus}"
        speed += f" ({100 * row.iloc[0].efficiency:.0f} % scaling efficiency{start})"
    batch = int(cells_there.per_gpu_batch_size.iloc[0])
    text = f"{_each_of(verdict.gpus, device)}: batch {batch:,}, {speed}"
    memory = verdict.medians[standing.best or ""].get(MEMORY.column)
    if memory is None:
        return text
    capacity = cells_there[cells_there.strategy == standing.best].memory_capacity_bytes.median()
    if pd.isna(capacity):
        return f"{text}, {format_quantity(MEMORY.column, memory, unit)}"
    return f"{text}, {memory / 2**30:.1f} of {capacity / 2**30:.0f} GiB"


def _each_of(gpus: int, device: str) -> str:
    """The GPUs; with several, the figures that follow are of each, as in the table."""
    each = "" if gpus == 1 else f". Per {replicas_noun(device)}"
    return f"{describe_gpus(device, gpus)}{each}"


def _reservations(verdict: Verdict, cells_there: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield what speaks against the best strategy: its arithmetic, and those runs that failed."""
    own = cells_there[cells_there.strategy == verdict.fastest.best]
    if (own.lane == "other_arithmetic").any():
        yield "", f"It changes the arithmetic (lane: {LANES['other_arithmetic']})."
    for outcome in _FAILED:
        failed = int((own.outcome == outcome).sum())
        if failed:
            yield f"{failed} of its {len(own)} runs:", f"{outcome.meaning}."


def _alternatives(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield which strategy is close behind, which to use if memory is tight, which to avoid."""
    speeds = verdict.fastest.ratios
    tight, memory = _frugal(verdict) or (None, 1.0)
    second = max(verdict.fastest.worse, key=speeds.__getitem__, default=None)
    if second and second != tight and speeds[second] >= CLOSE_BEHIND:
        yield "Close behind:", f"{label_of(second)} ({_slower(speeds[second])})."
    if tight:
        yield (
            f"If memory is tight: {label_of(tight)}",
            f"({_slower(speeds[tight])}, {_roughly(memory)} less memory).",
        )
    elif verdict.memory and len(verdict.medians) > 1:
        whose = "compared strategy" if verdict.fastest.not_compared else "strategy"
        yield "", f"No {whose} needs over {100 * verdict.margin:g} % less memory."
    if verdict.fastest.not_compared:
        yield "Not comparable:", f"{join_names(list(map(label_of, verdict.fastest.not_compared)))}."
    bound = min(FAR_BEHIND, CLEARLY_SLOWER * speeds[tight]) if tight else FAR_BEHIND
    for words, names in (
        ("Far behind so far:", verdict.fastest.open),
        ("Avoid", verdict.fastest.worse),
    ):
        far = [name for name in names if speeds[name] < bound]
        slowest = sorted(far, key=speeds.__getitem__)[:MOST_NAMES]
        if slowest:
            yield words, f"{join_names(_with_speeds(slowest, verdict.fastest))}."


def _with_speeds(names: Sequence[str], standing: Standing) -> list[str]:
    """Return labels with how much slower each is; only the first says what it is slower than."""
    first, *others = names
    speeds, best = standing.ratios, label_of(standing.best or "")
    return [
        f"{label_of(first)} ({_slower(speeds[first])} than {best})",
        *(f"{label_of(name)} ({_roughly(speeds[name])})" for name in others),
    ]


def _slower(ratio: float) -> str:
    return f"{_roughly(ratio)} {'slower' if ratio <= 1 else 'faster'}"


def _roughly(ratio: float) -> str:
    """Return by how much a ratio differs from one, without decimals from 10 % on."""
    difference = 100 * abs(ratio - 1)
    return f"{difference:.{0 if difference >= 10 else 1}f} %"


def _frugal(verdict: Verdict) -> tuple[str, float] | None:
    """Return the fastest frugal strategy, and the ratio of its memory to the best strategy's.

    None if memory was not measured, or if no strategy needs less by more than the margin.
    """
    memory, best = verdict.memory, verdict.fastest.best
    if memory is None or memory.best is None or best is None:
        return None
    needs = {memory.best: 1.0, **memory.ratios}
    speeds = {best: 1.0, **verdict.fastest.ratios}
    frugal = [
        name
        for name, need in needs.items()
        if best in needs
        and name in speeds
        and need <= FRUGAL
        and need < (1 - verdict.margin) * needs[best]
    ]
    if not frugal:
        return None
    name = max(frugal, key=speeds.__getitem__)
    return name, needs[name] / needs[best]


def _outcomes_without_result(cells_there: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield why strategies have no run that counts."""
    left = cells_there[~cells_there.strategy.isin(cells_there[cells_there.excluded == ""].strategy)]
    reasons = {str(name): _why_left_out(own) for name, own in left.groupby("strategy", sort=False)}
    for reason in _LEFT_OUT:
        names = [label_of(name) for name in reasons if reasons[name] == reason]
        if names:
            every = len(names) == cells_there.strategy.nunique() > MOST_NAMES
            text = f"{'every strategy' if every else join_names(names)}."
            if reason == _UNCHECKED:
                text += " The command that runs the matrix also runs the gate."
            yield f"{reason.capitalize()}:", text


def _why_left_out(own: pd.DataFrame) -> str:
    """Return why a strategy, given its rows of cells.csv at one GPU count, has no run that counts.

    That it trains something else comes first, because no rerun would change that.
    """
    trained = own[own.status == "ok"]
    if len(trained):
        if trained.parity.isin(["failed", "error"]).any():
            return _UNPROVEN
        if (trained.excluded == "not training").any():
            return _UNPROVEN
        if (trained.excluded == "not compiled").any():
            return _UNCOMPILED
        if (trained.parity == "missing").any():
            return _UNCHECKED
    for outcome in (*_FAILED, Outcome.REFUSED, Outcome.UNSUPPORTED, Outcome.DEVICE_FAULT):
        if (own.outcome == outcome).any():
            return outcome.meaning
    if (own.outcome == Outcome.MISSING).all():
        return Outcome.MISSING.meaning
    return _EXCLUDED


def _without_result_above(above: pd.DataFrame, device: str) -> Iterator[tuple[str, str]]:
    """Yield the GPU counts, above the one of the answer, at which no strategy has a result."""
    for count in sorted({int(count) for count in above.gpus}):
        there = above[above.gpus == count]
        if (there.outcome == Outcome.MISSING).all():
            continue
        reasons = " ".join(f"{bold} {plain}" for bold, plain in _outcomes_without_result(there))
        yield f"No strategy has a result that counts on {describe_gpus(device, count)}.", reasons


def _elsewhere(
    verdicts: Sequence[Verdict], chosen: Verdict, device: str
) -> Iterator[tuple[str, str]]:
    """Yield at which GPU counts another strategy is the fastest, and how sure that is."""
    by_best: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        best = verdict.fastest.best
        if device == "cuda" and verdict.gpus == 1:
            # On one GPU nothing is sharded or communicated.
            continue
        if best and verdict.fastest.is_settled and best != chosen.fastest.best:
            by_best.setdefault(best, []).append(verdict)
    for best, others in by_best.items():
        *counts, most = (verdict.gpus for verdict in others)
        where = join_names([*map(str, counts), describe_gpus(device, most)])
        likely = any(verdict.fastest.tier == "likely" for verdict in others)
        yield "", f"On {where}, {label_of(best)} is {'likely ' if likely else ''}fastest."


def _at_largest_batch(
    largest: pd.DataFrame, cells_there: pd.DataFrame, device: str
) -> Iterator[tuple[str, str]]:
    """Yield the fastest strategies at equal memory, each at its own batch.

    Strategies of another arithmetic, and those that did not pass the parity gate, are left out.
    """
    passed = cells_there[cells_there.parity == "passed"]
    proven = passed[passed.excluded != "not training"]
    fits = largest[largest.items_per_s_per_gpu.notna() & largest.strategy.isin(proven.strategy)]
    fits = fits[fits.lane != "other_arithmetic"]
    fits = fits.sort_values("items_per_s_per_gpu", ascending=False)
    if len(fits):
        unit = f"{fits.unit.iloc[0]}/s per {replicas_noun(device)}"
        names = [
            f"{label_of(row['strategy'])} {format_number(row['items_per_s_per_gpu'])} "
            f"(batch {int(row['per_gpu_batch']):,}{AT_LEAST[row['status'] == 'reached_most']})"
            for row in fits.head(MOST_NAMES).to_dict("records")
        ]
        yield f"At the largest batch that fits ({unit}, measured once):", f"{join_names(names)}."


def _more_runs(verdict: Verdict) -> str:
    """Return how many more runs would settle an open choice, in words."""
    standing: Standing = verdict.fastest
    if not standing.open:
        return ""
    if standing.too_few:
        names = (standing.best or "", *standing.open)
        lacking = [label_of(name) for name in names if verdict.runs[name] < FEWEST_LIKELY]
        if not lacking:
            return (
                f"Choosing takes at least {FEWEST_LIKELY} runs of each strategy with the same "
                "seeds on the same devices."
            )
        all_or_many = len(lacking) == len(names) or len(lacking) > MOST_NAMES
        whose = "each strategy" if all_or_many else join_names(lacking)
        return f"Choosing takes at least {FEWEST_LIKELY} runs of {whose}."
    if standing.more_runs is None:
        return "More runs are unlikely to settle it."
    more = standing.more_runs
    return f"About {more} more run{'' if more == 1 else 's'} of each would settle it."
