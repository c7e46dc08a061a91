"""result.json in the scratch folder: what the ranks of a cell report to its launcher."""

from __future__ import annotations

from shardmark.config.values import Section
from shardmark.effective_config import EffectiveConfig
from shardmark.metrics import Environment, HostUse, Memory, Probe, StepSplit, Throughput, Windows

# One timed step: phase (training, warmup or steady), epoch, step within the epoch, ms.
Step = tuple[str, int, int, float]


class TorchMemory(Section):
    """Torch's memory on one GPU in the steady window: peaks and growth in bytes, and retries."""

    uuid: str
    allocated: int
    reserved: int
    growth: int
    retries: int


class RankResult(Section):
    """What one rank measured.

    Attributes:
        node: name of its node.
        pid: its process id.
        steps: every timed step.
        probes: one for each of its GPUs.
        profile: the split of a traced step; None if none was traced.
        steady_monotonic_s: begin and end of its steady window; None if it had none.
        torch_memory: one for each of its GPUs.
        host: CPU use in the window; None without a window.
    """

    node: str
    pid: int
    steps: list[Step]
    probes: list[Probe]
    profile: StepSplit | None
    steady_monotonic_s: tuple[float, float] | None
    torch_memory: list[TorchMemory]
    host: HostUse | None


class Inspected(Section):
    """What the inspection of one step showed."""

    effective_config: EffectiveConfig
    flops_per_item: int | None
    hardware_flops_per_item: int | None
    why_uncounted: str | None
    bytes_per_item: int | None
    memory: Memory


class Divergence(Section):
    """A loss that is not finite; the rank is None if it happened on several ranks at once."""

    reason: str
    rank: int | None


class TrainingResult(Section):
    """What rank 0 reports for all ranks.

    Attributes:
        diverged: set if the loss diverged; then there is no window.
        loss: mean training loss of each epoch.
        scores: the workload's test score after each epoch; empty without evaluation.
        epochs_s: training time of each epoch.
        windows: windows of rank 0.
        throughput: throughput of the slowest rank.
        ranks: one entry per rank, in order.
        inspected: None if the training diverged before the inspection.
        environment: facts about torch and the devices.
        phases_s: seconds of each phase on rank 0.
        left_at: when rank 0 wrote this, seconds since the epoch.
    """

    diverged: Divergence | None
    loss: list[float]
    scores: list[float]
    epochs_s: list[float]
    windows: Windows | None
    throughput: Throughput | None
    ranks: list[RankResult]
    inspected: Inspected | None
    environment: Environment
    phases_s: dict[str, float]
    left_at: float
