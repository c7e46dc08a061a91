"""failures.csv: one row per cell that did not succeed, or that a device fault excludes."""

from __future__ import annotations

from collections.abc import Iterable

from shardmark.config.values import Section
from shardmark.results.cell_rows import column
from shardmark.results.matrix import PlannedCell
from shardmark.results.outcome import Outcome


class FailureRow(Section):
    """One cell without a good result; an unsupported cell has one row for all its seeds."""

    workload: str = column("Name of the workload.")
    strategy: str = column("Name of the strategy or variant.")
    gpus: int = column("Number of replicas.")
    seed: int | None = column("Seed of the run.", empty="the row is for all seeds")
    outcome: str = column(
        "How the cell ended: oom, timeout, diverged, failed, refused, unsupported or device fault."
    )
    phase: str | None = column("Phase in which the cell failed.", empty="it is not known")
    rank: int | None = column("Rank that failed first.", empty="it is not known")
    reason: str = column("Why the cell is not ok.")
    log: str | None = column("Last lines of the cell's log.", empty="there are none")


def failure_rows(matrix: Iterable[PlannedCell]) -> list[FailureRow]:
    """Return the rows, in the order of the configuration."""
    rows = [row for planned in matrix if (row := _row(planned))]
    # All seeds of an unsupported cell give the same row.
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def _row(planned: PlannedCell) -> FailureRow | None:
    cell, metrics = planned.cell, planned.metrics
    failure = metrics.failure if metrics else None
    if failure:
        reason = failure.exception
    elif planned.outcome is Outcome.REFUSED:
        reason = planned.refusal
    elif planned.outcome is Outcome.DEVICE_FAULT and metrics:
        reason = "; ".join(metrics.device_faults)
    else:
        return None
    return FailureRow(
        workload=cell.workload,
        strategy=cell.strategy,
        gpus=cell.gpus,
        seed=None if planned.outcome is Outcome.UNSUPPORTED else cell.seed,
        outcome=planned.outcome,
        phase=failure.phase if failure else None,
        rank=failure.rank if failure else None,
        reason=reason,
        log="\n".join(failure.log_tail) if failure else None,
    )
