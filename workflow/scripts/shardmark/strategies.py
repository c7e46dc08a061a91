"""One record per strategy: everything about it except its ``train_*.py``.

A login node plans a matrix with these records, so this module must not import torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from shardmark.config.values import (
    Count,
    Flag,
    FlagOrGroupSize,
    FreeOptions,
    GroupSize,
    Number,
    TrueOrGroupSize,
)
from shardmark.lanes import Lane

Dtype = Literal["fp32", "bf16", "fp16"]


class Options(BaseModel):
    """Options of a strategy. A strategy that is not a variant runs with the defaults.

    Attributes:
        newer: options that older results do not have. While they have their defaults, they do not
            define a cell, so older results stay valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    newer: ClassVar[frozenset[str]] = frozenset()


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
    zero_redundancy: Flag = Field(
        False,
        description="torch's ZeroRedundancyOptimizer: each rank updates some of the parameters and "
        "broadcasts them, so that optimizer state is sharded, as in ZeRO-1",
    )
    compile: Literal["model"] | None = Field(
        None,
        description="model compiles the whole model after DDP has wrapped it, as torch's "
        "maintainers advise: it splits the graph at DDP's buckets; null follows the workload",
    )


class MixedPrecisionOptions(Options):
    """The mixed precision of torch's FSDP, which replaces autocast."""

    param_dtype: Dtype = Field(
        "fp32",
        description="precision in which parameters are gathered and computed; a low one must be "
        "the workload's. With fp32, autocast computes in the workload's precision",
    )
    reduce_dtype: Dtype = Field("fp32", description="precision in which gradients are reduced")


_SHARD_SIZE = Field(
    None,
    description="HSDP: GPUs that share one copy of the model's state; gradients are also averaged "
    "between the copies. node: those of one node; null: all. It must divide the GPU count",
)


class FsdpOptions(MixedPrecisionOptions):
    """FullyShardedDataParallel (FSDP1)."""

    shard_size: GroupSize | None = _SHARD_SIZE
    sharding: Literal["full_shard", "shard_grad_op"] = Field(
        "full_shard", description="full_shard is ZeRO-3-like, shard_grad_op ZeRO-2-like"
    )
    backward_prefetch: Literal["backward_pre", "backward_post", "none"] = Field(
        "backward_pre", description="when the next unit is gathered in the backward pass"
    )


class Fsdp2Options(MixedPrecisionOptions):
    """fully_shard (FSDP2)."""

    shard_size: GroupSize | None = _SHARD_SIZE
    reshard_after_forward: FlagOrGroupSize = Field(
        True,
        description="true is ZeRO-3-like, false ZeRO-2-like. A number makes groups of that many "
        "GPUs, node one group per node: each group keeps a copy of the parameters from the forward "
        "to the backward pass, so the backward pass gathers within the group. The number must "
        "divide the GPU count, and shard_size if there is one",
    )
    offload: Literal["none", "all"] = Field(
        "none",
        description="all: parameters, gradients and optimizer state are in host memory, and the "
        "CPU updates them",
    )
    compile: Literal["block"] | None = Field(
        None,
        description="block compiles each block before it is sharded, as torch's maintainers "
        "advise; null follows the workload",
    )


class FairscaleOptions(Options):
    """FairScale's FullyShardedDataParallel."""

    newer = frozenset({"overlap_reduce_scatter"})

    reshard_after_forward: Flag = Field(True, description="true is ZeRO-3-like, false ZeRO-2-like")
    release_hooks: Flag = Field(
        True,
        description="false is FairScale 0.4.13 as released, whose backward hooks pile up, so that "
        "each step is slower than the one before",
    )
    overlap_reduce_scatter: Flag | None = Field(
        None,
        description="true (FairScale's default) reduces gradients in a second communicator, beside "
        "the all-gathers; false uses one communicator; null is false in fp16, where cells with two "
        "hung, else true",
    )


class _ZeroOptions(Options):
    """DeepSpeed ZeRO, stages 1, 2 and 3."""

    newer = frozenset({"param_dtype"})

    gradient_clipping: Annotated[Number, Field(ge=0)] | None = Field(
        0.0,
        description="0 clips to the workload's clip_norm, if it has one; null leaves DeepSpeed's "
        "own default, 1.0 since 0.19.3",
    )
    param_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 is DeepSpeed's bf16 mode, without autocast: it keeps and communicates "
        "parameters and gradients in bf16, and its optimizer updates a float32 copy. The workload "
        "must be in bf16, too. With fp32, autocast computes in the workload's precision",
    )
    low_precision_communication: Flag = Field(
        False,
        description="DeepSpeed's autocast by default: gradients reduced in bf16 or fp16",
    )
    memory_efficient_linear: Flag = Field(
        False,
        description="DeepSpeed's own linear layer, whose backward pass under autocast "
        "rounds differently from torch's",
    )
    overlap_comm: Flag | None = Field(None, description="null leaves the stage's own default")
    reduce_bucket_size: Count = Field(500_000_000, description="elements in a gradient bucket")
    compile: Literal["model"] | None = Field(
        None,
        description="model compiles the whole model by the engine's own compile(); null follows "
        "the workload",
    )


class DeepspeedOptions(_ZeroOptions):
    """DeepSpeed ZeRO, stages 1 and 2."""

    memory_efficient_linear: Literal[False] = Field(
        False, description="only stage 3 has a linear layer of its own"
    )
    offload: Literal["none", "optimizer"] = Field(
        "none",
        description="optimizer: optimizer state and gradients are in host memory, and the CPU "
        "updates the parameters, with torch's optimizer",
    )


class Zero3Options(_ZeroOptions):
    """DeepSpeed ZeRO, stage 3."""

    reshard_after_forward: TrueOrGroupSize = Field(
        True,
        description="A number makes groups of that many GPUs, node one group per node: each group "
        "keeps a copy of the parameters from the first gather of a step to the step's end, and "
        "gathers within the group (DeepSpeed's zero_hpz_partition_size). The number must divide "
        "the GPU count",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="optimizer: optimizer state and gradients are in host memory, and the CPU "
        "updates the parameters, with torch's optimizer. all: the parameters' shards too",
    )


class OwnOptions(Options):
    """A strategy of the user's own, in one file."""

    file: Annotated[str, Field(min_length=1)] = Field(
        description="The file that defines the strategy; a path relative to the project."
    )
    options: FreeOptions = Field(
        default_factory=dict, description="What the file may read as its options; any keys."
    )
    packages: list[str] = Field(
        default_factory=list,
        description="Packages that it uses besides torch. Runs with different versions of them are "
        "not compared.",
    )
    lane: Lane = Field(
        "same_arithmetic",
        description="Whether it computes what every strategy computes (docs/method.md); "
        "as_recommended for a framework's own mixed precision, other_arithmetic for anything else.",
    )


class Place(NamedTuple):
    """Where and how a cell is to run.

    Attributes:
        gpus: replicas of the cell.
        nodes: machines that the cell spans.
        device: ``cuda`` or ``cpu``.
        batchnorm: ``local`` or ``sync``; None for a model that has none.
        precision: the workload's precision.
        compilation: what torch compiles: ``none``, each ``block``, or the ``model``.
        checkpoints: whether the backward pass computes each block again.
        decay: the parameters that decay, ``all`` or ``matrices``.
        clips: whether the gradient is clipped.
    """

    gpus: int
    nodes: int
    device: str
    batchnorm: str | None
    precision: str
    compilation: str
    checkpoints: bool
    decay: str
    clips: bool


Unsupported = Callable[[Mapping[str, Any], Place], str | None]


class Groups(NamedTuple):
    """The sizes of the groups of GPUs that a strategy's options ask for.

    Attributes:
        shard: GPUs that share one copy of the model's state.
        reshard: GPUs that keep a copy of the parameters after the forward pass and gather it among
            themselves; as many as ``shard`` if the option names no group.
    """

    shard: int
    reshard: int


def groups_of(options: Mapping[str, Any], gpus: int, nodes: int) -> Groups:
    """Return the sizes of the groups that these options ask for; null asks for all GPUs."""

    def size(wanted: int | str) -> int:
        return gpus // nodes if isinstance(wanted, str) else wanted

    shard, reshard = options.get("shard_size"), options.get("reshard_after_forward")
    whole = gpus if shard is None else size(shard)
    return Groups(whole, whole if reshard is None or isinstance(reshard, bool) else size(reshard))


# Whether a network has frozen parameters. Called only where it matters, because the answer takes a
# pass through the network.
Freezes = Callable[[], bool]
CopiesWeights = Callable[[Place, Freezes], bool]


def fairscale_flattens(place: Place, freezes: Freezes) -> bool:
    """Whether FairScale makes one flat parameter of the parameters of each unit.

    It would mix a block's norms and biases with its matrices, or what is trained with what is
    frozen.
    """
    return place.decay == "all" and not freezes()


def _runs_everywhere(options: Mapping[str, Any], place: Place) -> None:
    return None


def _groups_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    groups = groups_of(options, place.gpus, place.nodes)
    if min(groups) == 1 < place.gpus:
        return "a node has one of its GPUs, so groups of one node shard nothing"
    if place.gpus % groups.shard:
        counted = "1 GPU" if place.gpus == 1 else f"{place.gpus} GPUs"
        return (
            f"its shard_size is {groups.shard}, which does not divide {counted}; it runs at GPU "
            f"counts that are multiples of {groups.shard}"
        )
    if groups.shard % groups.reshard:
        return (
            f"its reshard_after_forward is {groups.reshard}, which does not divide the "
            f"{groups.shard} GPUs that share a copy of the model; choose a divisor, or true"
        )
    return None


def _dp_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    if place.nodes > 1:
        return f"DataParallel is one process on one node; this cell spans {place.nodes} nodes"
    if place.device == "cpu" and place.gpus > 1:
        return "DataParallel replicates over CUDA devices only; on a CPU it is one plain module"
    if place.batchnorm == "sync" and place.gpus > 1:
        return "DataParallel has no process group, so batch-norm cannot be synchronised in it"
    if place.compilation != "none" and place.gpus > 1:
        return (
            "DataParallel makes new replicas in each forward pass; what torch has compiled would "
            "use the first GPU's parameters in all of them"
        )
    return None


def _not_the_workloads(name: str, options: Mapping[str, Any], place: Place) -> str:
    return f"its {name} is {options[name]}, and the workload computes in {place.precision}"


def _fsdp_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    for name in ("param_dtype", "reduce_dtype"):
        if options[name] not in ("fp32", place.precision):
            return _not_the_workloads(name, options, place)
    wraps = place.compilation != "none" or place.checkpoints
    if options["param_dtype"] != "fp32" and place.batchnorm is not None and wraps:
        return (
            f"with param_dtype {options['param_dtype']}, batch-norm stays in fp32 and is sharded "
            "apart from its block; a compiled or checkpointed block must be sharded as a whole"
        )
    return _groups_unsupported(options, place)


# Planning knows whether a built-in model has batch-norm. A user's own network is asked when it is
# built.
NO_BATCHNORM = (
    "DeepSpeed's bf16 mode keeps the parameters of batch-norm in bf16, and torch refuses them "
    "beside running statistics in float32; use low_precision_communication: true instead of "
    "param_dtype"
)


def _deepspeed_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    if options["low_precision_communication"] and place.precision in ("fp32", "tf32"):
        return (
            "its low_precision_communication belongs to DeepSpeed's autocast, and the workload "
            f"computes in {place.precision}, without autocast"
        )
    if options["param_dtype"] != "fp32":
        if options["low_precision_communication"]:
            return (
                "its low_precision_communication belongs to DeepSpeed's autocast, which "
                f"param_dtype {options['param_dtype']} replaces"
            )
        if place.precision != options["param_dtype"]:
            return _not_the_workloads("param_dtype", options, place)
        if place.batchnorm is not None:
            return NO_BATCHNORM
    # null leaves DeepSpeed's own default, which clips.
    clips = place.clips or options["gradient_clipping"] != 0
    if clips and place.precision == "fp16":
        return (
            "under its autocast in float16, DeepSpeed clips the gradient before it removes the "
            "loss scale from it"
        )
    return None


def _zero3_unsupported(options: Mapping[str, Any], place: Place) -> str | None:
    if place.compilation != "none":
        # DeepSpeed 0.19.8 with torch 2.15: a compiled block ends with an AttributeError in a hook;
        # of a compiled model, torch gives up to compile more after eight versions of each hook.
        return "torch.compile cannot trace the hooks with which ZeRO-3 gathers each module"
    return _deepspeed_unsupported(options, place) or _groups_unsupported(options, place)


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
        offloads_collectives: whether ranks exchange tensors in host memory if it offloads them.
        copies_weights: whether the weights of a forward pass are views of a flat parameter or a
            replica's copies, so no leaves of autograd's graph.
        holds_param_dtype: whether it also keeps parameters and gradients in a low param_dtype, and
            reduces them in it. Others only gather parameters and compute in it.
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
    offloads_collectives: bool = False
    copies_weights: CopiesWeights = lambda place, freezes: False
    holds_param_dtype: bool = False
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
        copies_weights=lambda place, freezes: place.gpus > 1,
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
        copies_weights=lambda place, freezes: True,
        why_unsupported=_fsdp_unsupported,
    ),
    "fsdp2": StrategySpec(
        script="train_fsdp2.py",
        options=Fsdp2Options,
        label="FSDP2",
        colour="#D55E00",
        marker="v",
        gathers=True,
        shards_units=True,
        offloads_collectives=True,
        why_unsupported=_fsdp_unsupported,
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
        copies_weights=fairscale_flattens,
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
        holds_param_dtype=True,
        why_unsupported=_deepspeed_unsupported,
    ),
    "deepspeed_zero2": StrategySpec(
        script="train_deepspeed.py",
        options=DeepspeedOptions,
        label="DeepSpeed ZeRO-2",
        colour="#8A4B1F",
        marker="X",
        packages=("deepspeed",),
        gathers=True,
        holds_param_dtype=True,
        why_unsupported=_deepspeed_unsupported,
    ),
    "deepspeed_zero3": StrategySpec(
        script="train_deepspeed.py",
        options=Zero3Options,
        label="DeepSpeed ZeRO-3",
        colour="#009E73",
        marker="h",
        packages=("deepspeed",),
        gathers=True,
        holds_param_dtype=True,
        why_unsupported=_zero3_unsupported,
    ),
}

# The base of every strategy of the user's own.
OWN = "own"
_SPECS = STRATEGIES | {
    OWN: StrategySpec(
        script="train_own.py", options=OwnOptions, label="own", colour="#5B5B5B", marker="p"
    )
}


def spec_of(base: str) -> StrategySpec:
    """Return the record of a strategy that variants are based on, or of the user's own ones.

    Raises:
        KeyError: if there is no such strategy.
    """
    return _SPECS[base]


# Every package that some strategy uses besides torch.
PACKAGES = tuple(dict.fromkeys(name for spec in STRATEGIES.values() for name in spec.packages))


_chosen_labels: ContextVar[Mapping[str, str]] = ContextVar("labels", default=MappingProxyType({}))


@contextlib.contextmanager
def use_labels(labels: Mapping[str, str]) -> Iterator[None]:
    """Use the labels that a configuration chooses, by name, for everything written inside."""
    token = _chosen_labels.set(labels)
    try:
        yield
    finally:
        _chosen_labels.reset(token)


def label_of(strategy: str) -> str:
    """Return the label of a strategy of the matrix, which may be its name."""
    if strategy in STRATEGIES:
        return STRATEGIES[strategy].label
    return _chosen_labels.get().get(strategy, strategy)
