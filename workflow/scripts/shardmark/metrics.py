"""metrics.json: the result of a cell, whatever its outcome.

Names contain units. A value that was not measured is null, never 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, with_config
from pydantic.config import JsonDict
from typing_extensions import TypedDict

from shardmark.cells import Cell, recorded_fingerprint
from shardmark.config.values import Amount, Change, MaybeInfinite, Positive, Record, Total
from shardmark.effective_config import EffectiveConfig
from shardmark.errors import UserError
from shardmark.result_files import read_json, validate

Status = Literal["ok", "oom", "timeout", "diverged", "failed", "unsupported"]
Bound = Literal["compute", "memory"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# JSON stores it as a list.
Interval = Annotated[tuple[Change, Change], Field(strict=False)]


def _renamed(
    name: str,
    before: str,
    description: str,
    default: Any = ...,
    empty: JsonDict | None = None,
) -> Any:
    """A field that results from before language models have under another name."""
    return Field(
        default,
        description=description,
        validation_alias=AliasChoices(name, before),
        json_schema_extra=empty,
    )


# When a value is null, besides where the cell did not get that far.
_FEW_STEPS: JsonDict = {"empty": "the window has fewer than 20 steps"}
_ON_CPU: JsonDict = {"empty": "it ran on a CPU"}
_NO_ENERGY: JsonDict = {"empty": "no energy counter could be read (CPUs, short windows)"}
_NO_SAMPLE: JsonDict = {"empty": "no sample fell into the window"}
_NO_PROFILE: JsonDict = {"empty": "measure.profile is false"}
_NOT_COUNTED: JsonDict = {"empty": "it could not be counted"}
_NO_QUOTA_READ: JsonDict = {"empty": "the quota could not be read"}
_ENERGY: JsonDict = {"empty": "there is energy"}


# Files in the folder of a metrics.json that belong to it.
SIDE_FILES = ("steps.csv", "telemetry*.csv")


class Failure(Record):
    """What ended a cell that is not ok."""

    phase: str | None = Field(description="Phase in which the cell failed.")
    rank: Total | None = Field(description="Rank that failed first.")
    exception: str = Field(description="Why the cell is not ok.")
    log_tail: list[str] = Field(description="Last lines of the cell's log.")

    @classmethod
    def plain(cls, reason: str) -> Failure:
        """Return a failure that no rank's exception describes."""
        return cls(phase=None, rank=None, exception=reason, log_tail=[])


class Loss(Record):
    """Mean training loss over all images or tokens of an epoch, before each step's update."""

    per_epoch: list[MaybeInfinite] = Field(description="Loss of each epoch.")
    final: MaybeInfinite | None = Field(description="Mean training loss of the last epoch.")


class Accuracy(Record):
    """Share of test images classified correctly, with replica 0's batch-norm statistics.

    Language models have none.
    """

    per_epoch: list[Share] = Field(description="Accuracy after each epoch.")
    final: Share | None = Field(description="Test accuracy after the last epoch, 0 to 1.")


class Times(Record):
    """Wall-clock seconds on rank 0, from the launch to the end of the last process.

    The values add up to ``total_s``, except for three that are parts of others: the first step
    belongs to the training, and the warm-up and the steady state belong to the measurement.
    """

    imports_s: Amount | None = Field(
        None, description="Time for starting the process and importing its libraries, s."
    )
    process_group_s: Amount | None = Field(
        None, description="Time for joining the process group, s."
    )
    probe_s: Amount | None = Field(None, description="Time of the short probe of the devices, s.")
    data_s: Amount | None = Field(None, description="Time for loading the samples, s.")
    build_s: Amount | None = Field(None, description="Time for building and wrapping the model, s.")
    compilation_s: Amount | None = Field(
        None,
        description="Time of the first step of a compiled model, which compiles it, s; it is no "
        "part of the training, and there is no first_step_s.",
    )
    training_s: Amount | None = Field(
        None, description="Time of all epochs without their evaluations, s."
    )
    first_step_s: Amount | None = Field(
        None, description="Time of the first step, which training_s includes, s."
    )
    evaluation_s: Amount | None = Field(None, description="Time of all evaluations, s.")
    inspection_s: Amount | None = Field(
        None, description="Time of the steps from which the settings are read back, s."
    )
    measurement_s: Amount | None = Field(
        None, description="Time of the warm-up and the steady window, s."
    )
    warmup_s: Amount | None = Field(None, description="Time of the warm-up, s.")
    steady_s: Amount | None = Field(None, description="Time of the steady window, s.")
    profile_s: Amount | None = Field(
        None, description="Time of the profiled steps, s.", json_schema_extra=_NO_PROFILE
    )
    shutdown_s: Change | None = Field(
        None, description="Time from writing the result to the end of the processes, s."
    )
    other_s: Change | None = Field(None, description="Time that belongs to no phase, s.")
    total_s: Amount | None = Field(
        None, description="Time from the launch to the end of the last process, s."
    )
    epochs_s: list[Amount] = Field([], description="Training time of each epoch, s.")


class Windows(Record):
    """When rank 0 measured and evaluated, in seconds on the monotonic clock of its node, which
    telemetry.csv uses too.
    """

    steady_monotonic_s: Interval = Field(description="Begin and end of the steady window, s.")
    evaluations_monotonic_s: list[Interval] = Field(
        description="Begin and end of each evaluation, s."
    )


class Throughput(Record):
    """Steady state: uninterrupted steps after the training, on the slowest rank.

    The window ends when the mean step time is precise enough, or at its longest time.
    """

    unit: str = Field("images", description="What an item is: images, tokens.")
    items_per_s: Positive = _renamed(
        "items_per_s",
        "images_per_s",
        "Throughput of all replicas in the steady window, set by the slowest rank, items/s (see "
        "unit).",
    )
    items_per_s_per_gpu: Positive = _renamed(
        "items_per_s_per_gpu",
        "images_per_s_per_gpu",
        "Throughput of one replica in the steady window, items/s (see unit).",
    )
    step_ms_mean: Positive = Field(
        description="Mean step time of the slowest rank in the steady window, ms."
    )
    step_ms_p50: Positive = Field(
        description="Median step time of the slowest rank in the steady window, ms."
    )
    step_ms_p90: Positive = Field(
        description="90th percentile of the slowest rank's step times in the steady window, ms."
    )
    step_ms_p99: Positive = Field(
        description="99th percentile of the slowest rank's step times in the steady window, ms."
    )
    steps: Total = Field(description="Number of steps in the steady window.")
    window_s: Positive = Field(description="Length of the steady window, s.")
    half_width_pct: Amount | None = Field(
        None,
        description="Half-width of the 95 % confidence interval of the mean step time, from 20 "
        "batch means, as % of that mean.",
        json_schema_extra=_FEW_STEPS,
    )
    warmup_steps: Total = Field(description="Number of warm-up steps before the steady window.")
    warmup_converged: bool = Field(
        description="Whether the step times settled before measure.warmup_max_steps."
    )
    slowest_rank: Total = Field(description="Rank whose steps took longest together.")
    drift_pct: Change | None = Field(
        None,
        description="How much slower the last third of the steady window is than the first, by a "
        "straight line through the batch means, %.",
        json_schema_extra=_FEW_STEPS,
    )
    drift_error_pct: Amount | None = Field(
        None, description="Standard error of drift_pct, %.", json_schema_extra=_FEW_STEPS
    )
    gc_collections: Total | None = Field(
        None,
        description="Number of collections by Python's garbage collector in the steady window, on "
        "all ranks together.",
    )
    compiled_calls: Total | None = Field(
        None,
        description="How often a step after the steady window ran compiled code, on the rank that "
        "did so least.",
        json_schema_extra={"empty": "nothing is to be compiled"},
    )


class Probe(Record):
    """Speed of one device in a short probe before the training."""

    device: Total = Field(description="Index of the device.")
    uuid: str | None = Field(description="Its UUID.", json_schema_extra=_ON_CPU)
    matmul_tflops: Amount = Field(
        description="Speed of a dense matrix product in the workload's precision, TFLOP/s."
    )
    copy_gb_per_s: Amount = Field(
        description="Speed of a copy within the device, bytes read plus written, GB/s."
    )
    all_reduce_gb_per_s: Amount | None = Field(
        description="Bus bandwidth of an all-reduce over the whole cell, GB/s.",
        json_schema_extra={"empty": "the cell is one process"},
    )


class Roofs(Record):
    """What one GPU achieves compared with the peaks that the cell's probe measured.

    FLOPs are those of the model's forward and backward pass, by ``measurement/model_cost.py``.
    Bytes are those that operations read and write if nothing is cached or fused. Not all operations
    can be observed: DataParallel's replicas run in threads, and compiled graphs do not run in an
    observed step.
    """

    flops_per_item: Total | None = _renamed(
        "flops_per_item", "flops_per_image", "Model FLOPs of an item.", empty=_NOT_COUNTED
    )
    hardware_flops_per_item: Total | None = Field(
        None,
        description="The same with the FLOPs that activation checkpointing computes again.",
        json_schema_extra=_NOT_COUNTED,
    )
    why_uncounted: str | None = Field(
        None,
        description="Why the FLOPs of a user's own model could not be counted.",
        json_schema_extra={"empty": "they were counted"},
    )
    bytes_per_item: Total | None = _renamed(
        "bytes_per_item",
        "bytes_per_image",
        "Bytes that the operations on an item read and write.",
        empty=_NOT_COUNTED,
    )
    peak_tflops: Amount = Field(
        description="Peak of the slowest GPU that the probe measured, TFLOP/s."
    )
    bandwidth_gb_per_s: Amount = Field(description="Bandwidth that the probe measured, GB/s.")
    achieved_tflops: Amount | None = Field(
        description="Model FLOPs per second of a GPU, TFLOP/s.", json_schema_extra=_NOT_COUNTED
    )
    peak_share_pct: Amount | None = Field(
        description="Model FLOPs per second of a GPU, as a share of the peak that the probe "
        "measured (MFU), %.",
        json_schema_extra=_NOT_COUNTED,
    )
    hardware_share_pct: Amount | None = Field(
        None,
        description="The same with the FLOPs that activation checkpointing computes again (HFU), "
        "%.",
        json_schema_extra=_NOT_COUNTED,
    )
    achieved_gb_per_s: Amount | None = Field(
        description="Bytes per second of a GPU, GB/s.", json_schema_extra=_NOT_COUNTED
    )
    bandwidth_share_pct: Amount | None = Field(
        description="Bytes per second of a GPU, as a share of the bandwidth that the probe "
        "measured, %.",
        json_schema_extra=_NOT_COUNTED,
    )
    compute_roof_items_per_s: Amount | None = _renamed(
        "compute_roof_items_per_s",
        "compute_roof_images_per_s",
        "Throughput of a GPU if compute at the measured peak were the only limit, items/s.",
        empty=_NOT_COUNTED,
    )
    memory_roof_items_per_s: Amount | None = _renamed(
        "memory_roof_items_per_s",
        "memory_roof_images_per_s",
        "Throughput of a GPU if the measured bandwidth were the only limit, items/s.",
        empty=_NOT_COUNTED,
    )
    bound: Bound | None = Field(
        description="Which of the two is lower.", json_schema_extra=_NOT_COUNTED
    )
    statement: str | None = Field(
        description="The comparison in words.", json_schema_extra=_NOT_COUNTED
    )


class StepSplit(Record):
    """How one rank's step time splits up: mean of a few profiled steps outside the window.

    Compute, exposed communication, data and host gaps add up to the step.
    """

    rank: Total = Field(description="The rank.")
    steps: Total = Field(description="Number of profiled steps.")
    step_ms: Positive = Field(description="The step, ms.")
    compute_ms: Amount = Field(description="Part in which the device computes, ms.")
    exposed_communication_ms: Amount = Field(
        description="Part in which the device communicates and computes nothing, ms."
    )
    data_ms: Amount = Field(
        description="Part in which the device makes the batch or waits for it, ms."
    )
    host_gap_ms: Amount = Field(description="Part in which the device is idle, ms.")
    communication_ms: Amount = Field(
        description="All communication, including what overlaps with compute, ms."
    )


class HostUse(Record):
    """CPU use of one rank during the steady window.

    Launching threads give the device its work: the rank's main thread, and autograd's. Threads of
    DataParallel's replicas count only for the process. 100 % is one core that is always busy.
    """

    rank: Total = Field(description="The rank.")
    launching_cpu_pct: Amount = Field(
        description="CPU time per wall-clock time of the threads that launch the device's work, %."
    )
    process_cpu_pct: Amount = Field(
        description="CPU time per wall-clock time of all threads of the process, %."
    )
    involuntary_switches_per_s: Amount = Field(
        description="How many times per second the kernel took the CPU away from the launching "
        "threads."
    )
    cpu_pressure_pct: Amount | None = Field(
        description="Share of the window in which some task of the machine waited for a CPU (Linux "
        "PSI), %.",
        json_schema_extra={"empty": "the kernel does not count it"},
    )
    cpus: Total | None = Field(None, description="Number of CPUs that the rank may run on.")
    cpu_list: str | None = Field(None, description="These CPUs.")
    cpu_quota: Amount | None = Field(
        None,
        description="CPU time per wall-clock time that the rank's control groups (cgroup v1 and "
        "v2) allow, in CPUs.",
        json_schema_extra={"empty": "there is no quota, or it could not be read"},
    )
    cpu_periods: Total | None = Field(
        None,
        description="Periods of the quota in the window; 0 without a quota.",
        json_schema_extra=_NO_QUOTA_READ,
    )
    cpu_periods_throttled: Total | None = Field(
        None,
        description="Those in which the quota ran out.",
        json_schema_extra=_NO_QUOTA_READ,
    )
    torch_threads: Total | None = Field(None, description="Number of torch's CPU threads.")


class ModelState(Record):
    """Bytes of the model's state on one rank."""

    parameters_bytes: Total = Field(description="Parameters, bytes.")
    gradients_bytes: Total = Field(description="Gradients when the optimizer steps, bytes.")
    optimizer_state_bytes: Total = Field(
        description="The optimizer's state with its own copies of parameters, bytes."
    )
    host_bytes: Total = Field(
        0,
        description="The part of all three that is in host memory while the rank computes on a "
        "GPU, bytes.",
    )

    @property
    def device_bytes(self) -> int:
        """The part that is in the memory of the device that computes."""
        everything = self.parameters_bytes + self.gradients_bytes + self.optimizer_state_bytes
        return everything - self.host_bytes


class Memory(Record):
    """The model's state on each rank, and what ZeRO's formulas predict for a rank."""

    parameters: Total = Field(description="Number of the model's parameters.")
    zero_stage: Total = Field(description="Stage of ZeRO that shards the state; 0 for none.")
    predicted: ModelState = Field(description="What ZeRO's formulas predict.")
    measured: list[ModelState] = Field(description="The state on each rank.")
    at_rest_bytes: list[Total | None] = Field(
        description="All memory that torch's allocator has allocated on each rank's device between "
        "two steps, bytes: the state, the samples, and the framework's own buffers; null on a CPU."
    )


class Device(Record):
    """One GPU, or the cell's processes on a node without GPUs, over the steady window.

    Energy is that of the device alone. Idle figures are from before the cell began.
    """

    index: Total = Field(description="Index of the device on its node.")
    node: str = Field(description="Name of its node.")
    kind: Literal["gpu", "cpu"] = Field(description="gpu, or cpu for the cell's processes.")
    name: str = Field(description="Name of the model of the device.")
    uuid: str | None = Field(None, description="UUID of the GPU.", json_schema_extra=_ON_CPU)
    utilization_pct: Amount | None = Field(
        None, description="Mean utilisation, %: NVML's on a GPU, the share of all cores on a CPU."
    )
    memory_used_peak_bytes: Total | None = Field(
        None,
        description="Peak memory, bytes: NVML's memory in use on a GPU, the resident memory of the "
        "cell's processes on a CPU.",
    )
    memory_total_bytes: Total | None = Field(None, description="Memory of the device, bytes.")
    torch_allocated_peak_bytes: Total | None = Field(
        None,
        description="Peak of the memory that torch allocated, bytes.",
        json_schema_extra=_ON_CPU,
    )
    torch_reserved_peak_bytes: Total | None = Field(
        None,
        description="Peak of the memory that torch's allocator reserved, bytes.",
        json_schema_extra=_ON_CPU,
    )
    torch_allocated_growth_bytes: int | None = Field(
        None,
        description="Memory allocated but not freed during the window, while the garbage collector "
        "is off, bytes.",
        json_schema_extra=_ON_CPU,
    )
    torch_allocation_retries: Total | None = Field(
        None,
        description="How often an allocation failed, and torch freed its cached memory and tried "
        "again.",
        json_schema_extra=_ON_CPU,
    )
    power_mean_w: Amount | None = Field(None, description="Mean power, W.")
    power_limit_w: Amount | None = Field(None, description="Limit of the power, W.")
    power_limit_default_w: Amount | None = Field(None, description="Its default, W.")
    energy_counter_j: Amount | None = Field(None, description="Energy by the counter, J.")
    energy_integral_j: Amount | None = Field(None, description="Integral of the sampled power, J.")
    energy_disagreement_pct: Change | None = Field(
        None, description="Difference of the integral from the counter, as % of the counter."
    )
    energy_net_j: Change | None = Field(None, description="Energy minus the idle consumption, J.")
    energy_ticks: Total | None = Field(
        None, description="How often the counter changed in the window."
    )
    energy_refused: str | None = Field(
        None, description="Why there is no energy.", json_schema_extra=_ENERGY
    )
    idle_power_w: Amount | None = Field(None, description="Power when idle, W.")
    idle_memory_bytes: Total | None = Field(None, description="Memory in use when idle, bytes.")
    idle_utilization_pct: Amount | None = Field(None, description="Utilisation when idle, %.")
    sm_clock_mean_mhz: Amount | None = Field(
        None, description="Mean clock of the multiprocessors, MHz."
    )
    sm_clock_min_mhz: Amount | None = Field(None, description="The lowest, MHz.")
    sm_clock_limit_mhz: Amount | None = Field(None, description="Highest that is possible, MHz.")
    temperature_max_c: Change | None = Field(None, description="Highest temperature, °C.")
    throttle_reasons: list[str] | None = Field(
        None, description="NVML's reasons for which the clocks were lowered."
    )
    throttled_pct: dict[str, Amount] | None = Field(
        None, description="By reason, the share of the samples in which it held, %."
    )
    ecc_errors: Total | None = Field(
        None, description="Number of uncorrected memory errors while the device was sampled."
    )
    foreign_processes: Total | None = Field(
        None, description="Most processes at once on the device that are not the cell's."
    )
    samples: Total = Field(0, description="Number of samples in the window.")
    longest_gap_pct: Amount | None = Field(
        None, description="Longest stretch without a sample, as a share of the window, %."
    )

    @property
    def title(self) -> str:
        """Its name in the report."""
        return f"{'GPU' if self.kind == 'gpu' else 'device'} {self.index} of {self.node}"


class Efficiency(Record):
    """Energy, power, utilisation and memory of all the cell's devices, over the steady window.

    Energy is that of the devices alone: gross, and net of their idle consumption. If a device's
    energy counter contradicts the integral of its power, the cell has neither energy nor power;
    each device still records both of its values.
    """

    energy_per_item_j: Amount | None = _renamed(
        "energy_per_item_j",
        "energy_per_image_j",
        "Energy of all devices per item (see unit), by their energy counters, J.",
        None,
        _NO_ENERGY,
    )
    energy_per_epoch_j: Amount | None = Field(
        None,
        description="Energy of all devices for the steps of one epoch, J.",
        json_schema_extra=_NO_ENERGY,
    )
    energy_net_per_item_j: Change | None = _renamed(
        "energy_net_per_item_j",
        "energy_net_per_image_j",
        "Energy of all devices per item (see unit), less their idle energy, J.",
        None,
        _NO_ENERGY,
    )
    energy_disagreement_pct: Change | None = Field(
        None,
        description="Difference of the integral of sampled power from the energy counter, as % of "
        "the counter.",
        json_schema_extra=_NO_ENERGY,
    )
    energy_refused: str | None = Field(
        None, description="Why there is no energy.", json_schema_extra=_ENERGY
    )
    power_w: Amount | None = Field(
        None,
        description="Sum of the mean powers of all devices, W.",
        json_schema_extra=_NO_ENERGY,
    )
    utilization_pct: Amount | None = Field(
        None,
        description="Mean utilisation of all devices in the steady window, %: NVML's on a GPU, the "
        "share of all cores on a CPU.",
        json_schema_extra=_NO_SAMPLE,
    )
    memory_peak_bytes: Total | None = Field(
        None,
        description="Peak memory of the fullest device in the steady window, bytes: NVML's memory "
        "in use on a GPU, the resident memory of the cell's processes on a CPU.",
        json_schema_extra=_NO_SAMPLE,
    )


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
    """The other of a cell's two measurements; a device fault made the cell run again."""

    attempt: Literal[1, 2] = Field(
        description="1 if the second measurement counts, 2 if the first does."
    )
    status: Status = Field(description="Outcome of the other one.")
    device_faults: list[str] = Field(description="Its device faults.")


class SlurmJob(Record):
    """The Slurm job in which a cell ran; the cells of a group share one."""

    job_id: str = Field(description="Number of the job.")
    partition: str | None = Field(description="Its partition.")
    nodes: list[str] = Field(description="Slurm's names of its nodes.")


class Metrics(Record):
    """The result of one cell."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    cell: Cell = Field(description="Definition of the cell.")
    cell_sha256: str = Field(description="Checksum of the cell's definition.")
    code_sha256: str = Field(description="Checksum of the code that ran.")
    status: Status = Field(
        description="Outcome of the run: ok, oom, timeout, diverged, failed or unsupported."
    )
    failure: Failure | None = Field(
        None,
        description="What ended the cell.",
        json_schema_extra={"empty": "the cell is ok"},
    )
    device_faults: list[str] = Field(
        [], description="Reasons that exclude the cell, each as `<rule>: <reason>`."
    )
    labels: list[str] = Field(
        [],
        description="What explains the cell's figures without excluding it, each as "
        "`<rule>: <reason>`.",
    )
    unknown: list[str] = Field([], description="Each rule that could not be evaluated, and why.")
    other_attempt: OtherAttempt | None = Field(
        None,
        description="The other measurement of the cell.",
        json_schema_extra={"empty": "it was measured once"},
    )
    loss: Loss | None = Field(None, description="Training loss.")
    accuracy: Accuracy | None = Field(
        None,
        description="Test accuracy.",
        json_schema_extra={"empty": "the workload has none"},
    )
    time_s: Times | None = Field(None, description="Time of each phase, s.")
    windows: Windows | None = Field(None, description="When the cell was measured.")
    throughput: Throughput | None = Field(None, description="The steady state.")
    probes: list[Probe] = Field([], description="Speed of each device.")
    roofs: Roofs | None = Field(None, description="The speed compared with the devices' peaks.")
    profile: list[StepSplit] = Field([], description="How the step splits up on each rank.")
    host: list[HostUse] = Field([], description="CPU use of each rank.")
    memory: Memory | None = Field(None, description="The model's state in memory.")
    devices: list[Device] = Field([], description="Each device over the steady window.")
    efficiency: Efficiency | None = Field(None, description="All devices together.")
    effective_config: EffectiveConfig | None = Field(
        None, description="Settings that were read back from the live objects."
    )
    slurm: SlurmJob | None = Field(
        None,
        description="The Slurm job.",
        json_schema_extra={"empty": "the cell did not run in a Slurm job"},
    )
    environment: Environment = Field(Environment(), description="What the cell ran on.")
    provenance: Provenance = Field(
        Provenance(), description="Which code ran, and how it was started."
    )


def read_metrics(path: Path) -> Metrics:
    """Read and validate a metrics.json.

    Raises:
        UserError: naming the path, if the file is not JSON, has another schema version, does not
            match the schema, or its cell does not match its checksum.
    """
    raw = read_json(path)
    metrics = validate(path, raw, Metrics)
    if recorded_fingerprint(metrics.cell, raw["cell"]) != metrics.cell_sha256:
        raise UserError(
            f"{path}: cell_sha256 is not the checksum of its cell, so the file was edited; "
            "delete it to run it again"
        )
    return metrics
