"""What a reader must know before relying on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from shardmark.config.schema import Measure
from shardmark.quantities import replicas_noun
from shardmark.report.sentences import join_names
from shardmark.results.collected import Tables
from shardmark.results.largest_batch_rows import WITHOUT_RESULT
from shardmark.results.outcome import Outcome
from shardmark.strategies import label_of

# In shorter windows, energy and drift mean little.
LONG_ENOUGH_S = Measure.model_fields["steady_min_s"].default


class Caveat(NamedTuple):
    """One caveat.

    Attributes:
        text: the caveat in one line.
        section: the section of the page with the details; empty if there is none.
    """

    text: str
    section: str = ""


def caveats(tables: Tables) -> Iterator[Caveat]:
    """Yield the caveats, most important first."""
    cells, record = tables.cells, tables.record
    cuda = record.device == "cuda"
    reported = cells[cells.status != ""]
    for words, verdicts in (
        ("Not proven to train the same model at every GPU count", ["failed", "error"]),
        ("No verdict of the parity gate yet, at one GPU count or more", ["missing"]),
    ):
        strategies = reported[reported.parity.isin(verdicts)].strategy.unique()
        if len(strategies):
            names = join_names(list(map(label_of, sorted(strategies))))
            yield Caveat(f"{words}: {names}.", "parity")
    missing, refused = ((cells.outcome == end).sum() for end in (Outcome.MISSING, Outcome.REFUSED))
    if missing:
        yield Caveat(f"{missing} of {len(cells)} planned runs: no result yet.", "failures")
    if refused:
        yield Caveat(f"{_runs(refused)} left a result that does not count.", "failures")
    searches = tables.largest_batches
    unsearched = searches.status.isin(WITHOUT_RESULT).sum()
    if unsearched:
        yield Caveat(
            f"{unsearched} of {len(searches)} searches for the largest batch have no result.",
            "largest-batch",
        )
    faulty = reported[reported.device_faults != ""]
    if len(faulty):
        yield Caveat(
            f"{len(faulty)} of {len(reported)} runs excluded for a device fault "
            f"({', '.join(dict.fromkeys(_names(faulty.device_faults)))}).",
            "failures",
        )
    if bad := (~cells.status.isin(["ok", "unsupported", ""])).sum():
        yield Caveat(f"{_runs(bad)} did not end well.", "failures")
    flagged = sum(len(certificate.flagged) for certificate in record.certificates)
    if flagged:
        differences = "difference" if flagged == 1 else "differences"
        yield Caveat(f"Settings: {flagged} unexplained {differences}.", "settings")
    devices = "GPUs" if cuda else "machines"
    apart = _counts_on_other_devices(cells, "device_uuids" if cuda else "hosts")
    if apart:
        pairs = "; ".join(f"{small} and {large}" for small, large in apart)
        yield Caveat(
            f"The scaling of at least one strategy also compares {devices}: none ran both "
            f"{replicas_noun(record.device)} counts ({pairs}).",
            "scaling",
        )
    if cells.seed.nunique() == 1:
        yield Caveat("One run per strategy: any difference may be chance.")
    compared = cells[cells.excluded == ""]
    if not cuda and compared.groupby("nodes").gpus.nunique().gt(1).any():
        yield Caveat(
            "On one machine all processes share its cores, so the scaling says nothing about GPUs.",
            "scaling",
        )
    short = cells.window_s[cells.window_s < LONG_ENOUGH_S]
    if record.steady_min_s < LONG_ENOUGH_S and len(short):
        measures = "energy and drift are" if cuda else "drift is"
        yield Caveat(
            f"{_runs(len(short))} had a timed window of less than {LONG_ENOUGH_S:g} s, the "
            f"shortest of {short.min():.1f} s, so {measures} uncertain."
        )
    if imprecise := list(_names(cells.labels)).count("imprecise"):
        yield Caveat(
            f"{_runs(imprecise)} reached the longest window before the step time was precise.",
            "steps",
        )
    if stale := (cells.stale == True).sum():  # noqa: E712
        yield Caveat(f"{_runs(stale)} {'was' if stale == 1 else 'were'} made by earlier code.")
    ok = cells[cells.status == "ok"]
    labelled = ok[ok.labels != ""]
    if len(labelled):
        yield Caveat(
            f"{len(labelled)} of {len(ok)} runs carry a label "
            f"({', '.join(dict.fromkeys(_names(labelled.labels)))}).",
            "steps",
        )
    unchecked = Counter(_names(cells.unknown))
    # This label needs control cells, which most matrices do not plan.
    del unchecked["input-bound"]
    if unchecked:
        names = ", ".join(f"{rule} ({_runs(count)})" for rule, count in unchecked.most_common())
        yield Caveat(f"Could not be checked: {names}.")
    for workload, why in _first_reasons(cells):
        yield Caveat(
            f"The FLOPs of {workload} could not be counted ({why}), so the figures that need them "
            "are missing."
        )
    if cuda and 1 in set(cells.gpus) and cells.gpus.nunique() > 1:
        yield Caveat(
            "On 1 GPU nothing is sharded or communicated, so it is only the reference for scaling."
        )


def _counts_on_other_devices(cells: pd.DataFrame, column: str) -> list[tuple[int, int]]:
    """Return the pairs of GPU counts between which a strategy scales, but to other devices.

    Args:
        cells: rows of cells.csv.
        column: the column with a cell's devices; where it is empty, they are unknown.
    """
    pairs = set()
    compared = cells[cells.excluded == ""]
    for _, runs in compared.groupby(["workload", "scaling", "strategy"]):
        used = {
            int(side.gpus.iloc[0]): {one for names in side[column] for one in names.split(";")}
            for _, side in runs.groupby("gpus")
        }
        smallest = min(used)
        pairs |= {
            (smallest, gpus)
            for gpus, devices in used.items()
            if gpus > smallest and "" not in devices | used[smallest]
            if devices.isdisjoint(used[smallest])
        }
    return sorted(pairs)


def _first_reasons(cells: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield each workload whose FLOPs could not be counted, with the first reason."""
    reasons = cells[cells.why_uncounted != ""].groupby("workload").why_uncounted.first()
    return ((str(workload), str(why)) for workload, why in reasons.items())


def _names(column: pd.Series) -> Iterator[str]:
    """Yield the names of the rules in a column, each once per cell."""
    return (name for text in column for name in text.split(";") if name)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
