"""One record per strategy: everything about it except its ``train_*.py``.

A login node plans a matrix with these records, so this module must not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from shardmark.config.values import Count, Flag, Number


class Options(BaseModel):
    """Options of a strategy. A strategy that is not a variant runs with the defaults."""

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


class Place(NamedTuple):
    """Where and how a cell is to run.

    Attributes:
        gpus: replicas of the cell.
        nodes: machines that the cell spans.
        device: ``cuda`` or ``cpu``.
        batchnorm: ``local`` or ``sync``; None for a model that has none.
        precision: the workload's precision.
    """

    gpus: int
    nodes: int
    device: str
    batchnorm: str | None
    precision: str


Unsupported = Callable[[Mapping[str, Any], Place], str | None]


def _runs_everywhere(options: Mapping[str, Any], place: Place) -> None:
    return None


def _dp_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    if place.nodes > 1:
        return f"DataParallel is one process on one node; this cell spans {place.nodes} nodes"
    if place.device == "cpu" and place.gpus > 1:
        return "DataParallel replicates over CUDA devices only; on a CPU it is one plain module"
    if place.batchnorm == "sync" and place.gpus > 1:
        return "DataParallel has no process group, so batch-norm cannot be synchronised in it"
    return None


def _fsdp2_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    if place.device == "cpu" and place.batchnorm and options["mixed_precision"] != "none":
        return (
            "FSDP2's mixed precision casts batch-norm's parameters and not its running statistics, "
            "and torch's batch-norm on a CPU refuses the two together"
        )
    return None


def _fairscale_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    if place.device == "cpu" and place.precision == "fp16":
        return "FairScale's gradient scaler, which fp16 needs, works on CUDA devices only"
    return None


class StrategySpec(BaseModel):
    """One strategy: everything about it except its script.

    Attributes:
        script: its training script, beside this package.
        options: the options that a variant may set.
        label: its name in tables and figures.
        colour: hex colour of its lines and markers. The colours are from Okabe and Ito, "Color
            Universal Design" (2008), with the light ones darkened to a contrast of 3:1 on white.
        marker: matplotlib's marker; strategies of similar colour have different ones.
        packages: the packages that it uses besides torch. Runs with different versions of them are
            not compared.
        gathers: whether parameters travel between ranks in a step.
        shards_units: whether it shards one unit (a block of the model) at a time.
        one_process: whether one process holds all replicas.
        why_unsupported: returns why it cannot run with these options at that place; None if it can.
    """

    model_config = ConfigDict(frozen=True)

    script: str
    options: type[Options]
    label: str
    colour: str
    marker: str
    packages: tuple[str, ...] = ()
    gathers: bool = False
    shards_units: bool = False
    one_process: bool = False
    why_unsupported: Unsupported = _runs_everywhere


STRATEGIES: dict[str, StrategySpec] = {
    "dp": StrategySpec(
        script="train_dp.py",
        options=DpOptions,
        label="DataParallel",
        colour="#000000",
        marker="s",
        gathers=True,
        one_process=True,
        why_unsupported=_dp_unsupported,
    ),
    "ddp": StrategySpec(
        script="train_ddp.py", options=DdpOptions, label="DDP", colour="#0072B2", marker="o"
    ),
    "fsdp": StrategySpec(
        script="train_fsdp.py",
        options=FsdpOptions,
        label="FSDP1",
        colour="#2A93D5",
        marker="^",
        gathers=True,
        shards_units=True,
    ),
    "fsdp2": StrategySpec(
        script="train_fsdp2.py",
        options=Fsdp2Options,
        label="FSDP2",
        colour="#D55E00",
        marker="v",
        gathers=True,
        shards_units=True,
        why_unsupported=_fsdp2_unsupported,
    ),
    "fairscale_fsdp": StrategySpec(
        script="train_fairscale_fsdp.py",
        options=FairscaleOptions,
        label="FairScale FSDP",
        colour="#CC79A7",
        marker="D",
        packages=("fairscale",),
        gathers=True,
        shards_units=True,
        why_unsupported=_fairscale_unsupported,
    ),
    "deepspeed_zero1": StrategySpec(
        script="train_deepspeed.py",
        options=DeepspeedOptions,
        label="DeepSpeed ZeRO-1",
        colour="#9A7D00",
        marker="P",
        packages=("deepspeed",),
        gathers=True,
    ),
    "deepspeed_zero2": StrategySpec(
        script="train_deepspeed.py",
        options=DeepspeedOptions,
        label="DeepSpeed ZeRO-2",
        colour="#8A4B1F",
        marker="X",
        packages=("deepspeed",),
        gathers=True,
    ),
    "deepspeed_zero3": StrategySpec(
        script="train_deepspeed.py",
        options=DeepspeedOptions,
        label="DeepSpeed ZeRO-3",
        colour="#009E73",
        marker="h",
        packages=("deepspeed",),
        gathers=True,
    ),
}

# Every package that some strategy uses besides torch.
PACKAGES = tuple(dict.fromkeys(name for spec in STRATEGIES.values() for name in spec.packages))


def label_of(strategy: str) -> str:
    """Return the label of a strategy of the matrix; a variant's label is its own name."""
    return STRATEGIES[strategy].label if strategy in STRATEGIES else strategy
