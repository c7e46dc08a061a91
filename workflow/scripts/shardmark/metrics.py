"""metrics.json: one file for every outcome of a cell, and for the parity gate's.

Units are in the names. What was not measured is null, never 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from shardmark.cells import Cell
from shardmark.config import Section
from shardmark.effective_config import EffectiveConfig
from shardmark.errors import UserError

SCHEMA_VERSION = 1
T = TypeVar("T", bound=Section)
Status = Literal["ok", "oom", "timeout", "diverged", "failed", "unsupported"]


class Failure(Section):
    """What ended a cell that is not ok."""

    phase: str | None
    rank: int | None
    exception: str
    log_tail: list[str]

    @classmethod
    def plain(cls, reason: str) -> Failure:
        """A failure that no rank's exception tells of."""
        return cls(phase=None, rank=None, exception=reason, log_tail=[])


class Loss(Section):
    """Mean training loss over all images of an epoch, before each step's update."""

    per_epoch: list[float]
    final: float | None


class Accuracy(Section):
    """Share of the test images classified rightly, with replica 0's batch-norm statistics."""

    per_epoch: list[float]
    final: float | None


class Times(Section):
    """Wall-clock seconds on rank 0, from the launch to the end of the last process.

    They share out ``total_s`` without overlap, but for three that are parts of others: the first
    step of the training, and the warm-up and the steady state of the measurement.
    """

    imports_s: float | None = None
    process_group_s: float | None = None
    probe_s: float | None = None
    data_s: float | None = None
    build_s: float | None = None
    training_s: float | None = None
    first_step_s: float | None = None
    evaluation_s: float | None = None
    inspection_s: float | None = None
    measurement_s: float | None = None
    warmup_s: float | None = None
    steady_s: float | None = None
    profile_s: float | None = None
    shutdown_s: float | None = None
    other_s: float | None = None
    total_s: float | None = None
    epochs_s: list[float] = []


class Windows(Section):
    """Begin and end of the steady window and of each evaluation on rank 0, s on the monotonic clock
    of its node, which telemetry.csv has too.
    """

    steady_monotonic_s: tuple[float, float]
    evaluations_monotonic_s: list[tuple[float, float]]


class Throughput(Section):
    """Steady state: uninterrupted steps after the training, the slowest rank's.

    ``drift_pct`` is how much slower the last third of the steps is than the first; null where there
    are too few steps to say. ``gc_collections`` counts what Python's garbage collector did in the
    window, on all ranks together.
    """

    images_per_s: float
    images_per_s_per_gpu: float
    step_ms_mean: float
    step_ms_p50: float
    step_ms_p90: float
    step_ms_p99: float
    steps: int
    window_s: float
    window_complete: bool
    warmup_steps: int
    warmup_converged: bool
    slowest_rank: int
    drift_pct: float | None = None
    gc_collections: int | None = None


class Probe(Section):
    """What one device did in a short probe before the cell trained.

    A dense matrix product in the workload's precision, a copy within the device (bytes read and
    written), and an all-reduce of the whole cell (bus bandwidth); null for one process.
    """

    device: int
    uuid: str | None
    matmul_tflops: float
    copy_gb_per_s: float
    all_reduce_gb_per_s: float | None


class Roofs(Section):
    """What one GPU achieves against the peaks that its cell's probe measured.

    Bytes are those that operations read and write if nothing is cached or fused; null where not all
    operations could be seen (DataParallel's replicas run in threads).
    """

    flops_per_image: int
    bytes_per_image: int | None
    peak_tflops: float
    bandwidth_gb_per_s: float
    achieved_tflops: float
    peak_share_pct: float
    achieved_gb_per_s: float | None
    bandwidth_share_pct: float | None
    compute_roof_images_per_s: float
    memory_roof_images_per_s: float | None
    bound: Literal["compute", "memory"] | None
    statement: str | None


class StepSplit(Section):
    """Where one rank's step goes, ms: mean of a few profiled steps, none of them timed.

    Compute, exposed communication, data and host gaps add up to the step. Communication is all of
    it, what compute hides included.
    """

    rank: int
    steps: int
    step_ms: float
    compute_ms: float
    exposed_communication_ms: float
    data_ms: float
    host_gap_ms: float
    communication_ms: float


class HostUse(Section):
    """What one rank's host did during the steady window.

    Launching threads give the device its work: the rank's own, and autograd's. The threads of
    DataParallel's replicas count only in the process. 100 % is one core that is always busy.
    Pressure is the share of the window in which some task of the machine waited for a CPU (Linux
    PSI); null where the kernel does not count it.

    ``cpus`` is how many CPUs the rank may run on, ``cpu_list`` which. ``cpu_quota`` is the limit of
    its control groups (cgroup v1 and v2) on CPU time, in CPUs; ``cpu_periods`` are the quota's
    periods in the window, ``cpu_periods_throttled`` those in which it ran out. Without a quota it
    is null and the periods are 0; where nobody can tell, all three are null.
    """

    rank: int
    launching_cpu_pct: float
    process_cpu_pct: float
    involuntary_switches_per_s: float
    cpu_pressure_pct: float | None
    cpus: int | None = None
    cpu_list: str | None = None
    cpu_quota: float | None = None
    cpu_periods: int | None = None
    cpu_periods_throttled: int | None = None
    torch_threads: int | None = None


class ModelState(Section):
    """Bytes of the model's state on one rank: parameters, gradients when the optimizer steps, and
    the optimizer's state with its own copies of parameters.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_state_bytes: int


class Memory(Section):
    """The model's state as ranks hold it, beside what ZeRO's formulas predict of a rank.

    ``at_rest_bytes`` is all that torch's allocator has given out on a rank's device between two
    steps: the state, the images, and whatever buffers a framework keeps; null on a CPU.
    """

    parameters: int
    zero_stage: int
    predicted: ModelState
    measured: list[ModelState]
    at_rest_bytes: list[int | None]


class Device(Section):
    """One GPU, or the processes of the cell on a node without one, over the steady window.

    ``torch_allocated_growth_bytes`` is memory allocated during the window and not freed; the
    garbage collector is off then.

    Energy is of the device alone; ``energy_refused`` says why there is none. Net is less what the
    device took before the cell began. Idle figures are from then. ``longest_gap_pct`` is the
    longest stretch of the window without a sample, as a share of the window.
    """

    index: int
    node: str
    kind: Literal["gpu", "cpu"]
    name: str
    uuid: str | None = None
    utilization_pct: float | None = None
    memory_used_peak_bytes: int | None = None
    memory_total_bytes: int | None = None
    torch_allocated_peak_bytes: int | None = None
    torch_reserved_peak_bytes: int | None = None
    torch_allocated_growth_bytes: int | None = None
    power_mean_w: float | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    energy_counter_j: float | None = None
    energy_integral_j: float | None = None
    energy_disagreement_pct: float | None = None
    energy_net_j: float | None = None
    energy_ticks: int | None = None
    energy_refused: str | None = None
    idle_power_w: float | None = None
    idle_memory_bytes: int | None = None
    idle_utilization_pct: float | None = None
    sm_clock_mean_mhz: float | None = None
    sm_clock_min_mhz: float | None = None
    sm_clock_limit_mhz: float | None = None
    temperature_max_c: float | None = None
    throttle_reasons: list[str] | None = None
    throttled_pct: dict[str, float] | None = None
    ecc_errors: int | None = None
    foreign_processes: int | None = None
    samples: int = 0
    longest_gap_pct: float | None = None

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return f"{'GPU' if self.kind == 'gpu' else 'device'} {self.index} of {self.node}"


class Efficiency(Section):
    """Figures of the whole cell, from all its devices, over the steady window.

    Energy is of the devices alone: gross, and net of what they take when idle. Where a device's
    energy counter and the integral of its power contradict each other, ``energy_refused`` says so,
    and the cell has neither energy nor power; each device keeps both of its own.
    """

    energy_per_image_j: float | None = None
    energy_per_epoch_j: float | None = None
    energy_net_per_image_j: float | None = None
    energy_disagreement_pct: float | None = None
    energy_refused: str | None = None
    power_w: float | None = None
    utilization_pct: float | None = None
    memory_peak_bytes: int | None = None


class SlurmJob(Section):
    """The Slurm job in which a cell ran; the cells of a group share one."""

    job_id: str
    partition: str | None
    nodes: list[str]


class Metrics(Section):
    """The result of one cell.

    ``unknown`` names each rule of validity and each label that could not be checked, and says why.
    A valid cell is valid by the other rules.
    """

    schema_version: Literal[1] = 1
    cell: Cell
    cell_sha256: str
    code_sha256: str
    status: Status
    failure: Failure | None = None
    validity: Literal["valid", "suspect"] = "valid"
    validity_reasons: list[str] = []
    unknown: list[str] = []
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
    environment: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class Deviation(Section):
    """Largest relative differences from the oracle over the gate's steps."""

    loss: float
    first_update: float
    final_weights: float


class PrecisionParity(Section):
    """The gate in one precision."""

    precision: str
    deviation: Deviation
    noise_floor: Deviation
    tolerance: Deviation
    passed: bool
    reason: str | None = None


class RealModelParity(Section):
    """The real model's first steps: largest relative difference of a loss or the update's norm."""

    precision: str
    deviation: float
    noise_floor: float
    tolerance: float
    passed: bool


class Parity(Section):
    """Whether a strategy trains the oracle's model, on the device and precision of its cells."""

    schema_version: Literal[1] = 1
    workload: str
    strategy: str
    ranks: int
    device: str
    backend: str | None
    shared_device: bool = False
    status: Literal["passed", "failed", "unsupported", "error"]
    reason: str | None = None
    surrogate: str | None = None
    steps: int | None = None
    losses: list[float] = []
    oracle_losses: list[float] = []
    precisions: list[PrecisionParity] = []
    real_model: RealModelParity | None = None
    case_sha256: str
    code_sha256: str


def read_metrics(path: Path) -> Metrics:
    """Read and validate a metrics.json.

    Raises:
        UserError: naming the path, if the file is not JSON, is of another schema version, or does
            not fit the schema.
    """
    return _read(path, Metrics)


def read_parity(path: Path) -> Parity:
    """Read and validate a result of the parity gate; errors as in read_metrics."""
    return _read(path, Parity)


def _read(path: Path, model: type[T]) -> T:
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); delete it to run it again"
        ) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {version!r}, this shardmark reads {SCHEMA_VERSION}; "
            "delete it to run it again"
        )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}; delete it to run it again") from None
