"""Which cells take part in comparisons, and why the others do not."""

from __future__ import annotations

import pandas as pd

from shardmark.measurement.labels import runs_compiled, updates_weights
from shardmark.measurement.validity import names_of_rules
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome


def why_excluded(planned: PlannedCell, parity: str) -> str:
    """Return why a cell takes no part in comparisons; empty if it does.

    For a device fault this names the rules, as in ``throttled, ECC errors``, so that equal reasons
    can be counted. The figures that broke the limits are in ``device_faults``.

    Args:
        planned: the cell and its result.
        parity: the gate's verdict on its strategy and GPU count.
    """
    metrics = planned.metrics
    if metrics is None or metrics.status != "ok":
        return str(planned.outcome)
    if metrics.device_faults:
        return ", ".join(names_of_rules(metrics.device_faults))
    if not updates_weights(metrics):
        return "not training"
    if not runs_compiled(metrics):
        return "not compiled"
    return "" if parity == "passed" else f"parity {parity}"


def describe_absence(runs: pd.DataFrame) -> str:
    """Return in words why none of a strategy's runs takes part in comparisons.

    Args:
        runs: its rows of cells.csv, at one GPU count or at all, none of which counts.
    """
    reasons = [
        f"excluded: {excluded}" if status == "ok" else Outcome(outcome).meaning
        for status, outcome, excluded in zip(runs.status, runs.outcome, runs.excluded, strict=True)
    ]
    return ", ".join(dict.fromkeys(reasons))
