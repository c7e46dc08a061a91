"""The settings that a training really ran with, read back from it for the certificate.

This module does not import torch, because the aggregation uses it.
"""

from __future__ import annotations

from typing import Any

from shardmark.config.values import Amount, Record, Total

# Kinds of collectives: GATHERS gather parameters, REDUCTIONS reduce gradients.
GATHERS = ("all_gather", "broadcast")
REDUCTIONS = ("all_reduce", "reduce_scatter", "reduce")


class Collective(Record):
    """The collectives of one kind and data type in one optimizer step of one rank.

    ``bytes`` is the larger of a call's input and output, as nccl-tests count it: the whole tensor
    for an all-reduce, the gathered one for an all-gather, the unreduced one for a reduce-scatter.
    ``ranks`` is the size of the group that took part; null for the transfers of one process, and in
    older results, which did not record it.
    """

    kind: str
    dtype: str
    calls: Total
    bytes: Total
    ranks: Total | None = None


class EffectiveConfig(Record):
    """One strategy's settings, read from its live objects and from one observed step.

    Data types are sorted lists of those observed, empty if there were none. Compute types are those
    of the outputs of convolutions and linear layers. Gather and reduction types are those of
    collectives of more than one floating-point number. Gradient types are those that the optimizer
    used in its step. ``accumulation_dtype`` is the type in which the gradients of micro-batches are
    added; null if there is one micro-batch. ``loader_workers`` counts those of one replica.
    ``unit_parameters`` counts the parameters in the workload's shard units,
    ``untrained_parameters`` those that are frozen or that the loss does not depend on,
    ``reused_parameters`` those of modules that are called more than once in a forward pass.
    ``recomputed_units`` counts the blocks that the backward pass of one micro-batch computed again.
    ``compiled_graphs`` counts the graphs that torch has compiled in the whole process.
    ``shard_ranks`` counts the ranks that share one copy of what is sharded. These six counts and
    ``accumulation_dtype`` are null in older results, which did not record them.
    """

    wrapper: str
    optimizer: str | None
    optimizer_settings: dict[str, Any]
    learning_rate: Amount | None
    gradient_clipping: Amount
    loss_scaler: str | None
    loss_scale: Amount | None
    skipped_steps: Total
    accumulate: Total
    accumulation_dtype: str | None = None
    autocast: list[str]
    parameter_dtypes: list[str]
    compute_dtypes: list[str]
    normalisation_dtypes: list[str]
    gather_dtypes: list[str]
    reduction_dtypes: list[str]
    gradient_dtypes: list[str]
    optimizer_state_dtypes: list[str]
    tf32_matmul: bool
    tf32_convolution: bool
    input_formats: list[str]
    weight_formats: list[str]
    normalisation: list[str]
    buffers_broadcast: bool
    buffers_differ_between_ranks: bool | None
    loader: str
    loader_workers: Total
    compiled: bool
    cudnn_benchmark: bool
    zero_stage: Total
    sharded_units: Total | None
    bucket_bytes: list[Total] | None
    shard_ranks: Total | None = None
    unit_parameters: Total | None = None
    untrained_parameters: Total | None = None
    reused_parameters: Total | None = None
    recomputed_units: Total | None = None
    compiled_graphs: Total | None = None
    collectives: list[Collective]
    own: dict[str, Any]

    def bytes_of(self, kinds: tuple[str, ...]) -> int:
        """Return the bytes that the observed step moved in collectives of these kinds."""
        return sum(one.bytes for one in self.collectives if one.kind in kinds)

    def ranks_of(self, kinds: tuple[str, ...]) -> list[int] | None:
        """Return the sizes of the groups in which collectives of these kinds moved parameters.

        Groups that move less than a hundredth of the bytes exchange something else, such as a norm
        or statistics of batch-norm. None if nothing moved, or if the sizes were not recorded.
        """
        moved: dict[int, int] = {}
        for one in self.collectives:
            if one.kind in kinds and one.ranks is not None:
                moved[one.ranks] = moved.get(one.ranks, 0) + one.bytes
        least = sum(moved.values()) / 100
        return sorted(ranks for ranks, size in moved.items() if size > least) or None
