"""The models of the configuration. The JSON Schema and all error messages derive from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    model_validator,
)

from shardmark.architectures import GPT_PRESETS, MODELS, WITH_BATCH_NORM, GptPreset
from shardmark.config.values import (
    Colour,
    Count,
    Flag,
    FreeOptions,
    Label,
    Name,
    Number,
    RunName,
    Section,
    Seed,
)
from shardmark.datasets import DATASETS, DatasetName
from shardmark.optimizers import Optimizer
from shardmark.strategies import OWN, OwnOptions, spec_of

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

SMALLEST_SIDE_PX, LARGEST_SIDE_PX, USUAL_SIDE_PX = 8, 1024, 32


class Model(Section):
    """A network that classifies images."""

    name: str = Field(
        description="A model of torchvision, or resnet8, 20, 32, 44 or 56 (He et al. 2015, "
        "section 4.2).",
        json_schema_extra={"enum": list(MODELS)},
    )
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        "auto",
        description="First layers of a ResNet: cifar is a 3x3 convolution of stride 1 without "
        "max-pool, imagenet is torchvision's own; auto takes cifar for images of at most 64 px.",
    )
    hidden_units: Annotated[Count, Field(le=100_000)] | None = Field(
        None,
        description="Width of one hidden ReLU layer before the classes; null for no such layer.",
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout rate before the classes."
    )


class Gpt(Section):
    """A decoder-only transformer; a preset sets every size that is not given here."""

    # A preset may replace every other key.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(required=["name"]))

    name: Literal["gpt"] = Field(
        description="gpt: a decoder-only transformer, which is a language model."
    )
    preset: GptPreset | None = Field(
        None,
        description="A named size, by its number of parameters; it sets every size that is not "
        "given beside it.",
    )
    layers: Annotated[Count, Field(le=1000)] = Field(description="Number of blocks.")
    width: Annotated[Count, Field(le=100_000)] = Field(description="Features of a token.")
    heads: Annotated[Count, Field(le=1000)] = Field(
        description="Attention heads; their number divides width."
    )
    context: Annotated[Count, Field(ge=2, le=1_000_000)] = Field(
        description="Tokens of a sequence."
    )
    vocabulary: Annotated[Count, Field(ge=2, le=1_000_000)] = Field(
        description="Number of different tokens."
    )
    tied: Flag = Field(
        False, description="Whether the output layer shares its weight with the token embedding."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_sizes_of_preset(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        preset = raw.get("preset")
        if not isinstance(preset, str):
            return raw
        # If the preset is unknown, that is the error to report, not the missing sizes.
        sizes = GPT_PRESETS.get(preset, GPT_PRESETS["gpt_0b12"])
        # In an overlay, null removes the setting of the file below it.
        return {**raw, **{key: size for key, size in sizes.items() if raw.get(key) is None}}


class Tokens(Section):
    """The sequences that a language model learns."""

    name: Literal["synthetic_tokens", "text"] = Field(
        description="synthetic_tokens for generated sequences, text for the bytes of a text file, "
        "one token each."
    )
    file: str | None = Field(
        None, description="The text file, relative to the project's folder; only with text."
    )
    sequences: Count = Field(
        4096,
        description="Sequences of an epoch, each as long as the model's context; of a text, the "
        "first ones.",
    )
    test_sequences: Annotated[int, Strict(), Field(ge=0)] = Field(
        0,
        description="Further sequences, never trained on, whose loss per token is measured after "
        "each epoch; of a text, the last ones. 0 without evaluation.",
    )


class Dataset(Section):
    """The images of a workload."""

    name: DatasetName = Field(description="A data set of images; synthetic generates them.")
    image_size: Annotated[int, Strict(), Field(ge=SMALLEST_SIDE_PX, le=LARGEST_SIDE_PX)] = Field(
        USUAL_SIDE_PX,
        description="Side of the images that the model sees, px; the device resizes the images.",
    )
    classes: Annotated[Count, Field(ge=2, le=100_000)] | None = Field(
        None, description="Number of classes of synthetic images; null for 10. CIFAR has its own."
    )
    train_images: Count | None = Field(
        None,
        description="Number of training images to use, from the first on; null for all "
        "(synthetic: 4096).",
    )
    test_images: Count | None = Field(
        None,
        description="Number of test images to use, from the first on; null for all "
        "(synthetic: 1024).",
    )
    augment: Flag = Field(
        True,
        description="Whether training images are cropped at random after padding by 4 px, and "
        "flipped at random.",
    )
    loader: Literal["device", "dataloader"] = Field(
        "device",
        description="device keeps all images on the device as uint8; dataloader prefetches "
        "batches in worker processes.",
    )
    loader_workers: Annotated[Count, Field(le=256)] = Field(
        4, description="Worker processes per replica, with loader: dataloader."
    )

    @property
    def train_size(self) -> int:
        """Training images, including the incomplete last batch."""
        return self.train_images or DATASETS[self.name].train_images


class BatchSize(Section):
    """The batch size, which also sets weak or strong scaling."""

    per_gpu: Count | None = Field(
        None,
        description="Samples (images or sequences) per replica and step, for weak scaling; null "
        "for strong scaling.",
    )
    global_: Count | None = Field(
        None,
        alias="global",
        description="Samples (images or sequences) per step over all replicas, for strong "
        "scaling; null for weak scaling.",
    )
    accumulate: Count = Field(
        1, description="Micro-batches per step, whose gradients are accumulated."
    )


class Schedule(Section):
    """The learning rate over the training."""

    name: Literal["constant", "cosine"] = Field(
        "constant",
        description="Learning rate after the warm-up: constant, or cosine, which falls to zero at "
        "the last step of the training; the timed steps after the training then run at half the "
        "peak.",
    )
    warmup_epochs: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="Epochs in which the learning rate grows linearly from zero."
    )


# Mean over the test samples: the share that is predicted right, or the mean loss per item.
TestScore = Literal["accuracy", "loss"]


class Workload(Section, ABC):
    """What is trained, whatever its kind. Every strategy of a workload trains exactly this."""

    # What messages call the samples.
    samples: ClassVar[str]

    batch: BatchSize
    optimizer: Optimizer
    schedule: Schedule = Field(default_factory=lambda: Schedule())
    learning_rate_rule: Literal["none", "linear"] = Field(
        "none",
        description="For weak scaling: linear multiplies the learning rate by the GPU count "
        "(Goyal et al. 2017), none leaves it.",
    )
    precision: Precision = Field(
        description="Precision of compute: bf16 and fp16 use autocast; parameters, gradients, "
        "reduction and optimizer state stay in float32."
    )
    activation_checkpointing: Literal["none", "block"] = Field(
        "none",
        description="block keeps only the inputs of the model's blocks and computes the rest again "
        "in the backward pass.",
    )
    compile: Literal["none", "block"] = Field(
        "none", description="block compiles each of the model's blocks with torch.compile."
    )
    epochs: Count = Field(
        1,
        description="Passes over the training samples; a test follows each, if there are test "
        "samples.",
    )

    @property
    @abstractmethod
    def unit(self) -> str:
        """What throughput counts: images, tokens."""

    @property
    def items_per_sample(self) -> int:
        """Images or tokens per sample."""
        return 1

    @property
    @abstractmethod
    def train_samples(self) -> int:
        """Samples per epoch, including the incomplete last batch, which is dropped."""

    @property
    def test_samples(self) -> int:
        """Samples of one evaluation; 0 without evaluation."""
        return 0

    @property
    def test_score(self) -> TestScore:
        """What the evaluation measures."""
        return "accuracy"

    @property
    def batchnorm_statistics(self) -> Literal["local", "sync", "none"]:
        """Whether batch-norm's statistics are per replica, over the global batch, or absent."""
        return "none"

    @property
    def loader_workers(self) -> int:
        """Worker processes per replica that load samples; 0 if all samples are on the device."""
        return 0

    @property
    def chance_accuracy(self) -> float | None:
        """The accuracy of guessing; None if it is no measure of the training."""
        return None

    @property
    def own_files(self) -> list[str]:
        """The user's own files with samples; after a change of one the cells run again."""
        return []

    @property
    def own_code(self) -> list[str]:
        """The user's own files with code that trains."""
        return []

    @property
    @abstractmethod
    def generated(self) -> bool:
        """Whether the samples are generated, so that nothing has to be read."""

    @property
    @abstractmethod
    def input_shape(self) -> dict[str, Any]:
        """The settings of the data that change the speed even if loading does not limit it."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is trained, in a few words."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Model and data, in words."""


class VisionWorkload(Workload):
    """Images to classify."""

    samples: ClassVar[str] = "images"

    model: Model
    dataset: Dataset
    batchnorm: Literal["local", "sync"] = Field(
        "local",
        description="Batch-norm statistics of each replica's batch (local) or of the global batch "
        "(sync).",
    )

    @property
    def unit(self) -> str:
        """Images."""
        return "images"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return DATASETS[self.dataset.name].classes or self.dataset.classes or 10

    @property
    def train_samples(self) -> int:
        """Training images."""
        return self.dataset.train_size

    @property
    def test_samples(self) -> int:
        """Images on which the accuracy is measured."""
        return self.dataset.test_images or DATASETS[self.dataset.name].test_images

    @property
    def batchnorm_statistics(self) -> Literal["local", "sync", "none"]:
        """The setting, if the model has batch-norm."""
        return self.batchnorm if self.model.name in WITH_BATCH_NORM else "none"

    @property
    def chance_accuracy(self) -> float | None:
        """One in ``classes``; None for generated images, which take too long to learn."""
        return None if self.generated else 1 / self.classes

    @property
    def loader_workers(self) -> int:
        """The loader's workers."""
        return self.dataset.loader_workers if self.dataset.loader == "dataloader" else 0

    @property
    def generated(self) -> bool:
        """Whether the images are generated."""
        return DATASETS[self.dataset.name].generated

    @property
    def input_shape(self) -> dict[str, Any]:
        """The image size and the number of classes."""
        return {"image_size": self.dataset.image_size, "classes": self.classes}

    @property
    def subject(self) -> str:
        """Model and data set."""
        return f"{self.model.name} on {self.dataset.name}"

    @property
    def summary(self) -> str:
        """Model, data set, images and classes."""
        return (
            f"{self.subject} ({self.train_samples:,} images of "
            f"{self.dataset.image_size} px, {self.classes} classes), {self.batchnorm} batch-norm "
            "statistics"
        )


class LanguageWorkload(Workload):
    """A language model that predicts each next token."""

    samples: ClassVar[str] = "sequences"

    model: Gpt
    dataset: Tokens

    @property
    def unit(self) -> str:
        """Tokens."""
        return "tokens"

    @property
    def items_per_sample(self) -> int:
        """The tokens of a sequence."""
        return self.model.context

    @property
    def train_samples(self) -> int:
        """Sequences."""
        return self.dataset.sequences

    @property
    def test_samples(self) -> int:
        """Sequences on which the loss per token is measured."""
        return self.dataset.test_sequences

    @property
    def test_score(self) -> TestScore:
        """The loss per token."""
        return "loss"

    @property
    def own_files(self) -> list[str]:
        """The text."""
        return [self.dataset.file] if self.dataset.file is not None else []

    @property
    def generated(self) -> bool:
        """Whether the sequences are generated."""
        return self.dataset.name == "synthetic_tokens"

    @property
    def input_shape(self) -> dict[str, Any]:
        """Empty, because the model's settings contain the context."""
        return {}

    @property
    def subject(self) -> str:
        """The kind of model; its size is in the summary."""
        return "GPT"

    @property
    def summary(self) -> str:
        """Model and data."""
        size = self.model
        tied = "tied" if size.tied else "untied"
        return (
            f"{self.subject} ({size.layers} layers, width {size.width}, {size.heads} heads, "
            f"{tied}) on {self.dataset.name} ({self.train_samples:,} sequences of {size.context} "
            f"tokens, vocabulary {size.vocabulary:,})"
        )


class OwnData(Section):
    """The samples of a training of the user's own."""

    name: ClassVar[str] = "own"

    samples: Count = Field(description="Training samples: the first of those that the file loads.")
    test_samples: Annotated[int, Field(ge=0)] = Field(
        0, description="Samples of one evaluation; 0 without evaluation."
    )
    test_score: TestScore = Field(
        "accuracy",
        description="What the file's evaluation returns for each sample: accuracy (0 to 1), or its "
        "mean loss per item.",
    )
    items_per_sample: Count = Field(
        1, description="Items of a sample that throughput counts, for instance its tokens."
    )
    unit: Annotated[str, Field(pattern=r"^[a-z][a-z ]*$", max_length=20)] = Field(
        "samples", description="What an item is, in the plural: tokens, images, atoms."
    )


class OwnWorkload(Workload):
    """A training of the user's own, in one file (docs/adding.md)."""

    samples: ClassVar[str] = "samples"

    file: Annotated[str, Field(min_length=1)] = Field(
        description="The file that defines the training; a path relative to the project."
    )
    options: FreeOptions = Field(
        default_factory=dict, description="What the file may read as its options; any keys."
    )
    dataset: OwnData

    @property
    def unit(self) -> str:
        """The configured one."""
        return self.dataset.unit

    @property
    def items_per_sample(self) -> int:
        """The configured number."""
        return self.dataset.items_per_sample

    @property
    def train_samples(self) -> int:
        """The configured number."""
        return self.dataset.samples

    @property
    def test_samples(self) -> int:
        """The configured number."""
        return self.dataset.test_samples

    @property
    def test_score(self) -> TestScore:
        """The configured one."""
        return self.dataset.test_score

    @property
    def own_code(self) -> list[str]:
        """The training."""
        return [self.file]

    @property
    def generated(self) -> bool:
        """Unknown, so it is not taken for granted."""
        return False

    @property
    def input_shape(self) -> dict[str, Any]:
        """The options, which may change the samples."""
        return {"options": self.options, "items_per_sample": self.items_per_sample}

    @property
    def subject(self) -> str:
        """The file."""
        return str(self.file)

    @property
    def summary(self) -> str:
        """File, options and number of samples."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        given = f" ({options})" if options else ""
        return f"{self.subject}{given} on {self.train_samples:,} samples"


WorkloadKind = Literal["vision", "language", "own"]
WORKLOADS: dict[WorkloadKind, type[Workload]] = {
    "vision": VisionWorkload,
    "language": LanguageWorkload,
    "own": OwnWorkload,
}


def kind_of(raw: Any) -> WorkloadKind:
    """The kind of workload that a definition, or its raw mapping, describes."""
    if isinstance(raw, Workload):
        return next(kind for kind, model in WORKLOADS.items() if isinstance(raw, model))
    if isinstance(raw, Mapping) and "file" in raw:
        return "own"
    model = raw.get("model") if isinstance(raw, Mapping) else None
    name = model.get("name") if isinstance(model, Mapping) else None
    return "language" if name == "gpt" else "vision"


AnyWorkload = Annotated[
    Annotated[VisionWorkload, Tag("vision")]
    | Annotated[LanguageWorkload, Tag("language")]
    | Annotated[OwnWorkload, Tag("own")],
    Discriminator(kind_of),
]


class Appearance(Section):
    """How pages, tables and figures present a variant or a strategy of the user's own.

    It is no part of a cell, so a new label reruns no cell.
    """

    label: Label = Field(
        "",
        description="What the report, its tables and figures call it; empty for its name. Files "
        "and the columns of CSV files always have the name.",
    )
    color: Colour = Field(
        "",
        description='Its colour in figures, "#rrggbb" in quotes, with a contrast of at least 3:1 '
        "on white; empty for the colour of a variant's base, or for grey.",
    )


class OwnStrategy(Appearance, OwnOptions):
    """A strategy of the user's own: its options, and how it is presented."""


class MatrixPart(Section):
    """Some cells of the matrix. A list that is left out allows all of the matrix's."""

    workloads: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Some of matrix.workloads."
    )
    strategies: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Some of matrix.strategies."
    )
    gpus: Annotated[list[Count], Field(min_length=1)] | None = Field(
        None, description="Some of matrix.gpus."
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None, description="Some of matrix.seeds."
    )

    def has(self, workload: str, strategy: str, gpus: int, seed: int | None) -> bool:
        """Whether it allows this cell, or for seed None one with any seed."""
        return (
            (self.workloads is None or workload in self.workloads)
            and (self.strategies is None or strategy in self.strategies)
            and (self.gpus is None or gpus in self.gpus)
            and (self.seeds is None or seed is None or seed in self.seeds)
        )


class Matrix(Section):
    """The cells: every strategy x GPU count x seed of every workload named here."""

    workloads: Annotated[list[str], Field(min_length=1)] = Field(
        description="Names that are defined under workloads."
    )
    strategies: Annotated[list[str], Field(min_length=1)] = Field(
        description="Strategies, and those that are defined under variants and strategies."
    )
    gpus: Annotated[list[Count], Field(min_length=1)] = Field(
        description="GPU counts of the cells; each GPU has one replica."
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="Seeds of the runs; a seed sets the initial weights, data order, augmentation "
        "and dropout."
    )
    only: list[MatrixPart] = Field(
        default_factory=list,
        description="Restricts the matrix to the cells that at least one entry allows; without "
        "entries, all cells run. An entry names some of the workloads, strategies, gpus and seeds, "
        "so that, for instance, one workload has fewer seeds than another.",
    )
    max_cells: Count = Field(
        10_000, description="A matrix of more cells is refused, because it is probably a mistake."
    )

    def has(self, workload: str, strategy: str, gpus: int, seed: int | None = None) -> bool:
        """Whether there is such a cell, or for seed None one with any seed."""
        return not self.only or any(part.has(workload, strategy, gpus, seed) for part in self.only)


class Cluster(Section):
    """The machines, and what cells request of them."""

    device: Literal["cuda", "cpu"] = Field(
        "cuda", description="cuda (with NCCL), or cpu (with gloo, one process per replica)."
    )
    gpus_per_node: Count = Field(
        8, description="GPUs of a node; a cell of more GPUs spans whole nodes."
    )
    cpus_per_gpu: Count = Field(8, description="CPU cores per GPU that a Slurm job requests.")
    mem_gb_per_gpu: Count = Field(64, description="Memory per GPU that a Slurm job requests, GB.")
    gpu_request: Literal["gpus", "gres", "none"] = Field(
        "gpus",
        description="How a job requests its GPUs from Slurm: gpus by --gpus (on several nodes by "
        "--gres); gres always by --gres, for select/cons_res; none not at all, for a cluster "
        "without GRES. With none a cell sees all GPUs of a node and takes the first ones, so keep "
        "--exclusive.",
    )
    time_limit_minutes: Count = Field(
        120,
        description="Minutes after which a cell is ended and recorded as a time-out; "
        "expected_items_per_s can shorten this.",
    )
    expected_items_per_s: dict[str, Annotated[Number, Field(gt=0)]] = Field(
        default_factory=dict,
        description="By workload, the images/s or tokens/s that one GPU should reach. It sets the "
        "time limit of the workload's cells: 5 minutes to start, a training ten times slower than "
        "expected, and the longest window. make plan estimates the costs with it.",
    )
    stall_limit_minutes: Annotated[Number, Field(gt=0)] = Field(
        5.0,
        description="A cell is ended and recorded as failed if no rank makes progress (a phase, a "
        "step, a test batch) for so many minutes.",
    )
    slurm_extra: str = Field(
        "--exclusive",
        description="Further sbatch options of each cell; without --exclusive, neighbours on the "
        "same nodes disturb the measurements.",
    )
    block: Literal["free", "pinned"] = Field(
        "free",
        description="pinned runs all strategies of a block (workload, GPU count, seed) on the "
        "same nodes of the cluster, so that they can be compared in pairs; free lets Slurm choose "
        "nodes for each cell.",
    )

    @property
    def gpus_unassigned(self) -> bool:
        """Whether Slurm assigns no GPUs to jobs, so that two jobs on a node would use the same."""
        return self.device == "cuda" and self.gpu_request == "none"


class CellSite(Section):
    """The environment of a cell's processes, which can change its result."""

    setup: str = Field(
        "",
        description="Lines of bash that run before each cell on each of its nodes, such as module "
        "load.",
    )
    environment: dict[Name, str] = Field(
        default_factory=dict,
        description="Environment variables of every rank; they override those of setup, for "
        "example NCCL_SOCKET_IFNAME: ib0.",
    )
    secret_environment: list[Name] = Field(
        default_factory=list,
        description="Names of environment variables that contain secrets, such as WANDB_API_KEY. "
        "Set them where Snakemake is started, or in setup; results record the names, never the "
        "values.",
    )
    container: str | None = Field(
        None,
        description="An Apptainer image (.sif) with this project's packages, whose python3 runs "
        "the ranks; null for no image.",
    )


class Site(CellSite):
    """Settings of the site where the cells run."""

    scratch: str | None = Field(
        None,
        description="Folder on each node's own disk for the caches and temporary files of a cell, "
        "emptied after each cell; it may contain $VARIABLES of the node. null for the system's "
        "own folders.",
    )


class Data(Section):
    """Where the data sets come from."""

    dir: Annotated[str, Field(min_length=1)] = Field(
        "resources", description="Folder of the data sets; it must exist."
    )
    download: Flag = Field(
        True, description="Whether to download a missing data set, once, before any cell."
    )


class Measure(Section):
    """How a cell is measured."""

    steady_min_s: Annotated[Number, Field(gt=0)] = Field(
        10.0,
        description="Shortest timed window after the training, s.",
    )
    steady_max_s: Annotated[Number, Field(gt=0)] = Field(
        60.0,
        description="Longest timed window, s; the window ends there even if the mean step time is "
        "not precise yet.",
    )
    steady_half_width_pct: Annotated[Number, Field(gt=0, le=100)] = Field(
        1.0,
        description="Between these two, the window ends when the half-width of the 95 % "
        "confidence interval of the mean step time (from 20 batch means) is at most this share of "
        "the mean, %.",
    )
    warmup_min_steps: Count = Field(10, description="Fewest steps before the timed window.")
    warmup_max_steps: Count = Field(
        200,
        description="Most steps before the timed window; it begins there even if the step times "
        "have not settled.",
    )
    sample_interval_s: Annotated[Number, Field(ge=0.02, le=10)] = Field(
        0.1, description="Time between two samples of the devices, s."
    )
    sampler: Flag = Field(
        True,
        description="Whether the devices are sampled; false shows what the sampler itself costs.",
    )
    profile: Flag = Field(
        True,
        description="Whether a few steps are profiled after the window, to split the time of a "
        "step.",
    )
    collect_garbage: Flag = Field(
        False,
        description="Whether Python's garbage collector runs in the timed window; true shows what "
        "it costs.",
    )
    idle_s: Annotated[Number, Field(ge=0, le=600)] = Field(
        3.0,
        description="Time for which the idle GPUs are sampled before a cell begins, s, after one "
        "second in which they settle.",
    )


class ParityGate(Section):
    """The proof that a strategy trains the oracle's model."""

    steps: Annotated[Count, Field(ge=8, le=1000)] = Field(
        8, description="Steps that a strategy trains beside the oracle."
    )
    per_gpu_batch: Annotated[Count, Field(ge=2, le=1024)] = Field(
        16, description="Samples (images or sequences) per replica and step of the gate."
    )
    tolerance: Annotated[Number, Field(gt=0)] = Field(
        1e-5, description="Largest relative difference from the oracle in float32."
    )
    floor_multiple: Annotated[Number, Field(ge=1)] = Field(
        10.0,
        description="Tolerance in the timed precision, as a multiple of the oracle's own noise.",
    )
    seed: Seed = Field(0, description="Seed of the gate.")


class LargestBatch(Section):
    """The search for the largest batch that fits."""

    workloads: list[str] = Field(
        default_factory=list,
        description="Workloads of the matrix whose largest batch is searched; empty for no search.",
    )
    strategies: list[str] = Field(
        default_factory=list,
        description="Strategies of the matrix whose largest batch is searched; empty for all.",
    )
    gpus: list[Count] = Field(
        default_factory=list,
        description="GPU counts of the matrix at which it is searched; empty for all.",
    )
    most: Annotated[Count, Field(ge=2)] | None = Field(
        None,
        description="Largest micro-batch of a replica that is tried, in samples; null for 4096. "
        "On a CPU it must be given, because other programs suffer when memory runs out.",
    )


class Report(Section):
    """How results are presented."""

    figure_width_mm: Annotated[Number, Field(ge=80, le=400)] = Field(
        180.0,
        description="Width of the figures, mm: 180 for a page, 85 to 90 for a column, which has "
        "room for eight strategies on four GPU counts.",
    )
    margin: Annotated[Number, Field(gt=0, lt=1)] = Field(
        0.02,
        description="Strategies whose throughput differs by less than this share are equivalent.",
    )


class Config(Section):
    """One matrix of cells and everything that defines them."""

    run: RunName = Field(description="Name of the matrix; its results are in results/<run>/.")
    baseline: str = Field(
        "ddp", description="The strategy or variant that the others are compared with."
    )
    matrix: Matrix
    workloads: Annotated[dict[Name, AnyWorkload], Field(min_length=1)] = Field(
        description="What can be trained, by name."
    )
    variants: dict[Name, dict[str, Any]] = Field(
        default_factory=dict,
        description="By name, a strategy with other options: {base: strategy, option: value, ...}; "
        "also label and color, as in strategies.",
    )
    strategies: dict[Name, OwnStrategy] = Field(
        default_factory=dict, description="By name, a strategy of the user's own."
    )
    cluster: Cluster = Field(default_factory=lambda: Cluster())
    site: Site = Field(default_factory=lambda: Site())
    data: Data = Field(default_factory=lambda: Data())
    measure: Measure = Field(default_factory=lambda: Measure())
    parity: ParityGate = Field(default_factory=lambda: ParityGate())
    largest_batch: LargestBatch = Field(default_factory=lambda: LargestBatch())
    report: Report = Field(default_factory=lambda: Report())
    on_failure: Literal["record", "stop"] = Field(
        "record",
        description="What to do after a failed cell (oom, timeout, diverged or failed), which is "
        "recorded in both cases: record runs the other cells; stop starts no more cells and lets "
        "the running ones finish.",
    )
    order_seed: Seed = Field(
        0, description="Seed of the order in which the strategies of a block start."
    )


def base_and_options(config: Config, strategy: str) -> tuple[str, dict[str, Any]]:
    """Return the base strategy of a name in the matrix, and its options with their defaults."""
    if strategy in config.strategies:
        return OWN, config.strategies[strategy].model_dump(include=set(OwnOptions.model_fields))
    variant = config.variants.get(strategy, {"base": strategy})
    _, options = split_variant(variant)
    return variant["base"], spec_of(variant["base"]).options(**options).model_dump()


def split_variant(variant: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a variant into its appearance and its options."""
    looks = {key: value for key, value in variant.items() if key in Appearance.model_fields}
    options = {key: value for key, value in variant.items() if key not in ("base", *looks)}
    return looks, options


def chosen_labels(config: Config) -> dict[str, str]:
    """Return the labels that the configuration chooses, by strategy of the matrix."""
    return {name: look.label for name, look in _appearances(config) if look.label}


def chosen_colours(config: Config) -> dict[str, str]:
    """Return the colours that the configuration chooses, by strategy of the matrix."""
    return {name: look.color for name, look in _appearances(config) if look.color}


def _appearances(config: Config) -> Iterator[tuple[str, Appearance]]:
    for name in config.matrix.strategies:
        if name in config.strategies:
            yield name, config.strategies[name]
        elif name in config.variants:
            yield name, Appearance.model_validate(split_variant(config.variants[name])[0])
