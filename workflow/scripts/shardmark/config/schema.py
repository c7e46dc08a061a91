"""The models of the configuration. The JSON Schema and all error messages derive from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

from shardmark.architectures import MODELS
from shardmark.config.values import Count, Flag, Name, Number, RunName, Seed
from shardmark.datasets import DATASETS, DatasetName
from shardmark.optimizers import OptimizerName
from shardmark.strategies import STRATEGIES

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

SMALLEST_SIDE_PX, LARGEST_SIDE_PX, USUAL_SIDE_PX = 8, 1024, 32


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are errors, values are immutable."""

    # Write "Infinity" and "NaN", which can be read back. A failed gate's null could not be.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Record(Section):
    """A part of a result: a value must have the type that it was written with."""

    model_config = ConfigDict(strict=True)


class Model(Section):
    """The network of a workload."""

    name: str = Field(
        description="a torchvision model, or resnet8/20/32/44/56 (He et al. 2015, 4.2)",
        json_schema_extra={"enum": list(MODELS)},
    )
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        "auto",
        description="ResNet's first layers: cifar is 3x3 stride 1 without max-pool; auto takes "
        "cifar for images of at most 64 px",
    )
    hidden_units: Annotated[Count, Field(le=100_000)] | None = Field(
        None, description="width of one hidden ReLU layer before the classes; null for none"
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout rate before the classes"
    )


class Dataset(Section):
    """The images of a workload."""

    name: DatasetName = Field(description="cifar10, cifar100, or generated (synthetic) images")
    image_size: Annotated[int, Strict(), Field(ge=SMALLEST_SIDE_PX, le=LARGEST_SIDE_PX)] = Field(
        USUAL_SIDE_PX, description="side the model sees, px; images are resized on the device"
    )
    classes: Annotated[Count, Field(ge=2, le=100_000)] | None = Field(
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
    loader_workers: Annotated[Count, Field(le=256)] = Field(
        4, description="worker processes a replica, with loader: dataloader"
    )

    @property
    def train_size(self) -> int:
        """Training images, including the incomplete last batch."""
        return self.train_images or DATASETS[self.name].train_images


class BatchSize(Section):
    """The batch size, which also sets weak or strong scaling."""

    per_gpu: Count | None = Field(None, description="images a replica a step: weak scaling")
    global_: Count | None = Field(
        None, alias="global", description="images a step over all replicas: strong scaling"
    )
    accumulate: Count = Field(
        1, description="micro-batches whose gradients are accumulated before a step"
    )


Beta = Annotated[Number, Field(ge=0, lt=1)]


class Optimizer(Section):
    """The torch optimizer that every strategy uses."""

    name: OptimizerName = Field("sgd", description="of torch.optim")
    learning_rate: Annotated[Number, Field(gt=0)] = Field(description="peak learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="sgd only")
    nesterov: Flag = Field(False, description="sgd only")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="added to the gradient by sgd and adam, decoupled in adamw"
    )
    decay: Literal["all", "matrices"] = Field(
        "all",
        description="the parameters that weight_decay applies to: all, or those of two or more "
        "dimensions only, so neither norms nor biases",
    )
    clip_norm: Annotated[Number, Field(gt=0)] | None = Field(
        None,
        description="largest norm of the gradient of all parameters together; a larger gradient "
        "is scaled down to it; null clips nothing",
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
    batch: BatchSize
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
    activation_checkpointing: Literal["none", "block"] = Field(
        "none",
        description="block keeps only the inputs of the model's blocks and computes the rest again "
        "in the backward pass",
    )
    compile: Literal["none", "block"] = Field(
        "none", description="block compiles each of the model's blocks with torch.compile"
    )
    epochs: Count = Field(1, description="passes over the training images, each followed by a test")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return DATASETS[self.dataset.name].classes or self.dataset.classes or 10

    @property
    def train_images(self) -> int:
        """Images per epoch, including the incomplete last batch, which is dropped."""
        return self.dataset.train_size

    @property
    def test_images(self) -> int:
        """Images on which the accuracy is measured."""
        return self.dataset.test_images or DATASETS[self.dataset.name].test_images


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
    max_cells: Count = Field(
        10_000, description="a matrix of more cells is taken for a mistake and refused"
    )


class Cluster(Section):
    """The machines, and what cells request of them."""

    device: Literal["cuda", "cpu"] = Field(
        "cuda", description="cuda (NCCL), or cpu (gloo, a process a replica)"
    )
    gpus_per_node: Count = Field(8, description="a cell of more GPUs spans whole nodes")
    cpus_per_gpu: Count = Field(8, description="CPU cores a Slurm job asks for, for each GPU")
    mem_gb_per_gpu: Count = Field(64, description="GB of memory a Slurm job asks for, for each GPU")
    gpu_request: Literal["gpus", "gres", "none"] = Field(
        "gpus",
        description="how a job asks Slurm for its GPUs: gpus by --gpus (on several nodes: --gres), "
        "gres always by --gres, for select/cons_res; none not at all, for a cluster without GRES: "
        "a cell then sees all GPUs of a node and takes the first ones, so keep --exclusive",
    )
    time_limit_minutes: Count = Field(
        120,
        description="minutes after which a cell is ended and recorded as a time-out, at most; see "
        "expected_images_per_s",
    )
    expected_images_per_s: dict[str, Annotated[Number, Field(gt=0)]] = Field(
        default_factory=dict,
        description="workload: training images per second that one GPU is expected to reach. The "
        "time limit of its cells follows from it, their epochs and their window: 5 minutes to "
        "start, a training that is ten times slower, the longest window. make plan estimates the "
        "costs with it",
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

    @property
    def gpus_unassigned(self) -> bool:
        """Whether Slurm assigns no GPUs to jobs, so that two jobs on a node would use the same."""
        return self.device == "cuda" and self.gpu_request == "none"


class CellSite(Section):
    """The environment of a cell's processes, which can change its result."""

    setup: str = Field(
        "", description="lines of bash before each cell, on each of its nodes: module load ..."
    )
    environment: dict[Name, str] = Field(
        default_factory=dict,
        description="variables for every rank, over those of setup: NCCL_SOCKET_IFNAME: ib0",
    )
    secret_environment: list[Name] = Field(
        default_factory=list,
        description="names of variables that hold a secret, such as WANDB_API_KEY: set where "
        "Snakemake is started, or by setup; results record the names and never the values",
    )
    container: str | None = Field(
        None,
        description="an Apptainer image (.sif) with this project's packages, in whose python3 the "
        "ranks run; null for none",
    )


class Site(CellSite):
    """Settings of the site where the cells run."""

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

    steady_min_s: Annotated[Number, Field(gt=0)] = Field(
        10.0,
        description="seconds of uninterrupted steps that are timed after the training, at least",
    )
    steady_max_s: Annotated[Number, Field(gt=0)] = Field(
        60.0, description="and at most, if the mean step time is not precise before"
    )
    steady_half_width_pct: Annotated[Number, Field(gt=0, le=100)] = Field(
        1.0,
        description="between the two, timing ends when the half-width of the 95 % confidence "
        "interval of the mean step time, from 20 batch means, is at most this share of the mean, %",
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
        True, description="a profiled pass after the timed steps: where the time of a step goes"
    )
    collect_garbage: Flag = Field(
        False,
        description="true lets Python's garbage collector run in the timed window, to measure what "
        "it costs",
    )
    idle_s: Annotated[Number, Field(ge=0, le=600)] = Field(
        4.0, description="seconds for which idle GPUs are watched before a cell begins"
    )


class ParityGate(Section):
    """The proof that a strategy trains the oracle's model."""

    steps: Annotated[Count, Field(ge=8, le=1000)] = Field(
        8, description="steps that a strategy trains beside the oracle"
    )
    per_gpu_batch: Annotated[Count, Field(ge=2, le=1024)] = Field(
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


class Config(Section):
    """One matrix of cells and everything that defines them."""

    run: RunName = Field(description="names the matrix: its results stand in results/<run>/")
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
    """Return the base strategy of a name in the matrix, and its options with their defaults."""
    variant = dict(config.variants.get(strategy, {"base": strategy}))
    base = variant.pop("base")
    return base, STRATEGIES[base].options(**variant).model_dump()
