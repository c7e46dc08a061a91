"""The search for the largest batch that fits: how far it is, and its result.

Each strategy has its own batch here, so nothing of it is compared with cells.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shardmark.cells import BatchSearch
from shardmark.codebase import code_of_search, code_sha256
from shardmark.config.values import Count, Name, Positive, Record, Section, Total

# How a trial of a size ended. ``stalled``: no rank made progress. ``killed``: something killed a
# rank, and the kernel counted no process that it killed for lack of memory.
TrialOutcome = Literal["fits", "oom", "stalled", "killed"]
# An accident can also stall or kill ranks. So only the second of these at the same size counts.
_EVIDENCE: dict[TrialOutcome, int] = {"fits": 0, "oom": 2, "stalled": 1, "killed": 1}
_ENOUGH = 2


class Trial(Record):
    """A micro-batch that was tried, and how that ended."""

    micro_batch: Count
    outcome: TrialOutcome


class Measured(Record):
    """What the steady window at the largest batch showed; the memory is that of the fullest GPU.

    Attributes:
        unit: images or tokens.
        items_per_s: of all replicas; the slowest rank counts.
        items_per_s_per_gpu: the same per replica.
        half_width_pct: half-width of the 95 % confidence interval of the mean step, % of the mean.
        torch_allocated_bytes: torch's peak of allocated memory; None on a CPU.
        torch_reserved_bytes: torch's peak of reserved memory; None on a CPU.
        gpu_memory_bytes: memory of that GPU; None on a CPU.
        allocation_retries: how often an allocation failed on a GPU of the cell, and torch freed its
            cached memory and tried again; None on a CPU.
    """

    unit: str
    items_per_s: Positive
    items_per_s_per_gpu: Positive
    half_width_pct: Positive | None
    torch_allocated_bytes: Total | None
    torch_reserved_bytes: Total | None
    gpu_memory_bytes: Annotated[Total, Field(ge=1)] | None
    allocation_retries: Total | None = None


class SearchState(Section):
    """How far a search is. The launcher and rank 0 write it, so that a new launch can continue it.

    Attributes:
        search: what is searched.
        trials: the sizes that were tried, in order.
        trying: the size that is being tried or measured; None before the model is built.
        measured: what the steady window at the largest batch showed, at the very end.
    """

    search: BatchSearch
    trials: tuple[Trial, ...] = ()
    trying: Count | None = None
    measured: Measured | None = None

    @property
    def too_large(self) -> int | None:
        """The smallest size that is known not to fit."""
        evidence: Counter[int] = Counter()
        for trial in self.trials:
            evidence[trial.micro_batch] += _EVIDENCE[trial.outcome]
        return min((size for size, sum_ in evidence.items() if sum_ >= _ENOUGH), default=None)

    @property
    def largest(self) -> int | None:
        """The largest size that is known to fit.

        A size whose three steps fit, but not its steady window, is too large.
        """
        fitting = [trial.micro_batch for trial in self.trials if trial.outcome == "fits"]
        limit = self.too_large
        return max((size for size in fitting if limit is None or size < limit), default=None)

    def next_size(self) -> int | None:
        """The next size to try; None if the largest is known, or none fits.

        Sizes double until one does not fit. Then the range between is halved.
        """
        least, most = self.search.least, self.search.most
        low, high = self.largest, self.too_large
        if high is None:
            doubled = least if low is None else min(2 * low, most)
            return None if doubled == low else doubled
        below = least - 1 if low is None else low
        return (below + high) // 2 if high - below > 1 else None

    def after(self, size: int, outcome: TrialOutcome) -> SearchState:
        """Return the state after a trial."""
        trial = Trial(micro_batch=size, outcome=outcome)
        return self.model_copy(update={"trials": (*self.trials, trial), "trying": None})


class LargestBatch(Record):
    """The largest batch of a strategy at one GPU count.

    Attributes:
        status: ``found``; ``reached_most`` if the largest size that is tried fits; ``does_not_fit``
            if the smallest does not; ``unsupported`` if the strategy cannot run.
        micro_batch: samples in one forward pass of a replica.
        per_gpu_batch: samples per replica and step: the micro-batch times the accumulated ones.
        trials: the sizes that were tried, in order.
        measured: what the steady window at this batch showed.
        reason: why there is no batch.
        search_sha256: checksum of what was searched.
        code_sha256: checksum of the code that made this.
    """

    schema_version: Literal[1] = 1
    workload: Name
    strategy: Name
    gpus: Count
    device: str
    status: Literal["found", "reached_most", "does_not_fit", "unsupported"]
    micro_batch: Count | None = None
    per_gpu_batch: Count | None = None
    trials: list[Trial] = Field(default_factory=list)
    measured: Measured | None = None
    reason: str | None = None
    search_sha256: str
    code_sha256: str

    @model_validator(mode="after")
    def _has_a_batch_if_one_fits(self) -> LargestBatch:
        fits = self.status in ("found", "reached_most")
        if any((batch is not None) != fits for batch in (self.micro_batch, self.per_gpu_batch)):
            raise ValueError("has a batch if and only if one fits")
        return self

    @property
    def batch_in_words(self) -> str:
        """The batch per GPU, or why there is none, in two or three words."""
        if self.per_gpu_batch is None:
            return self.status.replace("_", " ")
        more = " or more" if self.status == "reached_most" else ""
        return f"{self.per_gpu_batch:,}{more}"


def batch_result(search: BatchSearch, **fields: Any) -> LargestBatch:
    """Return the result of a search, made with the code of today."""
    cell = search.cell
    return LargestBatch(
        workload=cell.workload,
        strategy=cell.strategy,
        gpus=cell.gpus,
        device=cell.device,
        search_sha256=search.fingerprint(),
        code_sha256=code_sha256(code_of_search(search)),
        **fields,
    )
