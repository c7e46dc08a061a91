"""The configuration: its one truth, from which the JSON Schema and every error message derive."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from shardmark.architectures import CIFAR_RESNETS, MODELS, WITH_BATCH_NORM, is_resnet, is_vit
from shardmark.errors import ConfigError
from shardmark.strategies import STRATEGIES
from shardmark.values import Count, Flag, Name, Number, Seed

DatasetName = Literal["cifar10", "cifar100", "synthetic"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

E = TypeVar("E", bound=int | str)
S = TypeVar("S", bound="Section")

CIFAR_SIZES = {"train": 50_000, "test": 10_000}
CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
CIFAR_SIDE = 32

# What else stands in results/<run>/, and beside a strategy's folder in its parity/<workload>/.
RESERVED_WORKLOADS = ("blocks", "data", "figures", "parity", "tables")
RESERVED_VARIANTS = ("oracle",)

# What the launcher and torchrun tell each rank.
OWN_VARIABLES = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PYTHONPATH",
    "RANK",
    "WORLD_SIZE",
)

SHOWN_CHARACTERS = 80
_NAME_RULE = "it must be at most 64 letters, digits and _, a letter first"


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The network of a workload."""

    name: str = Field(
        description="a torchvision model, or resnet8/20/32/44/56 (He et al. 2015, 4.2)"
    )
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        "auto",
        description="ResNet's first layers: cifar is 3x3 stride 1 without max-pool; auto takes "
        "cifar for images of at most 64 px",
    )
    hidden_units: Count | None = Field(
        None, description="width of one hidden ReLU layer before the classes; null for none"
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout rate before the classes"
    )


class Dataset(Section):
    """The images of a workload."""

    name: str = Field(description="cifar10, cifar100 or synthetic")
    image_size: Annotated[int, Strict(), Field(ge=8, le=1024)] = Field(
        CIFAR_SIDE, description="side the model sees, px; CIFAR is resized to it on the device"
    )
    classes: Annotated[Count, Field(ge=2)] | None = Field(
        None, description="number of classes; synthetic only (CIFAR has its own)"
    )
    train_images: Count | None = Field(
        None, description="first N training images only; null for all (synthetic: 4096)"
    )
    test_images: Count | None = Field(
        None, description="first N test images only; null for all (synthetic: 1024)"
    )
    augment: Flag = Field(True, description="random crop with 4 px of padding, random flip")
    loader: Literal["device", "dataloader"] = Field(
        "device",
        description="device keeps all images on the device as uint8; dataloader prefetches "
        "batches in worker processes",
    )
    loader_workers: Count = Field(
        4, description="worker processes a replica, with loader: dataloader"
    )

    @property
    def train_size(self) -> int:
        """Training images, the ragged last batch counted."""
        default = 4096 if self.name == "synthetic" else CIFAR_SIZES["train"]
        return self.train_images or default


class Batch(Section):
    """The batch size, and with it the scaling regime."""

    per_gpu: Count | None = Field(None, description="images a replica a step: weak scaling")
    global_: Count | None = Field(
        None, alias="global", description="images a step over all replicas: strong scaling"
    )
    accumulate: Count = Field(
        1, description="micro-batches whose gradients are accumulated before a step"
    )


Beta = Annotated[Number, Field(ge=0, lt=1)]


class Optimizer(Section):
    """The torch optimizer every strategy uses."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="of torch.optim")
    learning_rate: Annotated[Number, Field(gt=0)] = Field(description="peak learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="sgd only")
    nesterov: Flag = Field(False, description="sgd only")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="added to the gradient by sgd and adam, decoupled in adamw"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adam and adamw only")
    eps: Annotated[Number, Field(gt=0)] = Field(1e-8, description="adam and adamw only")


class Schedule(Section):
    """The learning rate over the training."""

    name: Literal["constant", "cosine"] = Field(
        "constant",
        description="after the warm-up; cosine falls to zero at the last step of the training, and "
        "the steps after it, which are timed, run at half the peak",
    )
    warmup_epochs: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="epochs of linear growth from zero"
    )


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
    epochs: Count = Field(1, description="passes over the training images, each followed by a test")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return CIFAR_CLASSES.get(self.dataset.name) or self.dataset.classes or 10

    @property
    def train_images(self) -> int:
        """Images of one epoch before the ragged last batch is dropped."""
        return self.dataset.train_size

    @property
    def test_images(self) -> int:
        """Images the accuracy is measured on."""
        default = 1024 if self.dataset.name == "synthetic" else CIFAR_SIZES["test"]
        return self.dataset.test_images or default


class Matrix(Section):
    """The cells: every strategy x GPU count x seed of every workload named here."""

    workloads: Annotated[list[str], Field(min_length=1)] = Field(
        description="names defined under workloads"
    )
    strategies: Annotated[list[str], Field(min_length=1)] = Field(
        description="strategies, and variants defined under variants"
    )
    gpus: Annotated[list[Count], Field(min_length=1)] = Field(
        description="GPUs, and so replicas, of a cell"
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="one run each: initial weights, data order, augmentation, dropout"
    )


class Cluster(Section):
    """The machines, as the cells ask for them."""

    device: Literal["cuda", "cpu"] = Field(
        "cuda", description="cuda (NCCL), or cpu (gloo, a process a replica)"
    )
    gpus_per_node: Count = Field(8, description="a cell of more GPUs spans whole nodes")
    cpus_per_gpu: Count = Field(8, description="CPU cores a Slurm job asks for, for each GPU")
    mem_gb_per_gpu: Count = Field(64, description="GB of memory a Slurm job asks for, for each GPU")
    time_limit_minutes: Count = Field(
        120, description="minutes after which a cell is ended and recorded as a time-out"
    )
    stall_limit_minutes: Annotated[Number, Field(gt=0)] = Field(
        5.0,
        description="minutes without any rank getting further (a phase, a step, a test batch) "
        "after which a cell is taken for hung, ended and recorded as failed",
    )
    slurm_extra: str = Field(
        "--exclusive",
        description="further options of sbatch for each cell; without --exclusive, neighbours on "
        "the same nodes disturb what is measured",
    )
    block: Literal["free", "pinned"] = Field(
        "free",
        description="pinned runs all strategies of a block (workload, GPU count, seed) on the same "
        "nodes of the cluster, so that they compare in pairs",
    )


class CellSite(Section):
    """What surrounds the processes of a cell, and can change its result."""

    setup: str = Field(
        "", description="lines of bash before each cell, on each of its nodes: module load ..."
    )
    environment: dict[Name, str] = Field(
        default_factory=dict,
        description="variables for every rank, over those of setup: NCCL_SOCKET_IFNAME: ib0",
    )
    container: str | None = Field(
        None,
        description="an Apptainer image (.sif) with this project's packages, in whose python3 the "
        "ranks run; null for none",
    )


class Site(CellSite):
    """The place, as it is."""

    scratch: str | None = Field(
        None,
        description="folder on each node's own disk for a cell's caches and temporary files, with "
        "$VARIABLES of the node; emptied after each cell; null for the system's own",
    )


class Data(Section):
    """Where the images come from."""

    dir: Annotated[str, Field(min_length=1)] = Field(
        "resources", description="folder of the data sets; must exist"
    )
    download: Flag = Field(True, description="fetch a missing data set once, before any cell")


class Measure(Section):
    """How a cell is measured."""

    steady_s: Annotated[Number, Field(gt=0)] = Field(
        30.0, description="seconds of uninterrupted steps that are timed after the training"
    )
    warmup_min_steps: Count = Field(10, description="steps before the timed ones, at least")
    warmup_max_steps: Count = Field(
        200, description="and at most, if the step times do not settle before"
    )
    sample_interval_s: Annotated[Number, Field(ge=0.02, le=10)] = Field(
        0.1, description="seconds between two samples of the devices"
    )
    sampler: Flag = Field(True, description="false measures the sampler's own cost by its absence")
    profile: Flag = Field(
        False, description="a profiled pass after the timed steps: where the time of a step goes"
    )
    idle_s: Annotated[Number, Field(ge=0, le=600)] = Field(
        4.0, description="seconds for which idle GPUs are watched before a cell begins"
    )


class ParityGate(Section):
    """The proof that a strategy trains the oracle's model."""

    steps: Annotated[Count, Field(ge=8)] = Field(
        8, description="steps that a strategy trains beside the oracle"
    )
    per_gpu_batch: Annotated[Count, Field(ge=2)] = Field(
        16, description="images a replica a step of the gate"
    )
    tolerance: Annotated[Number, Field(gt=0)] = Field(
        1e-5, description="largest relative difference in float32"
    )
    floor_multiple: Annotated[Number, Field(ge=1)] = Field(
        10.0, description="the timed precision's tolerance, in multiples of the oracle's own noise"
    )
    seed: Seed = Field(0, description="the gate's own seed")


class Report(Section):
    """How results are shown."""

    figure_width_mm: Annotated[Number, Field(ge=80, le=400)] = Field(
        180.0,
        description="width of the figures, mm: 180 is a page; 85 to 90 a column, which bears eight "
        "strategies on four GPU counts",
    )
    margin: Annotated[Number, Field(gt=0, lt=1)] = Field(
        0.02,
        description="strategies whose throughput differs by less than this share are equivalent",
    )


class Validity(Section):
    """What becomes of cells that a rule marks as suspect (docs/)."""

    compare_suspect: Flag = Field(
        False, description="true lets suspect cells enter comparisons; they stay marked"
    )


class Config(Section):
    """One matrix of cells and everything that defines them."""

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)] = Field(
        description="names the matrix: its results stand in results/<run>/"
    )
    baseline: str = Field("ddp", description="the strategy or variant that others are compared to")
    matrix: Matrix
    workloads: Annotated[dict[Name, Workload], Field(min_length=1)] = Field(
        description="what can be trained, by name"
    )
    variants: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="name: {base: strategy, option: value, ...}"
    )
    cluster: Cluster = Field(default_factory=lambda: Cluster())
    site: Site = Field(default_factory=lambda: Site())
    data: Data = Field(default_factory=lambda: Data())
    measure: Measure = Field(default_factory=lambda: Measure())
    validity: Validity = Field(default_factory=lambda: Validity())
    parity: ParityGate = Field(default_factory=lambda: ParityGate())
    report: Report = Field(default_factory=lambda: Report())
    on_failure: Literal["record", "stop"] = Field(
        "record",
        description="after a failed cell (oom, timeout, diverged, failed), which is recorded: "
        "record goes on with the others; stop starts no more, and lets those that run end",
    )
    order_seed: Seed = Field(
        0, description="shuffles the order in which the strategies of a block start"
    )


def base_and_options(config: Config, strategy: str) -> tuple[str, dict[str, Any]]:
    """The base strategy of a name in the matrix, and its options with their defaults."""
    variant = dict(config.variants.get(strategy, {"base": strategy}))
    base = variant.pop("base")
    return base, STRATEGIES[base].options(**variant).model_dump()


def labels_of(config: Config) -> dict[str, str]:
    """What a reader calls each strategy of the matrix; a variant goes by its own name."""
    return {
        name: STRATEGIES[name].label if name in STRATEGIES else name
        for name in config.matrix.strategies
    }


def load(raw: Mapping[str, Any], root: Path = Path()) -> Config:
    """Validate a merged configuration.

    Args:
        raw: the mapping Snakemake merged from its config files.
        root: the folder that ``data.dir`` is relative to.

    Raises:
        ConfigError: with every mistake on a line of its own: path, what was given, what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(_message([f"(top level): got {shown(raw)}; {_EXPECTED['dict_type']}"]))
    lines: list[str] = []
    config = None
    try:
        config = Config.model_validate(dict(raw))
        raw = config.model_dump(by_alias=True)
    except ValidationError as error:
        lines += [_explain(detail) for detail in error.errors()]
    lines += _mistakes(raw, root)
    if config is None or lines:
        raise ConfigError(_message(list(dict.fromkeys(lines))))
    return config


def _message(lines: Sequence[str]) -> str:
    count = len(lines)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    return f"{head} in the configuration:\n" + "\n".join(f"  {line}" for line in lines)


def did_you_mean(given: object, allowed: Sequence[str]) -> str:
    """The allowed values, led by the nearest one where one is near."""
    text = given if isinstance(given, str) else ""
    near = difflib.get_close_matches(text, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def shown(value: object) -> str:
    """A value as a message shows it: as YAML writes it, and not at length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "(top level)"


_EXPECTED = {
    "model_type": "a mapping of keys is expected here",
    "dict_type": "a mapping of keys is expected here",
    "list_type": "a list is expected here, [a, b, ...]",
    "tuple_type": "a list is expected here, [a, b, ...]",
    "string_type": "text is expected here; what only looks like a number goes in quotes",
    "int_type": "a whole number is expected here",
    "bool_type": "true or false is expected here",
    "float_type": "a number is expected here",
    "finite_number": "a finite number is expected here",
}


def _explain(detail: Any) -> str:
    """One mistake that pydantic found, as a line of the message."""
    location, kind, given = list(detail["loc"]), detail["type"], detail.get("input")
    if location and location[-1] == "[key]":
        return f"{_path(location[:-2])}: {shown(given)} is no name; {_NAME_RULE}"
    if kind == "invalid_key":  # its own place gives true as 1
        location[-1] = given if isinstance(given, str) else shown(given)
    path = _path(location)
    match kind:
        case "extra_forbidden" | "invalid_key":
            return f"{path}: unknown key; {did_you_mean(location[-1], _keys_at(location[:-1]))}"
        case "missing":
            return f"{path}: missing" + ("" if path.endswith("]") else ", and it has no default")
        case "literal_error":
            allowed = [part.strip(" '") for part in detail["ctx"]["expected"].split(",")]
            allowed = [name.strip(" '") for part in allowed for name in part.split(" or ")]
            return f"{path}: got {shown(given)}; {did_you_mean(given, allowed)}"
        case "too_short":
            return f"{path}: is empty; name at least one"
        case "too_long":
            count, most = detail["ctx"]["actual_length"], detail["ctx"]["max_length"]
            return f"{path}: got {count} entries; {most} are allowed"
        case "string_pattern_mismatch":
            return f"{path}: got {shown(given)}; it must match {detail['ctx']['pattern']}"
        case "float_type" if _looks_like_a_number(given):
            return f"{path}: got {shown(given)}, which YAML reads as text; write it as 1.0e-3"
        case _:
            rule = detail["msg"].removeprefix("Input ").removeprefix("String ")
            reason = _EXPECTED.get(kind, f"it {rule}")
            return f"{path}: got {shown(given)}; {reason}"


def _looks_like_a_number(value: object) -> bool:
    """YAML 1.1 wants a point in 1e-3."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


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


# What follows finds the mistakes that no single key shows. It reads the raw mapping and passes over
# whatever is not of its kind, which the models have told already; so that one message names all.


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, Mapping) else {}


def _entries(raw: Mapping[str, Any], key: str, kind: type[E]) -> list[tuple[int, E]]:
    """The entries of a list that are of their kind, with their places in it."""
    found = raw.get(key)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    return [
        (index, value)
        for index, value in enumerate(found)
        if isinstance(value, kind) and not isinstance(value, bool)
    ]


def _section(kind: type[S], raw: Mapping[str, Any], key: str) -> S | None:
    """A section without its unknown keys, or None if it is wrong in another way."""
    keys = {field.alias or name for name, field in kind.model_fields.items()}
    known = {name: value for name, value in _mapping(raw, key).items() if name in keys}
    try:
        return kind.model_validate(known)
    except ValidationError:
        return None


def _mistakes(raw: Mapping[str, Any], root: Path) -> Iterator[str]:
    variants, workloads = _mapping(raw, "variants"), _mapping(raw, "workloads")
    matrix, cluster = _mapping(raw, "matrix"), _section(Cluster, raw, "cluster")
    yield from _variant_mistakes(variants)
    yield from _unknown_names(matrix, "strategies", "strategy", [*STRATEGIES, *variants])
    yield from _unknown_names(matrix, "workloads", "workload", list(workloads))
    yield from _named_twice(matrix)
    baseline = raw.get("baseline", Config.model_fields["baseline"].default)
    names = [name for _, name in _entries(matrix, "strategies", str)]
    if isinstance(baseline, str) and names and baseline not in names:
        yield (
            f"baseline: {baseline!r} is not in matrix.strategies; {did_you_mean(baseline, names)}"
        )
    measure = _section(Measure, raw, "measure")
    if measure and measure.warmup_max_steps < measure.warmup_min_steps:
        yield (
            f"measure.warmup_max_steps: got {measure.warmup_max_steps}; it must not be less than "
            f"measure.warmup_min_steps, {measure.warmup_min_steps}"
        )
    gpus = [(index, count) for index, count in _entries(matrix, "gpus", int) if count > 0]
    for index, count in gpus:
        if cluster and count > cluster.gpus_per_node and count % cluster.gpus_per_node:
            yield (
                f"matrix.gpus[{index}]: got {count}; more than one node's GPUs must be whole nodes "
                f"(cluster.gpus_per_node is {cluster.gpus_per_node})"
            )
    selected = [name for _, name in _entries(matrix, "workloads", str)]
    for name, workload in workloads.items():
        counts = [count for _, count in gpus] if name in selected else []
        if name in RESERVED_WORKLOADS:
            yield f"workloads.{name}: names something else among the results; choose another"
        if isinstance(workload, Mapping):
            yield from _workload_mistakes(f"workloads.{name}", workload, counts, cluster)
    yield from _site_mistakes(_mapping(raw, "site"), root)
    data = _section(Data, raw, "data")
    if data and not _is_folder(root / data.dir):
        yield f"data.dir: {shown(data.dir)} is not a folder; create it or name another"


def _site_mistakes(site: Mapping[str, Any], root: Path) -> Iterator[str]:
    for name in _mapping(site, "environment"):
        if name in OWN_VARIABLES:
            yield f"site.environment.{name}: is set for each rank by the launcher; leave it out"
    image = site.get("container")
    if isinstance(image, str) and not _is_file(root / image):
        yield (
            f"site.container: {shown(image)} is not a file; apptainer pull or build makes one, "
            "null runs without"
        )


def _unknown_names(
    matrix: Mapping[str, Any], key: str, kind: str, defined: Sequence[object]
) -> Iterator[str]:
    allowed = [name for name in defined if isinstance(name, str)]
    for index, name in _entries(matrix, key, str):
        if allowed and name not in allowed:
            hint = did_you_mean(name, allowed)
            yield f"matrix.{key}[{index}]: unknown {kind} {shown(name)}; {hint}"


def _named_twice(matrix: Mapping[str, Any]) -> Iterator[str]:
    for key in Matrix.model_fields:
        kind: type[int] | type[str] = int if key in ("gpus", "seeds") else str
        values = [value for _, value in _entries(matrix, key, kind)]
        for value, count in Counter[object](values).items():
            if count > 1:
                yield f"matrix.{key}: {value!r} is named {count} times; name each once"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than a file system takes, for one
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _variant_mistakes(variants: Mapping[str, Any]) -> Iterator[str]:
    for name, variant in variants.items():
        path = f"variants.{name}"
        if name in STRATEGIES:
            yield f"{path}: is the name of a strategy; choose another"
        if name in RESERVED_VARIANTS:
            yield f"{path}: names something else among the results; choose another"
        if not isinstance(variant, Mapping):
            continue
        base = variant.get("base")
        if "base" not in variant:
            yield f"{path}.base: missing; {did_you_mean('', list(STRATEGIES))}"
        elif not isinstance(base, str) or base not in STRATEGIES:
            hint = did_you_mean(base, list(STRATEGIES))
            yield f"{path}.base: unknown strategy {shown(base)}; {hint}"
        else:
            options = {key: value for key, value in variant.items() if key != "base"}
            yield from _option_mistakes(path, base, options)


def _option_mistakes(path: str, base: str, given: Mapping[str, Any]) -> Iterator[str]:
    options = STRATEGIES[base].options
    try:
        options.model_validate({key: value for key, value in given.items() if isinstance(key, str)})
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] == "extra_forbidden":
                key, allowed = detail["loc"][0], list(options.model_fields)
                choice = did_you_mean(key, allowed) if allowed else f"{base} has no options"
                yield f"{path}.{key}: unknown option of {base}; {choice}"
            else:
                yield _explain({**detail, "loc": (path, *detail["loc"])})


def _workload_mistakes(
    path: str, raw: Mapping[str, Any], gpus: Sequence[int], cluster: Cluster | None
) -> Iterator[str]:
    datasets = list(get_args(DatasetName))
    for section, kind, names in (("dataset", "dataset", datasets), ("model", "model", MODELS)):
        name = _mapping(raw, section).get("name")
        if isinstance(name, str) and name not in names:
            yield f"{path}.{section}.name: unknown {kind} {name!r}; {did_you_mean(name, names)}"
    dataset = _section(Dataset, raw, "dataset")
    if dataset is not None and dataset.name not in datasets:
        dataset = None
    model = _section(Model, raw, "model")
    if model is not None and model.name not in MODELS:
        model = None
    yield from _optimizer_mistakes(path, raw)
    if dataset and dataset.name != "synthetic":
        if dataset.classes is not None:
            yield f"{path}.dataset.classes: only synthetic images have a choice of classes"
        for key, limit in CIFAR_SIZES.items():
            images = getattr(dataset, f"{key}_images")
            if images is not None and images > limit:
                yield f"{path}.dataset.{key}_images: got {images}; {dataset.name} has {limit}"
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
    if raw.get("precision") == "tf32" and cluster and cluster.device == "cpu":
        yield f"{path}.precision: tf32 is a mode of CUDA devices; cluster.device is cpu"
    batch = _section(Batch, raw, "batch") if isinstance(raw.get("batch"), Mapping) else None
    if batch and raw.get("learning_rate_rule") == "linear" and batch.per_gpu is None:
        yield f"{path}.learning_rate_rule: linear belongs to weak scaling (batch.per_gpu)"
    if batch and (batch.per_gpu is None) == (batch.global_ is None):
        given = "neither" if batch.per_gpu is None else "both"
        yield (
            f"{path}.batch: got {given}; name per_gpu (weak scaling) or global (strong scaling), "
            "and set the other to null in an overlay"
        )
    elif batch:
        yield from _batch_mistakes(path, batch, model, dataset, gpus)


def _optimizer_mistakes(path: str, raw: Mapping[str, Any]) -> Iterator[str]:
    optimizer = _section(Optimizer, raw, "optimizer")
    schedule = _section(Schedule, raw, "schedule")
    epochs = raw.get("epochs", Workload.model_fields["epochs"].default)
    if optimizer and optimizer.nesterov and optimizer.name != "sgd":
        yield f"{path}.optimizer.nesterov: belongs to sgd; {optimizer.name} needs it false"
    elif optimizer and optimizer.nesterov and not optimizer.momentum:
        yield f"{path}.optimizer.nesterov: needs a momentum above 0"
    if schedule and isinstance(epochs, int) and 0 < epochs < schedule.warmup_epochs:
        yield (
            f"{path}.schedule.warmup_epochs: got {schedule.warmup_epochs:g}; it must not be more "
            f"than the workload's epochs, {epochs}"
        )


def _batch_mistakes(
    path: str, batch: Batch, model: Model | None, dataset: Dataset | None, gpus: Sequence[int]
) -> Iterator[str]:
    for count in gpus:
        if batch.global_ is not None and batch.global_ % count:
            yield (
                f"{path}.batch.global: got {batch.global_}; it must be divisible by every count in "
                f"matrix.gpus, and {count} does not divide it"
            )
            continue
        per_gpu = batch.per_gpu or (batch.global_ or 0) // count
        if per_gpu % batch.accumulate:
            yield (
                f"{path}.batch.accumulate: got {batch.accumulate}; it must divide the {per_gpu} "
                f"images a GPU has at {count} GPUs"
            )
        elif model and per_gpu // batch.accumulate < 2 and model.name in WITH_BATCH_NORM:
            yield (
                f"{path}.batch: one image a micro-batch at {count} GPUs leaves batch-norm no "
                "statistics; use at least 2"
            )
        if dataset and per_gpu * count > dataset.train_size:
            yield (
                f"{path}.batch: a step of {per_gpu * count} images at {count} GPUs is more than "
                f"the {dataset.train_size} training images"
            )
