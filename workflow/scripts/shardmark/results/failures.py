"""The cells that have no good result, and why."""

from __future__ import annotations

from collections.abc import Sequence

from shardmark.metrics import Metrics
from shardmark.results.gaps import Gaps


def failures(metrics: Sequence[Metrics], gaps: Gaps) -> list[dict[str, str]]:
    """Every cell without a good result, and why; a planned impossibility once for all seeds."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in metrics:
        if result.failure is None:
            continue
        cell = result.cell
        where = f"{result.failure.phase or '–'}"
        if result.failure.rank is not None:
            where += f", rank {result.failure.rank}"
        name = f"{cell.workload} {cell.strategy} gpus{cell.gpus}"
        if result.status != "unsupported":
            name += f" seed{cell.seed}"
        rows[name, result.status, result.failure.exception] = {
            "cell": name,
            "status": result.status,
            "where": where,
            "reason": result.failure.exception,
            "log": "\n".join(result.failure.log_tail),
        }
    for result in metrics:
        if result.validity == "suspect":
            reason = "; ".join(result.validity_reasons)
            rows[result.cell.title, "suspect", reason] = {
                "cell": result.cell.title,
                "status": "suspect",
                "where": "–",
                "reason": reason,
                "log": "",
            }
    for cell, reason in gaps.refused:
        rows[cell.title, "refused", reason] = {
            "cell": cell.title,
            "status": "refused",
            "where": "–",
            "reason": reason,
            "log": "",
        }
    return list(rows.values())
