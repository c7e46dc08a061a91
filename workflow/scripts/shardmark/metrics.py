"""metrics.json: the result of a cell, whatever its outcome, and the result of the parity gate.

Names contain units. A value that was not measured is null, never 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, ConfigDict, Field, ValidationError, with_config
from typing_extensions import TypedDict

from shardmark.cells import Cell, recorded_fingerprint
from shardmark.config.values import Amount, Change, Count, Name, Positive, Record, Total
from shardmark.effective_config import EffectiveConfig
from shardmark.errors import UserError
from shardmark.escaping import for_terminal

SCHEMA_VERSION = 1
# Our own files have seven levels. Much deeper nesting would exhaust the stack when written again.
DEEPEST = 30
T = TypeVar("T", bound=Record)
Status = Literal["ok", "oom", "timeout", "diverged", "failed", "unsupported"]
Bound = Literal["compute", "memory"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# NaN and infinity are results too; JSON stores them as text.
MaybeInfinite = Annotated[float, Field(strict=False)]
# JSON stores it as a list.
Interval = Annotated[tuple[Change, Change], Field(strict=False)]


def _renamed(name: str, before: str, default: Any = ...) -> Any:
    """A field that results from before language models have under another name."""
    return Field(default, validation_alias=AliasChoices(name, before))


# Files in the folder of a metrics.json that belong to it.
SIDE_FILES = ("steps.csv", "telemetry*.csv")


class Failure(Record):
    """What ended a cell that is not ok."""

    phase: str | None
    rank: Total | None
    exception: str
    log_tail: list[str]

    @classmethod
    def plain(cls, reason: str) -> Failure:
        """Return a failure that no rank's exception describes."""
        return cls(phase=None, rank=None, exception=reason, log_tail=[])


class Loss(Record):
    """Mean training loss over all images or tokens of an epoch, before each step's update."""

    per_epoch: list[MaybeInfinite]
    final: MaybeInfinite | None


class Accuracy(Record):
    """Share of test images classified correctly, with replica 0's batch-norm statistics.

    Language models have none.
    """

    per_epoch: list[Share]
    final: Share | None


class Times(Record):
    """Wall-clock seconds on rank 0, from the launch to the end of the last process.

    The values add up to ``total_s``, except for three that are parts of others: the first step
    belongs to the training, and the warm-up and the steady state belong to the measurement. If
    the model is compiled, ``compilation_s`` is the first step, which compiles it, and is no part of
    the training; then there is no ``first_step_s``.
    """

    imports_s: Amount | None = None
    process_group_s: Amount | None = None
    probe_s: Amount | None = None
    data_s: Amount | None = None
    build_s: Amount | None = None
    compilation_s: Amount | None = None
    training_s: Amount | None = None
    first_step_s: Amount | None = None
    evaluation_s: Amount | None = None
    inspection_s: Amount | None = None
    measurement_s: Amount | None = None
    warmup_s: Amount | None = None
    steady_s: Amount | None = None
    profile_s: Amount | None = None
    shutdown_s: Change | None = None
    other_s: Change | None = None
    total_s: Amount | None = None
    epochs_s: list[Amount] = []


class Windows(Record):
    """Begin and end of the steady window and of each evaluation on rank 0, in seconds on the
    monotonic clock of its node, which telemetry.csv uses too.
    """

    steady_monotonic_s: Interval
    evaluations_monotonic_s: list[Interval]


class Throughput(Record):
    """Steady state: uninterrupted steps after the training, on the slowest rank.

    ``unit`` is what an item is: images, tokens.
    ``half_width_pct`` is the half-width of the 95 % confidence interval of the mean step, from 20
    batch means, as a share of that mean; the window ended when it was small enough, or at its cap.
    ``drift_pct`` is how much slower the last third of the steps is than the first, by a straight
    line through the batch means, and ``drift_error_pct`` its standard error. All three are null if
    there are too few steps. ``gc_collections`` counts collections by Python's garbage collector in
    the window, on all ranks together. ``compiled_calls`` counts how often a step after the window
    ran compiled code, on the rank that did so least; null if nothing is to be compiled.
    """

    unit: str = "images"
    items_per_s: Positive = _renamed("items_per_s", "images_per_s")
    items_per_s_per_gpu: Positive = _renamed("items_per_s_per_gpu", "images_per_s_per_gpu")
    step_ms_mean: Positive
    step_ms_p50: Positive
    step_ms_p90: Positive
    step_ms_p99: Positive
    steps: Total
    window_s: Positive
    half_width_pct: Amount | None = None
    warmup_steps: Total
    warmup_converged: bool
    slowest_rank: Total
    drift_pct: Change | None = None
    drift_error_pct: Amount | None = None
    gc_collections: Total | None = None
    compiled_calls: Total | None = None


class Probe(Record):
    """Speed of one device in a short probe before the training.

    The probe runs a dense matrix product in the workload's precision, a copy within the device
    (bytes read plus written), and an all-reduce over the whole cell (bus bandwidth; null for one
    process).
    """

    device: Total
    uuid: str | None
    matmul_tflops: Amount
    copy_gb_per_s: Amount
    all_reduce_gb_per_s: Amount | None


class Roofs(Record):
    """What one GPU achieves compared with the peaks that the cell's probe measured.

    FLOPs are those of the model's forward and backward pass, by ``measurement/model_cost.py``.
    ``peak_share_pct`` is the model FLOPs utilisation (MFU) against the measured peak.
    ``hardware_share_pct`` (HFU) also counts what activation checkpointing computes again.

    Bytes are those that operations read and write if nothing is cached or fused; null if not all
    operations could be observed (DataParallel's replicas run in threads, compiled graphs do not run
    in an observed step). If the FLOPs of a user's own model cannot be counted, ``why_uncounted``
    says why, and the figures that need them are null.
    """

    flops_per_item: Total | None = _renamed("flops_per_item", "flops_per_image")
    hardware_flops_per_item: Total | None = None
    why_uncounted: str | None = None
    bytes_per_item: Total | None = _renamed("bytes_per_item", "bytes_per_image")
    peak_tflops: Amount
    bandwidth_gb_per_s: Amount
    achieved_tflops: Amount | None
    peak_share_pct: Amount | None
    hardware_share_pct: Amount | None = None
    achieved_gb_per_s: Amount | None
    bandwidth_share_pct: Amount | None
    compute_roof_items_per_s: Amount | None = _renamed(
        "compute_roof_items_per_s", "compute_roof_images_per_s"
    )
    memory_roof_items_per_s: Amount | None = _renamed(
        "memory_roof_items_per_s", "memory_roof_images_per_s"
    )
    bound: Bound | None
    statement: str | None


class StepSplit(Record):
    """How one rank's step time splits up, ms: mean of a few profiled steps outside the window.

    Compute, exposed communication, data and host gaps add up to the step.
    ``communication_ms`` includes communication that overlaps with compute.
    """

    rank: Total
    steps: Total
    step_ms: Positive
    compute_ms: Amount
    exposed_communication_ms: Amount
    data_ms: Amount
    host_gap_ms: Amount
    communication_ms: Amount


class HostUse(Record):
    """CPU use of one rank during the steady window.

    Launching threads give the device its work: the rank's main thread, and autograd's. Threads of
    DataParallel's replicas count only for the process. 100 % is one core that is always busy.
    Pressure is the share of the window in which some task of the machine waited for a CPU (Linux
    PSI); null if the kernel does not count it.

    ``cpus`` is the number of CPUs the rank may run on, ``cpu_list`` names them. ``cpu_quota`` is
    the limit of its control groups (cgroup v1 and v2) on CPU time, in CPUs. ``cpu_periods`` counts
    the quota's periods in the window, ``cpu_periods_throttled`` those in which it ran out. Without
    a quota, ``cpu_quota`` is null and the periods are 0; if it is unknown, all three are null.
    """

    rank: Total
    launching_cpu_pct: Amount
    process_cpu_pct: Amount
    involuntary_switches_per_s: Amount
    cpu_pressure_pct: Amount | None
    cpus: Total | None = None
    cpu_list: str | None = None
    cpu_quota: Amount | None = None
    cpu_periods: Total | None = None
    cpu_periods_throttled: Total | None = None
    torch_threads: Total | None = None


class ModelState(Record):
    """Bytes of the model's state on one rank: parameters, gradients when the optimizer steps, and
    the optimizer's state with its own copies of parameters.

    ``host_bytes`` is the part of all three that is in host memory while the rank computes on a GPU.
    """

    parameters_bytes: Total
    gradients_bytes: Total
    optimizer_state_bytes: Total
    host_bytes: Total = 0

    @property
    def device_bytes(self) -> int:
        """The part that is in the memory of the device that computes."""
        everything = self.parameters_bytes + self.gradients_bytes + self.optimizer_state_bytes
        return everything - self.host_bytes


class Memory(Record):
    """The model's state on each rank, and what ZeRO's formulas predict for a rank.

    ``at_rest_bytes`` is all memory that torch's allocator has allocated on a rank's device between
    two steps: the state, the samples, and the framework's own buffers; null on a CPU.
    """

    parameters: Total
    zero_stage: Total
    predicted: ModelState
    measured: list[ModelState]
    at_rest_bytes: list[Total | None]


class Device(Record):
    """One GPU, or the cell's processes on a node without GPUs, over the steady window.

    ``torch_allocated_growth_bytes`` is memory allocated but not freed during the window, while the
    garbage collector is off. ``torch_allocation_retries`` counts how often an allocation failed,
    and torch freed its cached memory and tried again.

    Energy is that of the device alone; ``energy_refused`` says why there is none. Idle figures are
    from before the cell began. Net energy is the energy minus the idle consumption.
    ``longest_gap_pct`` is the longest stretch without a sample, as a share of the window.
    """

    index: Total
    node: str
    kind: Literal["gpu", "cpu"]
    name: str
    uuid: str | None = None
    utilization_pct: Amount | None = None
    memory_used_peak_bytes: Total | None = None
    memory_total_bytes: Total | None = None
    torch_allocated_peak_bytes: Total | None = None
    torch_reserved_peak_bytes: Total | None = None
    torch_allocated_growth_bytes: int | None = None
    torch_allocation_retries: Total | None = None
    power_mean_w: Amount | None = None
    power_limit_w: Amount | None = None
    power_limit_default_w: Amount | None = None
    energy_counter_j: Amount | None = None
    energy_integral_j: Amount | None = None
    energy_disagreement_pct: Change | None = None
    energy_net_j: Change | None = None
    energy_ticks: Total | None = None
    energy_refused: str | None = None
    idle_power_w: Amount | None = None
    idle_memory_bytes: Total | None = None
    idle_utilization_pct: Amount | None = None
    sm_clock_mean_mhz: Amount | None = None
    sm_clock_min_mhz: Amount | None = None
    sm_clock_limit_mhz: Amount | None = None
    temperature_max_c: Change | None = None
    throttle_reasons: list[str] | None = None
    throttled_pct: dict[str, Amount] | None = None
    ecc_errors: Total | None = None
    foreign_processes: Total | None = None
    samples: Total = 0
    longest_gap_pct: Amount | None = None

    @property
    def title(self) -> str:
        """Its name in the report."""
        return f"{'GPU' if self.kind == 'gpu' else 'device'} {self.index} of {self.node}"


class Efficiency(Record):
    """Energy, power, utilisation and memory of all the cell's devices, over the steady window.

    Energy is that of the devices alone: gross, and net of their idle consumption. If a device's
    energy counter contradicts the integral of its power, ``energy_refused`` says so, and the cell
    has neither energy nor power; each device still records both of its values.
    """

    energy_per_item_j: Amount | None = _renamed("energy_per_item_j", "energy_per_image_j", None)
    energy_per_epoch_j: Amount | None = None
    energy_net_per_item_j: Change | None = _renamed(
        "energy_net_per_item_j", "energy_net_per_image_j", None
    )
    energy_disagreement_pct: Change | None = None
    energy_refused: str | None = None
    power_w: Amount | None = None
    utilization_pct: Amount | None = None
    memory_peak_bytes: Total | None = None


@with_config(ConfigDict(extra="allow"))
class Environment(TypedDict, total=False):
    """What a cell ran on; ``topology`` says how each pair of GPUs is connected."""

    host: str
    kernel: str
    cpu: str | None
    cpu_cores: Total | None
    memory_total_bytes: Total
    versions: dict[str, str | None]
    variables: dict[str, str]
    backend: str
    torch_cuda: str | None
    torch_threads: Total
    cudnn: Total | None
    cudnn_benchmark: bool
    nccl: str
    gpu: str
    driver: str
    topology: list[dict[str, Any]]


@with_config(ConfigDict(extra="allow"))
class Provenance(TypedDict, total=False):
    """Which code ran, and how and when it was started; null if unknown."""

    git_commit: str | None
    git_dirty: bool | None
    git_diff_sha256: str | None
    locks: dict[str, str]
    command: list[str]
    folder: str
    started_at: str
    ended_at: str
    planned_place: Total | None
    merged_from: dict[str, str]


class OtherAttempt(Record):
    """The other of a cell's two measurements; a device fault made the cell run again.

    ``attempt`` is 1 if the second measurement counts, 2 if the first does.
    """

    attempt: Literal[1, 2]
    status: Status
    device_faults: list[str]


class SlurmJob(Record):
    """The Slurm job in which a cell ran; the cells of a group share one."""

    job_id: str
    partition: str | None
    nodes: list[str]


class Metrics(Record):
    """The result of one cell.

    ``device_faults`` are the reasons that exclude it, ``labels`` what explains its figures and
    excludes nothing; each is ``<rule>: <reason>``. ``unknown`` names each rule that could not be
    evaluated, and says why.
    """

    schema_version: Literal[1] = 1
    cell: Cell
    cell_sha256: str
    code_sha256: str
    status: Status
    failure: Failure | None = None
    device_faults: list[str] = []
    labels: list[str] = []
    unknown: list[str] = []
    other_attempt: OtherAttempt | None = None
    loss: Loss | None = None
    accuracy: Accuracy | None = None
    time_s: Times | None = None
    windows: Windows | None = None
    throughput: Throughput | None = None
    probes: list[Probe] = []
    roofs: Roofs | None = None
    profile: list[StepSplit] = []
    host: list[HostUse] = []
    memory: Memory | None = None
    devices: list[Device] = []
    efficiency: Efficiency | None = None
    effective_config: EffectiveConfig | None = None
    slurm: SlurmJob | None = None
    environment: Environment = {}
    provenance: Provenance = {}


class Deviation(Record):
    """Largest relative differences from the oracle over the gate's steps."""

    loss: MaybeInfinite
    first_update: MaybeInfinite
    final_weights: MaybeInfinite


class PrecisionParity(Record):
    """The gate in one precision."""

    precision: str
    deviation: Deviation
    noise_floor: Deviation
    tolerance: Deviation
    passed: bool
    reason: str | None = None


class RealModelParity(Record):
    """First steps of the real model: largest relative difference in a loss or an update's norm."""

    precision: str
    deviation: MaybeInfinite
    noise_floor: MaybeInfinite
    tolerance: MaybeInfinite
    passed: bool


class Parity(Record):
    """Whether a strategy trains the oracle's model on its cells' device and in their precision."""

    schema_version: Literal[1] = 1
    workload: Name
    strategy: Name
    ranks: Count
    device: str
    backend: str | None
    shared_device: bool = False
    status: Literal["passed", "failed", "unsupported", "error"]
    reason: str | None = None
    surrogate: str | None = None
    steps: Total | None = None
    losses: list[MaybeInfinite] = []
    oracle_losses: list[MaybeInfinite] = []
    precisions: list[PrecisionParity] = []
    real_model: RealModelParity | None = None
    case_sha256: str
    code_sha256: str


def read_metrics(path: Path) -> Metrics:
    """Read and validate a metrics.json.

    Raises:
        UserError: naming the path, if the file is not JSON, has another schema version, does not
            match the schema, or its cell does not match its checksum.
    """
    raw = _read_json(path)
    metrics = _validate(path, raw, Metrics)
    if recorded_fingerprint(metrics.cell, raw["cell"]) != metrics.cell_sha256:
        raise UserError(
            f"{path}: cell_sha256 is not the checksum of its cell, so the file was edited; "
            "delete it to run it again"
        )
    return metrics


def read_parity(path: Path) -> Parity:
    """Read and validate a result of the parity gate; raises UserError as read_metrics does."""
    return read_record(path, Parity)


def read_record(path: Path, model: type[T]) -> T:
    """Read and validate a result of this model; raises UserError as read_metrics does."""
    return _validate(path, _read_json(path), model)


def _read_json(path: Path) -> dict[str, Any]:
    """Read the mapping in a file and check its schema version."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        # JSON can contain lone surrogates, which cannot be encoded when we write text.
        json.dumps(raw, ensure_ascii=False).encode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); delete it to run it again"
        ) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    # True == 1 in Python.
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise UserError(
            f"{path}: schema version {version!r}, this shardmark reads {SCHEMA_VERSION}; "
            "delete it to run it again"
        )
    if _is_deeper(raw, DEEPEST):
        raise UserError(
            f"{path}: is nested more than {DEEPEST} levels deep; delete it to run it again"
        )
    return {name: _printable(value) if name != "cell" else value for name, value in raw.items()}


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _printable(value: Any) -> Any:
    """Make all texts in a value safe to print. Not for a cell, whose exact texts define it."""
    if isinstance(value, str):
        return for_terminal(value)
    if isinstance(value, list):
        return [_printable(one) for one in value]
    if isinstance(value, dict):
        return {for_terminal(name): _printable(one) for name, one in value.items()}
    return value


def _validate(path: Path, raw: dict[str, Any], model: type[T]) -> T:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; delete it to run it again") from None
