"""A verdict in plain sentences: reservations first, then what the tests show, with units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from shardmark.statistics.eligibility import GROUP
from shardmark.statistics.family import FEWEST_ESTABLISHED, FEWEST_LIKELY
from shardmark.statistics.standing import Standing, Verdict
from shardmark.strategies import label_of

OBJECTIVES = {
    "images_per_s": "throughput",
    "memory_used_peak_bytes": "memory",
    "energy_per_image_j": "energy",
}


def sentences(verdict: Verdict, comparisons: pd.DataFrame) -> list[str]:
    """The sentences of a verdict.

    Args:
        verdict: of one workload, scaling and GPU count.
        comparisons: comparisons.csv; the primary rows of that GPU count are used.
    """
    key = [verdict.workload, verdict.scaling, verdict.gpus]
    rows = comparisons[(comparisons[GROUP] == key).all(axis=1)]
    rows = rows[rows["family"] == "primary"]
    names = rows[["strategy", "baseline"]].map(label_of)
    verdict, rows = with_labels(verdict), rows.assign(**names)
    return [
        *_reservations(verdict, rows),
        *_fastest(verdict, rows),
        *_against_baseline(verdict, rows),
        *_cheapest(verdict),
        *_pareto(verdict),
    ]


def with_labels(verdict: Verdict) -> Verdict:
    """The verdict with every strategy under the label that readers know it by."""

    def relabel(standing: Standing | None) -> Standing | None:
        if standing is None:
            return None
        lists = ("equivalent", "open", "worse", "not_compared")
        update: dict[str, Any] = {
            name: list(map(label_of, getattr(standing, name))) for name in lists
        }
        best = standing.best and label_of(standing.best)
        update["ratios"] = {label_of(name): value for name, value in standing.ratios.items()}
        return standing.model_copy(update={"best": best, **update})

    return verdict.model_copy(
        update={
            "baseline": label_of(verdict.baseline),
            "pareto": list(map(label_of, verdict.pareto)),
            **{name: relabel(getattr(verdict, name)) for name in ("fastest", "memory", "energy")},
            **{
                name: {label_of(key): value for key, value in getattr(verdict, name).items()}
                for name in ("runs", "excluded", "medians")
            },
        }
    )


def listed(names: Sequence[str]) -> str:
    """Names as a person lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def percent(ratio: float) -> str:
    """A ratio as a signed difference, with no sign where it rounds to nothing."""
    change = f"{100 * (ratio - 1):+.1f}"
    return "0.0 %" if float(change) == 0 else f"{change.replace('-', '−')} %"


def ratio_text(row: pd.Series[Any]) -> str:
    """A comparison's ratio with its 95 % interval, where n is large enough for one."""
    if math.isnan(row["ci_low"]) or math.isnan(row["ci_high"]):
        return percent(row["ratio"])
    return f"{percent(row['ratio'])}, {percent(row['ci_low'])} to {percent(row['ci_high'])}"


# Of the reasons in comparisons.csv, those that need more than their own words.
_REASONS = {
    "few_runs": f"fewer than {FEWEST_LIKELY} runs",
    "no_device_with_two_runs": "no devices have two runs of either, so the spread is unknown",
    "beyond_200_runs": "more than 200 runs would be needed to settle it",
    "within_margin": "a difference is shown, smaller than the margin",
    "devices_never_met": "they never ran on the same devices",
    "devices_unknown": "it is not known which devices they ran on",
    "no_common_seed": "they have no seed in common",
}


def explain(row: Mapping[Any, Any]) -> str:
    """Why a row of comparisons.csv is not comparable, open or a special case; empty if it says."""
    values, reason = row["reason_values"], row["reason"]
    if row["seeds_needed"] == row["seeds_needed"]:
        return f"about {row['seeds_needed']:.0f} runs of each would settle it"
    if reason.startswith("mixed_"):
        return f"mixed {reason.removeprefix('mixed_').replace('_', ' ')}: {values}"
    words = _REASONS.get(reason, reason.replace("_", " "))
    return f"{label_of(values)}: {words}" if values else words


def quantity(metric: str, value: float) -> str:
    """A value with its unit."""
    if metric == "images_per_s":
        return f"{value:,.0f} images/s"
    if metric == "memory_used_peak_bytes":
        return f"{value / 2**30:.1f} GiB"
    return f"{value:.3g} J per image"


def _reservations(verdict: Verdict, rows: pd.DataFrame) -> list[str]:
    runs = [number for number in verdict.runs.values() if number]
    said = []
    if runs and max(runs) < FEWEST_LIKELY:
        number = "one run" if max(runs) == 1 else f"{max(runs)} runs"
        said.append(
            f"There {'is' if max(runs) == 1 else 'are'} {number} of each strategy, which can show "
            f"nothing: from {FEWEST_LIKELY} runs on a difference can be likely, from "
            f"{FEWEST_ESTABLISHED} on established."
        )
    elif runs and min(runs) < max(runs):
        fewer = [name for name, number in verdict.runs.items() if 0 < number < max(runs)]
        numbers = listed([f"{name} {verdict.runs[name]}" for name in fewer])
        said.append(f"Not all have the same number of runs: {numbers}, the others {max(runs)}.")
    said += _left_out(verdict)
    if any(verdict.runs.values()) and not verdict.runs.get(verdict.baseline):
        said.append(f"{verdict.baseline}, the baseline, has no usable cell to compare to.")
    return [*said, *_how_compared(verdict, rows)]


def _how_compared(verdict: Verdict, rows: pd.DataFrame) -> list[str]:
    """Which comparisons are refused, and which are not of pairs."""
    refused = rows[
        (rows["verdict"] == "not comparable") & (rows["n"] > 0) & (rows["n_baseline"] > 0)
    ]
    said = [
        f"{row['strategy']} is not compared to {row['baseline']}: {explain(row.to_dict())}."
        for _, row in refused.iterrows()
    ]
    unpaired = rows[rows["ratio"].notna() & ~rows["paired"].astype(bool)]["strategy"]
    if len(unpaired):
        said.append(
            f"The runs of {listed(list(unpaired))} are not paired with those of "
            f"{verdict.baseline}, since they were on different devices."
        )
    return said


def _left_out(verdict: Verdict) -> list[str]:
    """Of each reason, how many cells of which strategies it leaves out."""
    by_reason: dict[str, list[str]] = {}
    for name, reasons in verdict.excluded.items():
        whole = sum(reasons.values()) + verdict.runs[name]
        for reason, number in reasons.items():
            cells = "the only cell" if whole == 1 else f"{number} of {whole} cells"
            by_reason.setdefault(reason, []).append(f"{cells} of {name}")
    return [f"Left out, {reason}: {listed(cells)}." for reason, cells in by_reason.items()]


def _fastest(verdict: Verdict, rows: pd.DataFrame) -> list[str]:
    found = verdict.fastest
    if found.best is None or found.value is None:
        return ["No strategy has a usable cell."]
    value = f"{quantity(found.metric, found.value)} (median of {verdict.runs[found.best]})"
    own = rows[(rows["strategy"] == found.best) & rows["ratio"].notna()]
    against = ""
    if len(own):
        against = f", against {verdict.baseline} {percent(own.iloc[0]['ratio'])}"
    if len([number for number in verdict.runs.values() if number]) == 1:
        return [f"Only {found.best} has usable cells: {value}."]
    if found.shown:
        among = " of those compared" if found.not_compared else ""
        sure = "likely " if found.tier == "likely" else ""
        return [f"{found.best} is {sure}the fastest{among}: {value}{against}."]
    return [
        "No strategy is shown to be the fastest.",
        f"{found.best} has the highest throughput, {value}{against}{_others(verdict, found)}.",
    ]


def _others(verdict: Verdict, found: Standing) -> str:
    parts = []
    if found.equivalent:
        parts.append(
            f"equivalent to it within {100 * verdict.margin:g} %: {listed(found.equivalent)}"
        )
    if found.open and not (found.equivalent or found.worse or found.not_compared):
        parts.append("not told apart from any other")
    elif found.open:
        parts.append(f"not told apart from it: {listed(found.open)}")
    if found.worse:
        word = "slower" if found.metric == "images_per_s" else "more"
        parts.append(f"shown to be {word}: {listed(found.worse)}")
    if found.not_compared:
        parts.append(f"not compared to it: {listed(found.not_compared)}")
    return "".join(f"; {part}" for part in parts)


def _against_baseline(verdict: Verdict, rows: pd.DataFrame) -> list[str]:
    known = rows[rows["ratio"].notna()].sort_values("ratio", ascending=False)
    titles = {
        "faster": "faster",
        "equivalent": f"equivalent within {100 * verdict.margin:g} %",
        "slower": "slower",
        "open": "open",
    }
    parts = []
    for word, title in titles.items():
        chosen = known[known["verdict"] == word]
        named = [f"{row['strategy']} ({ratio_text(row)})" for _, row in chosen.iterrows()]
        if named:
            parts.append(f"{title}: {listed(named)}")
    intervals = ", with 95 % intervals" if known["ci_low"].notna().any() else ""
    said = f"Against {verdict.baseline}, the baseline{intervals}: {'; '.join(parts)}."
    return [said] if parts else []


def _cheapest(verdict: Verdict) -> list[str]:
    said = []
    for found, title, place in (
        (verdict.memory, "memory", " at the peak of its fullest GPU"),
        (verdict.energy, "energy", ""),
    ):
        if found is None or found.best is None or found.value is None:
            continue
        value = f"{quantity(found.metric, found.value)}{place}"
        if found.shown:
            sure = "likely " if found.tier == "likely" else ""
            said.append(f"{found.best} {sure}needs the least {title}: {value} (exploratory).")
        else:
            rest = _others(verdict, found)
            said.append(f"{found.best} has the lowest {title}, {value}{rest} (exploratory).")
    return said


def _pareto(verdict: Verdict) -> list[str]:
    if len(verdict.objectives) < 2 or len(verdict.pareto) < 1:
        return []
    weighed = listed([OBJECTIVES[metric] for metric in verdict.objectives])
    everyone = [name for name, number in verdict.runs.items() if number]
    if len(everyone) < 2:
        return []
    if len(verdict.pareto) == len(everyone):
        return [f"By {weighed} together, no strategy beats another (exploratory)."]
    return [
        f"By {weighed} together, these are beaten by none (exploratory): {listed(verdict.pareto)}."
    ]
