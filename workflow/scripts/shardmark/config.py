"""The configuration: its one truth, from which the JSON Schema and every error message derive."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shardmark.architectures import CIFAR_RESNETS, MODELS, WITH_BATCH_NORM, is_resnet, is_vit
from shardmark.errors import ConfigError
from shardmark.strategies import STRATEGIES

DatasetName = Literal["cifar10", "cifar100", "synthetic"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]

CIFAR_SIZES = {"train": 50_000, "test": 10_000}
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
CIFAR_SIDE = 32


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Model(Section):
    """The network of a workload."""

    name: str = Field(description="a torchvision model, or resnet8/20/32/44/56 (He et al. 2015, 4.2)")
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        "auto",
        description="ResNet's first layers: cifar is 3x3 stride 1 without max-pool; auto takes "
        "cifar for images of at most 64 px",
    )
    hidden_units: Annotated[int, Field(ge=1)] | None = Field(
        None, description="width of one hidden ReLU layer before the classes; null for none"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout rate before the classes"
    )


class Dataset(Section):
    """The images of a workload."""

    name: str = Field(description="cifar10, cifar100 or synthetic")
    image_size: Annotated[int, Field(ge=8, le=1024)] = Field(
        CIFAR_SIDE, description="side the model sees, px; CIFAR is resized to it on the device"
    )
    classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="number of classes; synthetic only (CIFAR has its own)"
    )
    train_images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="first N training images only; null for all (synthetic: 4096)"
    )
    test_images: Annotated[int, Field(ge=1)] | None = Field(
        None, description="first N test images only; null for all (synthetic: 1024)"
    )
    augment: bool = Field(True, description="random crop with 4 px of padding, random flip")
    loader: Literal["device", "dataloader"] = Field(
        "device",
        description="device keeps all images on the device as uint8; dataloader prefetches "
        "batches in worker processes",
    )
    loader_workers: Annotated[int, Field(ge=1)] = Field(
        4, description="worker processes a replica, with loader: dataloader"
    )


class Batch(Section):
    """The batch size, and with it the scaling regime."""

    per_gpu: Annotated[int, Field(ge=1)] | None = Field(
        None, description="images a replica a step: weak scaling"
    )
    global_: Annotated[int, Field(ge=1)] | None = Field(
        None, alias="global", description="images a step over all replicas: strong scaling"
    )
    accumulate: Annotated[int, Field(ge=1)] = Field(
        1, description="micro-batches whose gradients are accumulated before a step"
    )


class Optimizer(Section):
    """The torch optimizer every strategy uses."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = Field(description="peak learning rate")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="sgd only")
    nesterov: bool = Field(False, description="sgd only")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = Field((0.9, 0.999), description="adam and adamw only")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="adam and adamw only")


class Schedule(Section):
    """The learning rate over the training."""

    name: Literal["constant", "cosine"] = "constant"
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(0.0, description="linear from zero")


class Workload(Section):
    """What is trained. Every strategy of a workload trains exactly this."""

    model: Model
    dataset: Dataset
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule = Field(default_factory=lambda: Schedule())
    learning_rate_rule: Literal["none", "linear"] = Field(
        "none",
        description="weak scaling: linear multiplies the learning rate by the GPU count "
        "(Goyal et al. 2017)",
    )
    precision: Precision = Field(
        description="bf16 and fp16: autocast compute with float32 parameters, gradients, "
        "reduction and optimizer state"
    )
    batchnorm: Literal["local", "sync"] = Field(
        "local", description="statistics of each replica's batch, or of the global batch"
    )
    epochs: Annotated[int, Field(ge=1)] = 1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return CIFAR_CLASSES.get(self.dataset.name) or self.dataset.classes or 10

    @property
    def train_images(self) -> int:
        """Images of one epoch before the ragged last batch is dropped."""
        default = 4096 if self.dataset.name == "synthetic" else CIFAR_SIZES["train"]
        return self.dataset.train_images or default

    @property
    def test_images(self) -> int:
        """Images the accuracy is measured on."""
        default = 1024 if self.dataset.name == "synthetic" else CIFAR_SIZES["test"]
        return self.dataset.test_images or default


class Matrix(Section):
    """The cells: every strategy x GPU count x seed of every workload named here."""

    workloads: Annotated[list[str], Field(min_length=1)]
    strategies: Annotated[list[str], Field(min_length=1)]
    gpus: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Cluster(Section):
    """The machines, as the cells ask for them."""

    device: Literal["cuda", "cpu"] = "cuda"
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    cpus_per_gpu: Annotated[int, Field(ge=1)] = 8
    mem_gb_per_gpu: Annotated[int, Field(ge=1)] = 64
    time_limit_minutes: Annotated[int, Field(ge=1)] = 120


class Data(Section):
    """Where the images come from."""

    dir: str = Field("resources", description="folder of the data sets; must exist")
    download: bool = Field(True, description="fetch a missing data set once, before any cell")


class Measure(Section):
    """How a cell is measured."""

    steady_s: Annotated[float, Field(gt=0)] = Field(
        30.0, description="seconds of uninterrupted steps that are timed after the training"
    )
    warmup_min_steps: Annotated[int, Field(ge=1)] = 10
    warmup_max_steps: Annotated[int, Field(ge=1)] = 200
    sample_interval_s: Annotated[float, Field(ge=0.02, le=10)] = 0.1
    sampler: bool = Field(True, description="false measures the sampler's own cost by its absence")


class ParityGate(Section):
    """The proof that a strategy trains the oracle's model."""

    steps: Annotated[int, Field(ge=8)] = 8
    per_gpu_batch: Annotated[int, Field(ge=2)] = 16
    tolerance: Annotated[float, Field(gt=0)] = Field(
        1e-5, description="largest relative difference in float32"
    )
    floor_multiple: Annotated[float, Field(ge=1)] = Field(
        10.0, description="the timed precision's tolerance, in multiples of the oracle's own noise"
    )
    seed: Annotated[int, Field(ge=0)] = 0


class Config(Section):
    """One matrix of cells and everything that defines them."""

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    baseline: str = Field("ddp", description="the strategy or variant that others are compared to")
    matrix: Matrix
    workloads: dict[Name, Workload]
    variants: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="name: {base: strategy, option: value, ...}"
    )
    cluster: Cluster = Field(default_factory=lambda: Cluster())
    data: Data = Field(default_factory=lambda: Data())
    measure: Measure = Field(default_factory=lambda: Measure())
    parity: ParityGate = Field(default_factory=lambda: ParityGate())
    order_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="shuffles the order in which the strategies of a block start"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        mistakes = list(_mistakes(self))
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return self


def base_and_options(config: Config, strategy: str) -> tuple[str, dict[str, Any]]:
    """The base strategy of a name in the matrix, and its options with their defaults."""
    variant = dict(config.variants.get(strategy, {"base": strategy}))
    base = variant.pop("base")
    return base, STRATEGIES[base].options(**variant).model_dump()


def load(raw: Mapping[str, Any], root: Path = Path(".")) -> Config:
    """Validate a merged configuration.

    Args:
        raw: the mapping Snakemake merged from its config files.
        root: the folder that ``data.dir`` is relative to.

    Raises:
        ConfigError: with every mistake on a line of its own: path, what was given, what is allowed.
    """
    try:
        config = Config.model_validate(dict(raw))
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(_message(dict.fromkeys(lines))) from None
    except ConfigError as error:
        raise ConfigError(_message(str(error).splitlines())) from None
    data_dir = root / config.data.dir
    if not data_dir.is_dir():
        raise ConfigError(
            _message([f"data.dir: {config.data.dir!r} is not a folder; create it or name another"])
        )
    return config


def _message(lines: Sequence[str] | Mapping[str, Any]) -> str:
    count = len(lines)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    return f"{head} in the configuration:\n" + "\n".join(f"  {line}" for line in lines)


def did_you_mean(given: object, allowed: Sequence[str]) -> str:
    """The allowed values, led by the nearest one where one is near."""
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "(top level)"


def _explain(detail: Any) -> str:
    location = list(detail["loc"])
    path = _path(location)
    given = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key; {did_you_mean(location[-1], _keys_at(location[:-1]))}"
        case "missing":
            return f"{path}: missing, and it has no default"
        case "literal_error":
            allowed = [part.strip(" '") for part in detail["ctx"]["expected"].split(",")]
            allowed = [name.strip(" '") for part in allowed for name in part.split(" or ")]
            return f"{path}: got {given!r}; {did_you_mean(given, allowed)}"
        case "too_short":
            return f"{path}: is empty; name at least one"
        case "string_pattern_mismatch":
            return f"{path}: got {given!r}; allowed: letters, digits and _ (pattern {detail['ctx']['pattern']})"
        case "model_type" | "dict_type":
            return f"{path}: got {given!r}; a mapping of keys is expected here"
        case _:
            reason = detail["msg"].removeprefix("Input ")
            return f"{path}: got {given!r}; {reason}"


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """The keys a section of the configuration may have."""
    model: type[BaseModel] = Config
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # a name the user chose, under workloads
            continue
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return [field.alias or name for name, field in model.model_fields.items()]


def _mistakes(config: Config) -> Iterator[str]:
    """Mistakes that no single key shows."""
    yield from _variant_mistakes(config)
    known = [*STRATEGIES, *config.variants]
    matrix = config.matrix
    for key, names, allowed in (
        ("strategies", matrix.strategies, known),
        ("workloads", matrix.workloads, list(config.workloads)),
    ):
        for index, name in enumerate(names):
            if name not in allowed:
                kind = "unknown strategy" if key == "strategies" else "unknown workload"
                yield f"matrix.{key}[{index}]: {kind} {name!r}; {did_you_mean(name, allowed)}"
    for key in ("workloads", "strategies", "gpus", "seeds"):
        for value, count in Counter(getattr(matrix, key)).items():
            if count > 1:
                yield f"matrix.{key}: {value!r} is named {count} times; name each once"
    if config.baseline not in matrix.strategies:
        yield (
            f"baseline: {config.baseline!r} is not in matrix.strategies; "
            f"{did_you_mean(config.baseline, matrix.strategies)}"
        )
    if config.measure.warmup_max_steps < config.measure.warmup_min_steps:
        yield "measure.warmup_max_steps: is less than measure.warmup_min_steps"
    per_node = config.cluster.gpus_per_node
    for index, gpus in enumerate(matrix.gpus):
        if gpus > per_node and gpus % per_node:
            yield (
                f"matrix.gpus[{index}]: got {gpus}; more than one node's GPUs must be whole nodes "
                f"(cluster.gpus_per_node is {per_node})"
            )
    for name, workload in config.workloads.items():
        yield from _workload_mistakes(name, workload, config)


def _variant_mistakes(config: Config) -> Iterator[str]:
    for name, variant in config.variants.items():
        path = f"variants.{name}"
        base = variant.get("base")
        if name in STRATEGIES:
            yield f"{path}: is the name of a strategy; choose another"
        if base is None:
            yield f"{path}.base: missing; {did_you_mean('', list(STRATEGIES))}"
        elif base not in STRATEGIES:
            yield f"{path}.base: unknown strategy {base!r}; {did_you_mean(base, list(STRATEGIES))}"
        else:
            options = STRATEGIES[base].options
            try:
                options(**{key: value for key, value in variant.items() if key != "base"})
            except ValidationError as error:
                for detail in error.errors():
                    key = str(detail["loc"][0])
                    if detail["type"] == "extra_forbidden":
                        allowed = list(options.model_fields)
                        choice = did_you_mean(key, allowed) if allowed else f"{base} has no options"
                        yield f"{path}.{key}: unknown option of {base}; {choice}"
                    else:
                        yield f"{path}.{key}: got {detail['input']!r}; {detail['msg']}"


def _workload_mistakes(name: str, workload: Workload, config: Config) -> Iterator[str]:
    path = f"workloads.{name}"
    datasets = list(get_args(DatasetName))
    dataset = workload.dataset
    if dataset.name not in datasets:
        yield (
            f"{path}.dataset.name: unknown dataset {dataset.name!r}; "
            f"{did_you_mean(dataset.name, datasets)}"
        )
        return
    model = workload.model
    if model.name not in MODELS:
        yield f"{path}.model.name: unknown model {model.name!r}; {did_you_mean(model.name, MODELS)}"
        return
    if dataset.name != "synthetic":
        if dataset.classes is not None:
            yield f"{path}.dataset.classes: only synthetic images have a choice of classes"
        for key, limit in CIFAR_SIZES.items():
            images = getattr(dataset, f"{key}_images")
            if images is not None and images > limit:
                yield f"{path}.dataset.{key}_images: got {images}; {dataset.name} has {limit}"
    if model.stem != "auto" and (not is_resnet(model.name) or model.name in CIFAR_RESNETS):
        yield f"{path}.model.stem: {model.name} has only one stem; leave it at auto"
    if is_vit(model.name):
        patch = int(model.name.rsplit("_", 1)[1])
        if dataset.image_size % patch:
            yield (
                f"{path}.dataset.image_size: got {dataset.image_size}; {model.name} cuts it into "
                f"patches of {patch} px, so it must be a multiple of {patch}"
            )
    if workload.batchnorm == "sync" and model.name not in WITH_BATCH_NORM:
        yield f"{path}.batchnorm: {model.name} has no batch-norm to synchronise"
    if workload.precision == "tf32" and config.cluster.device == "cpu":
        yield f"{path}.precision: tf32 is a mode of CUDA devices; cluster.device is cpu"
    optimizer = workload.optimizer
    if optimizer.nesterov and not optimizer.momentum:
        yield f"{path}.optimizer.nesterov: needs a momentum above 0"
    batch = workload.batch
    if (batch.per_gpu is None) == (batch.global_ is None):
        given = "neither" if batch.per_gpu is None else "both"
        yield (
            f"{path}.batch: got {given}; name per_gpu (weak scaling) or global (strong scaling), "
            "and set the other to null in an overlay"
        )
        return
    if workload.learning_rate_rule == "linear" and batch.per_gpu is None:
        yield f"{path}.learning_rate_rule: linear belongs to weak scaling (batch.per_gpu)"
    if name not in config.matrix.workloads:
        return
    for gpus in config.matrix.gpus:
        if batch.global_ is not None and batch.global_ % gpus:
            yield (
                f"{path}.batch.global: got {batch.global_}; it must be divisible by every count in "
                f"matrix.gpus, and {gpus} does not divide it"
            )
            continue
        per_gpu = batch.per_gpu or (batch.global_ or 0) // gpus
        if per_gpu % batch.accumulate:
            yield (
                f"{path}.batch.accumulate: got {batch.accumulate}; it must divide the {per_gpu} "
                f"images a GPU has at {gpus} GPUs"
            )
        elif per_gpu // batch.accumulate < 2 and model.name in WITH_BATCH_NORM:
            yield (
                f"{path}.batch: one image a micro-batch at {gpus} GPUs leaves batch-norm no "
                "statistics; use at least 2"
            )
        if per_gpu * gpus > workload.train_images:
            yield (
                f"{path}.batch: a step of {per_gpu * gpus} images at {gpus} GPUs is more than the "
                f"{workload.train_images} training images"
            )
