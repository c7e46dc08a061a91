"""What the planner must know of each strategy before any process or GPU is asked for.

Its training script, the options that a variant may set, and where it cannot run. What a strategy
*does* stands in its ``train_*.py``. Free of torch: a login node plans a matrix without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shardmark.values import Count, Flag, Number


class Options(BaseModel):
    """Options of a strategy. The defaults are the strategy as the matrix names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DpOptions(Options):
    """DataParallel."""

    lasting_threads: Flag = Field(
        False,
        description="true keeps the replicas' threads from one forward pass to the next; torch's "
        "own DataParallel starts new ones",
    )
    cudnn_benchmark: Flag | None = Field(
        None,
        description="whether cuDNN searches for its fastest kernels; null searches only where the "
        "result is kept: on one GPU, or with lasting_threads. true elsewhere repeats the search in "
        "every step: ten times slower",
    )


class DdpOptions(Options):
    """DistributedDataParallel."""

    comm_hook: Literal["none", "bf16_compress", "fp16_compress"] = Field(
        "none", description="gradient compression on the wire; not the same arithmetic as 'none'"
    )
    bucket_cap_mb: Count = Field(25, description="gradient bucket size, MiB")
    static_graph: Flag = Field(False, description="promise DDP that the graph never changes")


class FsdpOptions(Options):
    """FullyShardedDataParallel (FSDP1)."""

    sharding: Literal["full_shard", "shard_grad_op"] = Field(
        "full_shard", description="full_shard is ZeRO-3-like, shard_grad_op ZeRO-2-like"
    )
    mixed_precision: Literal["none", "bf16", "fp16"] = Field(
        "none", description="FSDP's own low-precision gather, compute and reduction"
    )
    backward_prefetch: Literal["backward_pre", "backward_post", "none"] = Field(
        "backward_pre", description="when the next unit is gathered in the backward pass"
    )


class Fsdp2Options(Options):
    """fully_shard (FSDP2)."""

    reshard_after_forward: Flag = Field(True, description="true is ZeRO-3-like, false ZeRO-2-like")
    mixed_precision: Literal["none", "bf16", "fp16"] = Field(
        "none", description="FSDP2's own low-precision gather, compute and reduction"
    )


class FairscaleOptions(Options):
    """FairScale's FullyShardedDataParallel."""

    reshard_after_forward: Flag = Field(True, description="true is ZeRO-3-like, false ZeRO-2-like")
    release_hooks: Flag = Field(
        True,
        description="false is FairScale 0.4.13 as released, whose backward hooks pile up, so that "
        "each step is slower than the one before",
    )


class DeepspeedOptions(Options):
    """DeepSpeed ZeRO, stages 1, 2 and 3."""

    gradient_clipping: Annotated[Number, Field(ge=0)] | None = Field(
        0.0,
        description="0 clips nothing; null leaves DeepSpeed's own default, 1.0 since 0.19.3",
    )
    low_precision_communication: Flag = Field(
        False, description="DeepSpeed's native autocast: gradients reduced in bf16 or fp16"
    )
    memory_efficient_linear: Flag = Field(
        False,
        description="stage 3: DeepSpeed's own linear layer, whose backward pass under autocast "
        "rounds otherwise than torch's",
    )
    overlap_comm: Flag | None = Field(None, description="null leaves the stage's own default")
    reduce_bucket_size: Count = Field(500_000_000, description="elements in a gradient bucket")


class StrategySpec(BaseModel):
    """One strategy as the planner sees it."""

    model_config = ConfigDict(frozen=True)

    script: str
    options: type[Options]
    label: str
    # DataParallel alone holds all its replicas in one process.
    one_process: bool = False


STRATEGIES: dict[str, StrategySpec] = {
    "dp": StrategySpec(
        script="train_dp.py", options=DpOptions, label="DataParallel", one_process=True
    ),
    "ddp": StrategySpec(script="train_ddp.py", options=DdpOptions, label="DDP"),
    "fsdp": StrategySpec(script="train_fsdp.py", options=FsdpOptions, label="FSDP1"),
    "fsdp2": StrategySpec(script="train_fsdp2.py", options=Fsdp2Options, label="FSDP2"),
    "fairscale_fsdp": StrategySpec(
        script="train_fairscale_fsdp.py", options=FairscaleOptions, label="FairScale FSDP"
    ),
    "deepspeed_zero1": StrategySpec(
        script="train_deepspeed.py", options=DeepspeedOptions, label="DeepSpeed ZeRO-1"
    ),
    "deepspeed_zero2": StrategySpec(
        script="train_deepspeed.py", options=DeepspeedOptions, label="DeepSpeed ZeRO-2"
    ),
    "deepspeed_zero3": StrategySpec(
        script="train_deepspeed.py", options=DeepspeedOptions, label="DeepSpeed ZeRO-3"
    ),
}


def why_unsupported(
    base: str,
    options: Mapping[str, Any],
    *,
    gpus: int,
    nodes: int,
    device: str,
    batchnorm: str | None,
    precision: str,
) -> str | None:
    """Why this strategy cannot run there, or None where it can.

    Args:
        base: the strategy's name, not a variant's.
        options: the strategy's.
        gpus: replicas of the cell.
        nodes: machines the cell spans.
        device: ``cuda`` or ``cpu``.
        batchnorm: ``local`` or ``sync``; None for a model that has none.
        precision: the workload's precision.
    """
    if base == "dp":
        if nodes > 1:
            return f"DataParallel is one process on one node; this cell spans {nodes} nodes"
        if device == "cpu" and gpus > 1:
            return "DataParallel replicates over CUDA devices only; on a CPU it is one plain module"
        if batchnorm == "sync" and gpus > 1:
            return "DataParallel has no process group, so batch-norm cannot be synchronised in it"
    if device == "cpu" and batchnorm and base == "fsdp2" and options["mixed_precision"] != "none":
        return (
            "FSDP2's mixed precision casts batch-norm's parameters and not its running statistics, "
            "and torch's batch-norm on a CPU refuses the two together"
        )
    if device == "cpu" and precision == "fp16" and base == "fairscale_fsdp":
        return "FairScale's gradient scaler, which fp16 needs, works on CUDA devices only"
    return None
