"""What a reader must know before relying on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from shardmark.config.schema import Measure
from shardmark.results.collected import Tables
from shardmark.results.outcome import Outcome
from shardmark.strategies import label_of

# What a window must last for energy and drift to mean something.
LONG_ENOUGH_S = Measure.model_fields["steady_min_s"].default


class Caveat(NamedTuple):
    """A reservation of one line.

    Attributes:
        text: the line.
        section: the part of the page that says more; empty if none does.
    """

    text: str
    section: str = ""


def caveats(tables: Tables) -> Iterator[Caveat]:
    """Return what limits the page, most important first."""
    cells, record = tables.cells, tables.record
    cuda = record.device == "cuda"
    reported = cells[cells.status != ""]
    unproven = reported[~reported.parity.isin(["passed", "unsupported"])].strategy.unique()
    if len(unproven):
        names = ", ".join(map(label_of, sorted(unproven)))
        yield Caveat(f"Not shown to train the same model at every GPU count: {names}.", "parity")
    lacking = cells.outcome.isin([Outcome.MISSING, Outcome.REFUSED]).sum()
    if lacking:
        yield Caveat(f"{lacking} of {len(cells)} runs have no result that counts.", "failures")
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
        yield Caveat(f"{flagged} differences in settings are not explained.", "settings")
    if cells.seed.nunique() == 1:
        yield Caveat("One run per strategy: any difference may be chance.")
    if imprecise := list(_names(cells.labels)).count("imprecise"):
        yield Caveat(
            f"{_runs(imprecise)} ended at the cap of the window before the figure was precise.",
            "steps",
        )
    if record.steady_min_s < LONG_ENOUGH_S:
        yield Caveat(
            f"Timed windows of {record.steady_min_s:g} s or more: under {LONG_ENOUGH_S:g} s "
            "energy and drift say little."
        )
    if stale := (cells.stale == True).sum():  # noqa: E712
        yield Caveat(f"{_runs(stale)} made by earlier code than the present.")
    labelled = cells[(cells.status == "ok") & (cells.labels != "")]
    if len(labelled):
        yield Caveat(
            f"{len(labelled)} of {len(reported)} runs carry a label "
            f"({', '.join(dict.fromkeys(_names(labelled.labels)))}).",
            "steps",
        )
    unchecked = Counter(_names(cells.unknown))
    # It needs control cells, which most matrices do not plan.
    del unchecked["input-bound"]
    if unchecked:
        names = ", ".join(f"{rule} ({_runs(count)})" for rule, count in unchecked.most_common())
        yield Caveat(f"Could not be checked: {names}.")
    if cuda and 1 in set(cells.gpus) and cells.gpus.nunique() > 1:
        yield Caveat(
            "On 1 GPU nothing is sharded or communicated: it is the reference for scaling only."
        )


def _names(column: pd.Series) -> Iterator[str]:
    """Yield the names of rules in a column, a name once per cell."""
    return (name for text in column for name in text.split(";") if name)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
