"""metrics.json: the result of a cell, whatever its outcome.

Names contain units. A value that was not measured is null, never 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, with_config
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


def _value(
    description: str, empty: str = "", *, names: tuple[str, ...] = (), default: Any = None
) -> Any:
    """Return the field of a value that may be null.

    Args:
        description: what it is.
        empty: when it is null although the cell got that far; empty for never.
        names: in the file; more than one if older results call it differently.
        default: what it is where the file does not have it.
    """
    return Field(
        default,
        description=description,
        validation_alias=AliasChoices(*names) if names else None,
        json_schema_extra={"empty": empty} if empty else None,
    )


# When a value is null, besides where the cell did not get that far.
_FEW_STEPS = "the window has fewer than 20 steps"
_ON_CPU = "it ran on a CPU"
_NO_ENERGY = "no energy counter could be read (CPUs, short windows)"
_NO_SAMPLE = "no sample fell into the window"
_NO_PROFILE = "measure.profile is false"
_NOT_COUNTED = "it could not be counted"
_NO_QUOTA_READ = "the quota could not be read"
_ENERGY = "there is energy"


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
    """Training loss: the mean over an epoch's steps of the loss per term, before each update."""

    per_epoch: list[MaybeInfinite] = Field(description="Loss of each epoch.")
    final: MaybeInfinite | None = Field(description="Mean training loss of the last epoch.")


class Accuracy(Record):
    """Share of test images classified correctly, with replica 0's batch-norm statistics.

    Language models have ``test_loss`` instead.
    """

    per_epoch: list[Share] = Field(description="Accuracy after each epoch.")
    final: Share | None = Field(description="Test accuracy after the last epoch, 0 to 1.")


class HeldOutLoss(Record):
    """Mean loss per item (token) of the test samples, which no step has trained on.

    The perplexity of a language model is exp of it.
    """

    per_epoch: list[MaybeInfinite] = Field(description="Loss per item after each epoch.")
    final: MaybeInfinite | None = _value(
        "Mean loss per item of the test samples after the last epoch; exp of a loss per token is "
        "the perplexity.",
        "the workload has an accuracy, or no test samples",
        default=...,
    )


class Times(Record):
    """Wall-clock seconds on rank 0, from the launch to the end of the last process.

    The values add up to ``total_s``, except for three that are parts of others: the first step
    belongs to the training, and the warm-up and the steady state belong to the measurement.
    """

    imports_s: Amount | None = _value(
        "Time for starting the process and importing its libraries, s."
    )
    process_group_s: Amount | None = _value("Time for joining the process group, s.")
    probe_s: Amount | None = _value("Time of the short probe of the devices, s.")
    data_s: Amount | None = _value("Time for loading the samples, s.")
    build_s: Amount | None = _value("Time for building and wrapping the model, s.")
    compilation_s: Amount | None = _value(
        "Time of the first step of a compiled model, which compiles it, s; it is no part of the "
        "training, and there is no first_step_s."
    )
    training_s: Amount | None = _value("Time of all epochs without their evaluations, s.")
    first_step_s: Amount | None = _value("Time of the first step, which training_s includes, s.")
    evaluation_s: Amount | None = _value("Time of all evaluations, s.")
    inspection_s: Amount | None = _value(
        "Time of the steps from which the settings are read back, s."
    )
    measurement_s: Amount | None = _value("Time of the warm-up and the steady window, s.")
    warmup_s: Amount | None = _value("Time of the warm-up, s.")
    steady_s: Amount | None = _value("Time of the steady window, s.")
    profile_s: Amount | None = _value("Time of the profiled steps, s.", _NO_PROFILE)
    shutdown_s: Change | None = _value(
        "Time from writing the result to the end of the processes, s."
    )
    other_s: Change | None = _value("Time that belongs to no phase, s.")
    total_s: Amount | None = _value("Time from the launch to the end of the last process, s.")
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
    items_per_s: Positive = _value(
        "Throughput of all replicas in the steady window, set by the slowest rank, items/s (see "
        "unit).",
        names=("items_per_s", "images_per_s"),
        default=...,
    )
    items_per_s_per_gpu: Positive = _value(
        "Throughput of one replica in the steady window, items/s (see unit).",
        names=("items_per_s_per_gpu", "images_per_s_per_gpu"),
        default=...,
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
    half_width_pct: Amount | None = _value(
        "Half-width of the 95 % confidence interval of the mean step time, from 20 batch means, as "
        "% of that mean.",
        _FEW_STEPS,
    )
    warmup_steps: Total = Field(description="Number of warm-up steps before the steady window.")
    warmup_converged: bool = Field(
        description="Whether the step times settled before measure.warmup_max_steps."
    )
    slowest_rank: Total = Field(description="Rank whose steps took longest together.")
    drift_pct: Change | None = _value(
        "How much slower the last third of the steady window is than the first, by a straight line "
        "through the batch means, %.",
        _FEW_STEPS,
    )
    drift_error_pct: Amount | None = _value("Standard error of drift_pct, %.", _FEW_STEPS)
    gc_collections: Total | None = _value(
        "Number of collections by Python's garbage collector in the steady window, on all ranks "
        "together."
    )
    compiled_calls: Total | None = _value(
        "How often a step after the steady window ran compiled code, on the rank that did so "
        "least.",
        "nothing is to be compiled",
    )
    skipped_steps: Total | None = _value(
        "Number of steps in the steady window that changed no weight, because the loss scaler "
        "skipped them; of the rank with most."
    )


class Probe(Record):
    """Speed of one device in a short probe before the training."""

    device: Total = Field(description="Index of the device.")
    uuid: str | None = _value("Its UUID.", _ON_CPU, default=...)
    matmul_tflops: Amount = Field(
        description="Speed of a dense matrix product in the workload's precision, TFLOP/s."
    )
    copy_gb_per_s: Amount = Field(
        description="Speed of a copy within the device, bytes read plus written, GB/s."
    )
    all_reduce_gb_per_s: Amount | None = _value(
        "Bus bandwidth of an all-reduce over the whole cell, GB/s.",
        "the cell is one process",
        default=...,
    )


class Roofs(Record):
    """What one GPU achieves compared with the peaks that the cell's probe measured.

    FLOPs are those of the model's forward and backward pass, by ``measurement/model_cost.py``.
    Bytes are those that operations read and write if nothing is cached or fused. Not all operations
    can be observed: DataParallel's replicas run in threads, and compiled graphs do not run in an
    observed step.
    """

    flops_per_item: Total | None = _value(
        "Model FLOPs of an item.",
        _NOT_COUNTED,
        names=("flops_per_item", "flops_per_image"),
        default=...,
    )
    hardware_flops_per_item: Total | None = _value(
        "The same with the FLOPs that activation checkpointing computes again.", _NOT_COUNTED
    )
    why_uncounted: str | None = _value(
        "Why the FLOPs of a user's own model could not be counted.", "they were counted"
    )
    bytes_per_item: Total | None = _value(
        "Bytes that the operations on an item read and write.",
        _NOT_COUNTED,
        names=("bytes_per_item", "bytes_per_image"),
        default=...,
    )
    peak_tflops: Amount = Field(
        description="Peak of the slowest GPU that the probe measured, TFLOP/s."
    )
    bandwidth_gb_per_s: Amount = Field(description="Bandwidth that the probe measured, GB/s.")
    achieved_tflops: Amount | None = _value(
        "Model FLOPs per second of a GPU, TFLOP/s.", _NOT_COUNTED, default=...
    )
    peak_share_pct: Amount | None = _value(
        "Model FLOPs per second of a GPU, as a share of the peak that the probe measured (MFU), %.",
        _NOT_COUNTED,
        default=...,
    )
    hardware_share_pct: Amount | None = _value(
        "The same with the FLOPs that activation checkpointing computes again (HFU), %.",
        _NOT_COUNTED,
    )
    achieved_gb_per_s: Amount | None = _value(
        "Bytes per second of a GPU, GB/s.", _NOT_COUNTED, default=...
    )
    bandwidth_share_pct: Amount | None = _value(
        "Bytes per second of a GPU, as a share of the bandwidth that the probe measured, %.",
        _NOT_COUNTED,
        default=...,
    )
    compute_roof_items_per_s: Amount | None = _value(
        "Throughput of a GPU if compute at the measured peak were the only limit, items/s.",
        _NOT_COUNTED,
        names=("compute_roof_items_per_s", "compute_roof_images_per_s"),
        default=...,
    )
    memory_roof_items_per_s: Amount | None = _value(
        "Throughput of a GPU if the measured bandwidth were the only limit, items/s.",
        _NOT_COUNTED,
        names=("memory_roof_items_per_s", "memory_roof_images_per_s"),
        default=...,
    )
    bound: Bound | None = _value("Which of the two roofs is lower.", _NOT_COUNTED, default=...)
    statement: str | None = _value("The comparison in words.", _NOT_COUNTED, default=...)


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
        description="CPU time per wall-clock time of the threads that launch the device's work, %. "
        "Not of those that run DataParallel's forward passes on several GPUs; process_cpu_pct has "
        "them."
    )
    process_cpu_pct: Amount = Field(
        description="CPU time per wall-clock time of all threads of the process, %."
    )
    involuntary_switches_per_s: Amount = Field(
        description="How many times per second Linux took the CPU away from the launching threads."
    )
    cpu_pressure_pct: Amount | None = _value(
        "Share of the window in which some task of the machine waited for a CPU (Linux PSI), %.",
        "the kernel does not count it",
        default=...,
    )
    cpus: Total | None = _value("Number of CPUs that the rank may run on.")
    cpu_list: str | None = _value("The CPUs that the rank may run on.")
    cpu_quota: Amount | None = _value(
        "CPU time per wall-clock time that the rank's control groups (cgroup v1 and v2) allow, in "
        "CPUs.",
        "there is no quota, or it could not be read",
    )
    cpu_periods: Total | None = _value(
        "Periods of the quota in the window; 0 without a quota.", _NO_QUOTA_READ
    )
    cpu_periods_throttled: Total | None = _value(
        "Periods of the window in which the quota ran out.", _NO_QUOTA_READ
    )
    torch_threads: Total | None = _value("Number of torch's CPU threads.")


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
    uuid: str | None = _value("UUID of the GPU.", _ON_CPU)
    utilization_pct: Amount | None = _value(
        "Mean utilisation, %: NVML's on a GPU, the share of all cores on a CPU."
    )
    memory_used_peak_bytes: Total | None = _value(
        "Peak memory, bytes: NVML's memory in use on a GPU, the resident memory of the cell's "
        "processes on a CPU."
    )
    memory_total_bytes: Total | None = _value("Memory of the device, bytes.")
    torch_allocated_peak_bytes: Total | None = _value(
        "Peak of the memory that torch allocated, bytes.", _ON_CPU
    )
    torch_reserved_peak_bytes: Total | None = _value(
        "Peak of the memory that torch's allocator reserved, bytes.", _ON_CPU
    )
    torch_allocated_growth_bytes: int | None = _value(
        "Memory allocated but not freed during the window, while the garbage collector is off, "
        "bytes.",
        _ON_CPU,
    )
    torch_allocation_retries: Total | None = _value(
        "How often an allocation failed, and torch freed its cached memory and tried again.",
        _ON_CPU,
    )
    power_mean_w: Amount | None = _value("Mean power, W.")
    power_limit_w: Amount | None = _value("Power limit, W.")
    power_limit_default_w: Amount | None = _value("Default power limit, W.")
    energy_counter_j: Amount | None = _value("Energy by the counter, J.")
    energy_integral_j: Amount | None = _value("Integral of the sampled power, J.")
    energy_disagreement_pct: Change | None = _value(
        "Difference of the integral from the counter, as % of the counter."
    )
    energy_net_j: Change | None = _value("Energy minus the idle consumption, J.")
    energy_ticks: Total | None = _value("How often the counter changed in the window.")
    energy_refused: str | None = _value("Why there is no energy.", _ENERGY)
    idle_power_w: Amount | None = _value("Power when idle, W.")
    idle_memory_bytes: Total | None = _value("Memory in use when idle, bytes.")
    idle_utilization_pct: Amount | None = _value("Utilisation when idle, %.")
    sm_clock_mean_mhz: Amount | None = _value("Mean clock of the multiprocessors, MHz.")
    sm_clock_min_mhz: Amount | None = _value("Lowest clock of the multiprocessors, MHz.")
    sm_clock_limit_mhz: Amount | None = _value("Highest clock that the device allows, MHz.")
    temperature_max_c: Change | None = _value("Highest temperature in the window, °C.")
    throttle_reasons: list[str] | None = _value("NVML's reasons for which the clocks were lowered.")
    throttled_pct: dict[str, Amount] | None = _value(
        "For each reason, the share of the samples in which it applied, %."
    )
    ecc_errors: Total | None = _value(
        "Number of uncorrected memory errors while the device was sampled."
    )
    foreign_processes: Total | None = _value(
        "Most processes at once on the device that are not the cell's."
    )
    samples: Total = Field(0, description="Number of samples in the window.")
    longest_gap_pct: Amount | None = _value(
        "Longest stretch without a sample, as a share of the window, %."
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

    energy_per_item_j: Amount | None = _value(
        "Energy of all devices per item (see unit), by their energy counters, J.",
        _NO_ENERGY,
        names=("energy_per_item_j", "energy_per_image_j"),
    )
    energy_per_epoch_j: Amount | None = _value(
        "Energy of all devices for the steps of one epoch, J.", _NO_ENERGY
    )
    energy_net_per_item_j: Change | None = _value(
        "Energy of all devices per item (see unit), less their idle energy, J.",
        _NO_ENERGY,
        names=("energy_net_per_item_j", "energy_net_per_image_j"),
    )
    energy_disagreement_pct: Change | None = _value(
        "Difference of the integral of sampled power from the energy counter, as % of the counter.",
        _NO_ENERGY,
    )
    energy_refused: str | None = _value("Why there is no energy.", _ENERGY)
    power_w: Amount | None = _value("Sum of the mean powers of all devices, W.", _NO_ENERGY)
    utilization_pct: Amount | None = _value(
        "Mean utilisation of all devices in the steady window, %: NVML's on a GPU, the share of "
        "all cores on a CPU.",
        _NO_SAMPLE,
    )
    memory_peak_bytes: Total | None = _value(
        "Peak memory of the fullest device in the steady window, bytes: NVML's memory in use on a "
        "GPU, the resident memory of the cell's processes on a CPU.",
        _NO_SAMPLE,
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
    failure: Failure | None = _value("What ended the cell.", "the cell is ok")
    device_faults: list[str] = Field(
        [], description="Reasons that exclude the cell, each as `<rule>: <reason>`."
    )
    labels: list[str] = Field(
        [],
        description="What explains the cell's figures without excluding it, each as "
        "`<rule>: <reason>`.",
    )
    unknown: list[str] = Field([], description="Each rule that could not be evaluated, and why.")
    other_attempt: OtherAttempt | None = _value(
        "The other measurement of the cell.", "it was measured once"
    )
    loss: Loss | None = _value("Training loss.")
    accuracy: Accuracy | None = _value(
        "Test accuracy.", "the workload has a test loss, or no test samples"
    )
    test_loss: HeldOutLoss | None = _value(
        "Loss of the test samples.", "the workload has an accuracy, or no test samples"
    )
    time_s: Times | None = _value("Time of each phase, s.")
    windows: Windows | None = _value("When the cell was measured.")
    throughput: Throughput | None = _value("The steady state.")
    probes: list[Probe] = Field([], description="Speed of each device.")
    roofs: Roofs | None = _value("The speed compared with the devices' peaks.")
    profile: list[StepSplit] = Field([], description="How the step splits up on each rank.")
    host: list[HostUse] = Field([], description="CPU use of each rank.")
    memory: Memory | None = _value("The model's state in memory.")
    devices: list[Device] = Field([], description="Each device over the steady window.")
    efficiency: Efficiency | None = _value(
        "Energy, power, utilisation and memory of all devices together."
    )
    effective_config: EffectiveConfig | None = _value(
        "Settings that were read back from the live objects."
    )
    slurm: SlurmJob | None = _value("The Slurm job.", "the cell did not run in a Slurm job")
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
