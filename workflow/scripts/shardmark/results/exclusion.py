"""Which cells take part in comparisons, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable

from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome


def why_excluded(planned: PlannedCell, parity: str, *, compare_suspect: bool) -> str:
    """Return why a cell takes no part in comparisons; empty if it does.

    For a suspect cell this names the rules, as in ``suspect (drifting)``, so that equal reasons can
    be counted. The figures that broke the limits are in ``validity_reasons``.

    Args:
        planned: the cell and its result.
        parity: the gate's verdict on its strategy and GPU count.
        compare_suspect: ``validity.compare_suspect`` of the configuration.
    """
    metrics = planned.metrics
    if metrics is None or metrics.status != "ok":
        return str(planned.outcome)
    if planned.outcome is Outcome.SUSPECT and not compare_suspect:
        return f"suspect ({', '.join(names_of_rules(metrics.validity_reasons))})"
    return "" if parity == "passed" else f"parity {parity}"


def names_of_rules(reasons: Iterable[str]) -> list[str]:
    """Return the names of the rules in a cell's ``validity_reasons``, each once."""
    return list(dict.fromkeys(reason.partition(":")[0] for reason in reasons if reason))
