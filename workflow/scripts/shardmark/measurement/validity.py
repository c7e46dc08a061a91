"""Judge a cell: its device faults exclude it, its labels explain it. No torch import.

A rule that lacks its readings is recorded as unknown, which does not exclude the cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardmark.measurement.device_faults import DEVICE_FAULTS
from shardmark.measurement.labels import LABELS
from shardmark.measurement.rules import Others, Rule
from shardmark.metrics import Metrics

_UNKNOWN = " could not be checked: "


def judge(metrics: Metrics, others: Others = None) -> Metrics:
    """Fill in a result's device faults, its labels and the rules that could not be checked.

    Args:
        metrics: result of one cell.
        others: results of the same matrix, which some rules compare it with. None for a cell that
            has just ended: these rules are applied when the cells are collected.
    """
    ok = metrics.status == "ok"
    return metrics.model_copy(
        update={
            "device_faults": list(_reasons(DEVICE_FAULTS, metrics, others)) if ok else [],
            "labels": list(_reasons(LABELS, metrics, others)) if ok else [],
            "unknown": list(_unknown(metrics, others)) if ok else [],
        }
    )


def _reasons(rules: Iterable[Rule], metrics: Metrics, others: Others) -> Iterator[str]:
    for rule in rules:
        for reason in rule.reasons(metrics, others):
            yield f"{rule.name}: {reason}"


def _unknown(metrics: Metrics, others: Others) -> Iterator[str]:
    for rule in (*DEVICE_FAULTS, *LABELS):
        for why in rule.unknown(metrics, others):
            yield f"{rule.name}{_UNKNOWN}{why}"


def names_of_rules(reasons: Iterable[str]) -> list[str]:
    """Return the names of the rules in a cell's device faults or labels, each once."""
    return list(dict.fromkeys(reason.partition(":")[0] for reason in reasons if reason))


def unchecked_rules(unknown: Iterable[str]) -> list[str]:
    """Return the names of the rules and labels that could not be checked, each once."""
    return list(dict.fromkeys(one.partition(_UNKNOWN)[0] for one in unknown if one))


def rules_in_words() -> list[tuple[str, str]]:
    """Return the name of each rule that excludes a cell, and when it does."""
    return [(rule.name, rule.condition) for rule in DEVICE_FAULTS]


def labels_in_words() -> list[tuple[str, str]]:
    """Return the name of each label, and when a cell gets it."""
    return [(rule.name, rule.condition) for rule in LABELS]
