"""Find the mistakes of one workload that involve several of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmark.architectures import (
    CIFAR_RESNETS,
    MODELS,
    WITH_BATCH_NORM,
    has_no_known_blocks,
    is_resnet,
    is_vit,
    smallest_image_px,
)
from shardmark.config.messages import format_value, hint_at_allowed
from shardmark.config.raw_values import is_file, mapping_at, section_at
from shardmark.config.schema import (
    WORKLOADS,
    BatchSize,
    Cluster,
    Dataset,
    Gpt,
    Model,
    OwnData,
    Schedule,
    Tokens,
    Workload,
    kind_of,
)
from shardmark.datasets import DATASETS
from shardmark.optimizers import OPTIMIZERS, Optimizer
from shardmark.quantities import describe_gpus

# Different tokens of a text: its bytes.
BYTES = 256
# A generated token is an int32.
TOKEN_BYTES = 4


def workload_mistakes(
    path: str,
    raw: Mapping[str, Any],
    gpus: Sequence[int],
    cluster: Cluster | None,
    root: Path,
) -> Iterator[str]:
    """Yield one line per mistake.

    Args:
        path: of the workload in the configuration, for the messages.
        raw: the workload as it was written.
        gpus: counts of the matrix at which it runs.
        cluster: the section of that name; None if it has a mistake of its own.
        root: the folder that paths are relative to.
    """
    yield from _optimizer_mistakes(path, raw)
    if kind_of(raw) == "own":
        yield from own_file_mistakes(path, raw["file"], root)
    elif kind_of(raw) == "language":
        yield from _language_mistakes(path, raw, cluster, root)
    else:
        yield from _vision_mistakes(path, raw, cluster)
    if raw.get("precision") == "tf32" and cluster and cluster.device == "cpu":
        yield f"{path}.precision: tf32 is a mode of CUDA devices; cluster.device is cpu"
    batch = section_at(BatchSize, raw, "batch") if isinstance(raw.get("batch"), Mapping) else None
    if batch and raw.get("learning_rate_rule") == "linear" and batch.per_gpu is None:
        yield f"{path}.learning_rate_rule: linear belongs to weak scaling (batch.per_gpu)"
    if batch and (batch.per_gpu is None) == (batch.global_ is None):
        given = "neither" if batch.per_gpu is None else "both"
        yield (
            f"{path}.batch: got {given}; name per_gpu (weak scaling) or global (strong scaling), "
            "and set the other to null in an overlay"
        )
    elif batch:
        yield from _batch_mistakes(path, batch, raw, gpus)


def own_file_mistakes(path: str, file: object, root: Path) -> Iterator[str]:
    """Yield a mistake if the user's own code is not a Python file."""
    if isinstance(file, str) and not (file.endswith(".py") and is_file(root / file)):
        what = "is not there" if file.endswith(".py") else "is no Python file"
        yield (
            f"{path}.file: {format_value(file)} {what}; give an absolute path, or one relative to "
            f"{root.resolve()}"
        )


def _language_mistakes(
    path: str, raw: Mapping[str, Any], cluster: Cluster | None, root: Path
) -> Iterator[str]:
    model, tokens = section_at(Gpt, raw, "model"), section_at(Tokens, raw, "dataset")
    if model and model.width % model.heads:
        yield (
            f"{path}.model.heads: got {model.heads}; it must divide the model's width, "
            f"{model.width}"
        )
    if tokens and tokens.name != "text" and tokens.file is not None:
        yield f"{path}.dataset.file: belongs to text; {tokens.name} is generated"
    if model and tokens and tokens.name != "text" and cluster:
        for key in ("sequences", "test_sequences"):
            count, length = getattr(tokens, key), model.context + 1
            what = f"{count} sequences of {length} tokens"
            where = f"{path}.dataset.{key}"
            yield from _memory_mistakes(where, what, TOKEN_BYTES * count * length, cluster)
    if tokens is None or tokens.name != "text":
        return
    if tokens.file is None:
        yield f"{path}.dataset.file: missing; text needs the file to read"
    elif "{" in tokens.file:
        # Snakemake fills in wildcards in what an input function returns; doubled braces stay so.
        yield (
            f"{path}.dataset.file: {format_value(tokens.file)} has a brace, which Snakemake reads "
            "as a wildcard; rename the file"
        )
    elif not is_file(root / tokens.file):
        yield f"{path}.dataset.file: {format_value(tokens.file)} is not a file"
    elif model:
        # The last token of a sequence is only predicted: it begins the next one.
        there = ((root / tokens.file).stat().st_size - 1) // model.context
        needed = tokens.sequences + tokens.test_sequences
        if there < needed:
            held_out = f" and {tokens.test_sequences} test_sequences"
            yield (
                f"{path}.dataset.sequences: got {tokens.sequences}"
                f"{held_out if tokens.test_sequences else ''}; {tokens.file} has {there} of "
                f"{model.context} tokens (model.context)"
            )
    if model and model.vocabulary < BYTES:
        yield (
            f"{path}.model.vocabulary: got {model.vocabulary}; the bytes of a text need at least "
            f"{BYTES}"
        )


def _vision_mistakes(path: str, raw: Mapping[str, Any], cluster: Cluster | None) -> Iterator[str]:
    name = mapping_at(raw, "model").get("name")
    if isinstance(name, str) and has_no_known_blocks(name):
        yield (
            f"{path}.model.name: {name} is torchvision's, but shardmark does not know its blocks, "
            "which fully sharded strategies gather one at a time; allowed: "
            f"{', '.join([*MODELS, 'gpt'])}"
        )
    elif isinstance(name, str) and name not in MODELS:
        hint = hint_at_allowed(name, [*MODELS, "gpt"])
        yield f"{path}.model.name: unknown model {name!r}; {hint}"
    dataset = section_at(Dataset, raw, "dataset")
    model = _vision_model(raw)
    if dataset and not DATASETS[dataset.name].generated:
        record = DATASETS[dataset.name]
        if dataset.classes is not None:
            yield f"{path}.dataset.classes: only synthetic images have a choice of classes"
        for key in ("train_images", "test_images"):
            images, limit = getattr(dataset, key), getattr(record, key)
            if images is not None and images > limit:
                yield f"{path}.dataset.{key}: got {images}; {dataset.name} has {limit}"
    if model:
        if model.stem != "auto" and (not is_resnet(model.name) or model.name in CIFAR_RESNETS):
            yield f"{path}.model.stem: {model.name} has only one stem; leave it at auto"
        if raw.get("batchnorm") == "sync" and model.name not in WITH_BATCH_NORM:
            yield f"{path}.batchnorm: {model.name} has no batch-norm to synchronise"
    if model and dataset and is_vit(model.name):
        patch = int(model.name.rsplit("_", 1)[1])
        if dataset.image_size % patch:
            yield (
                f"{path}.dataset.image_size: got {dataset.image_size}; {model.name} cuts it into "
                f"patches of {patch} px, so it must be a multiple of {patch}"
            )
    if model and dataset and dataset.image_size < smallest_image_px(model.name):
        yield (
            f"{path}.dataset.image_size: got {dataset.image_size}; {model.name} needs images of at "
            f"least {smallest_image_px(model.name)} px"
        )
    if dataset and cluster and DATASETS[dataset.name].generated:
        for key, count in (("train", dataset.train_size), ("test", dataset.test_images or 0)):
            what = f"{count} images of {dataset.image_size} px"
            where = f"{path}.dataset.{key}_images"
            yield from _memory_mistakes(where, what, 3 * count * dataset.image_size**2, cluster)


def _vision_model(raw: Mapping[str, Any]) -> Model | None:
    model = section_at(Model, raw, "model")
    return model if model is not None and model.name in MODELS else None


def _memory_mistakes(path: str, what: str, size_bytes: int, cluster: Cluster) -> Iterator[str]:
    """Yield samples that do not fit a rank's memory; each rank keeps all of them."""
    if size_bytes / 1e9 > cluster.mem_gb_per_gpu:
        yield (
            f"{path}: {what} are {size_bytes / 1e9:,.0f} GB, more than a rank's memory "
            f"(cluster.mem_gb_per_gpu is {cluster.mem_gb_per_gpu})"
        )


def _optimizer_mistakes(path: str, raw: Mapping[str, Any]) -> Iterator[str]:
    optimizer = section_at(Optimizer, raw, "optimizer")
    schedule = section_at(Schedule, raw, "schedule")
    epochs = raw.get("epochs", Workload.model_fields["epochs"].default)
    if optimizer and optimizer.nesterov and "nesterov" not in OPTIMIZERS[optimizer.name].settings:
        owners = [name for name, record in OPTIMIZERS.items() if "nesterov" in record.settings]
        yield (
            f"{path}.optimizer.nesterov: belongs to {', '.join(owners)}; {optimizer.name} needs it "
            "false"
        )
    elif optimizer and optimizer.nesterov and not optimizer.momentum:
        yield f"{path}.optimizer.nesterov: needs a momentum above 0"
    if optimizer and optimizer.fused and "fused" not in OPTIMIZERS[optimizer.name].settings:
        yield f"{path}.optimizer.fused: torch has no fused {optimizer.name}"
    if optimizer and optimizer.fused and raw.get("precision") == "fp16":
        yield (
            f"{path}.optimizer.fused: a fused optimizer skips a step by itself when fp16 overflows "
            "on its own rank, without the others; set it to false, or precision to bf16"
        )
    if schedule and isinstance(epochs, int) and 0 < epochs < schedule.warmup_epochs:
        yield (
            f"{path}.schedule.warmup_epochs: got {schedule.warmup_epochs:g}; it must not be more "
            f"than the workload's epochs, {epochs}"
        )


def _batch_mistakes(
    path: str, batch: BatchSize, raw: Mapping[str, Any], gpus: Sequence[int]
) -> Iterator[str]:
    there, least = None, 1
    samples = WORKLOADS[kind_of(raw)].samples
    if kind_of(raw) == "own":
        if own := section_at(OwnData, raw, "dataset"):
            there = own.samples
    elif kind_of(raw) == "language":
        if tokens := section_at(Tokens, raw, "dataset"):
            there = tokens.sequences
    else:
        dataset, model = section_at(Dataset, raw, "dataset"), _vision_model(raw)
        if dataset:
            there = dataset.train_size
        if model and model.name in WITH_BATCH_NORM:
            least = 2
    for count in gpus:
        if batch.global_ is not None and batch.global_ % count:
            yield (
                f"{path}.batch.global: got {batch.global_}; it must be divisible by every count in "
                f"matrix.gpus, and {count} does not divide it"
            )
            continue
        per_gpu = batch.per_gpu or (batch.global_ or 0) // count
        replicas = describe_gpus("cuda", count)
        if per_gpu % batch.accumulate:
            yield (
                f"{path}.batch.accumulate: got {batch.accumulate}; it must divide the {per_gpu} "
                f"{samples} a GPU has at {replicas}"
            )
        elif per_gpu // batch.accumulate < least:
            yield (
                f"{path}.batch: one image a micro-batch at {replicas} leaves batch-norm no "
                "statistics; use at least 2"
            )
        if there is not None and per_gpu * count > there:
            yield (
                f"{path}.batch: a step of {per_gpu * count} {samples} at {replicas} is more than "
                f"the {there} training {samples}"
            )
