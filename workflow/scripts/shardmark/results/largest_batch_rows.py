"""largest_batches.csv: the largest batch of each strategy and GPU count, where it was searched."""

from __future__ import annotations

from pathlib import Path

from shardmark.config.schema import Config
from shardmark.config.values import Section
from shardmark.lanes import Lane, lane_of
from shardmark.results.cell_rows import column
from shardmark.results.searches import PlannedSearch, read_searches

# The statuses of a search that has yet to give a result.
WITHOUT_RESULT = ("failed", "refused", "missing")
_NONE = "there is no such batch"
_NO_GPU = f"{_NONE}, or the cell runs on CPUs"


class LargestBatchRow(Section):
    """One search. Every strategy has its own batch, so no row is comparable with a cell."""

    workload: str = column("Name of the workload.")
    strategy: str = column("Name of the strategy or variant.")
    lane: Lane = column("Arithmetic of the row, as in cells.csv.")
    gpus: int = column("Number of replicas.")
    status: str = column(
        "found, reached_most (the largest batch that is tried fits), does_not_fit (not even the "
        "smallest fits), unsupported, failed (the last try left no result), refused (the file is "
        "damaged, or of another definition) or missing."
    )
    micro_batch: int | None = column(
        "Largest samples of one forward pass of a replica that fit.", empty=_NONE
    )
    per_gpu_batch: int | None = column(
        "Samples per replica and step at this micro-batch, with the accumulated ones.", empty=_NONE
    )
    unit: str | None = column(
        "What throughput counts: images, tokens, or what a user's own training counts.", empty=_NONE
    )
    items_per_s: float | None = column(
        "Throughput of all replicas at this batch, in the steady window.", empty=_NONE
    )
    items_per_s_per_gpu: float | None = column("The same per replica.", empty=_NONE)
    half_width_pct: float | None = column(
        "Half-width of the 95 % confidence interval of the mean step, as a share of the mean.",
        empty=f"{_NONE}, or the window had fewer than 20 steps",
    )
    torch_allocated_bytes: int | None = column(
        "Torch's peak of allocated memory in the window, on the fullest GPU.", empty=_NO_GPU
    )
    torch_reserved_bytes: int | None = column(
        "Torch's peak of reserved memory in the window, on the fullest GPU.", empty=_NO_GPU
    )
    gpu_memory_bytes: int | None = column("Memory of that GPU.", empty=_NO_GPU)
    allocation_retries: int | None = column(
        "How often an allocation in the window failed on one of the GPUs, and torch freed its "
        "cached memory and tried again, which takes time.",
        empty=_NO_GPU,
    )
    trials: str | None = column(
        "Micro-batches that were tried, in order, and how each ended: fits, oom, stalled (no rank "
        "made progress) or killed. A last one that ended in the steady window is there twice.",
        empty="none was tried",
    )
    reason: str | None = column("Why there is no such batch.", empty="there is one")


def largest_batch_rows(config: Config, root: Path = Path()) -> list[LargestBatchRow]:
    """Return one row per search of the configuration, in the order of the matrix."""
    return [_row(one) for one in read_searches(config, root)]


def _row(one: PlannedSearch) -> LargestBatchRow:
    search, largest = one.search, one.largest
    status = "refused" if one.refusal else "failed" if one.failure else "missing"
    values = {
        "workload": search.cell.workload,
        "strategy": search.cell.strategy,
        "lane": lane_of(search.cell.options),
        "gpus": search.cell.gpus,
        "status": status,
        "reason": one.refusal or one.failure or "there is no result",
    }
    if largest is not None:
        trials = [f"{trial.micro_batch} {trial.outcome}" for trial in largest.trials]
        values |= largest.measured.model_dump() if largest.measured else {}
        values |= {
            "status": largest.status,
            "micro_batch": largest.micro_batch,
            "per_gpu_batch": largest.per_gpu_batch,
            "trials": "; ".join(trials) or None,
            "reason": largest.reason,
        }
    return LargestBatchRow.model_validate(dict.fromkeys(LargestBatchRow.model_fields) | values)
