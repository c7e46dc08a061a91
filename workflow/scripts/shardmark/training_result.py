"""What the ranks of a cell hand over to its launcher: result.json in the scratch folder."""

from __future__ import annotations

from shardmark.config import Section
from shardmark.effective_config import EffectiveConfig
from shardmark.metrics import Environment, HostUse, Memory, Probe, StepSplit, Throughput, Windows

# Of one timed step: phase (training, warmup or steady), epoch, step of the epoch, ms.
Step = tuple[str, int, int, float]


class TorchMemory(Section):
    """Torch's memory on one GPU over the steady window, bytes: peaks, and growth of the first."""

    uuid: str
    allocated: int
    reserved: int
    growth: int


class RankResult(Section):
    """What one rank measured.

    Attributes:
        node: name of its node.
        pid: its process id.
        steps: every timed step.
        probes: of its GPUs.
        profile: the split of a traced step; None if none was traced.
        steady_monotonic_s: begin and end of its steady window; None if it had none.
        torch_memory: of each of its GPUs.
        host: what its host did in the window; None without a window.
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
    """What one observed step showed."""

    effective_config: EffectiveConfig
    flops_per_image: int
    bytes_per_image: int | None
    memory: Memory


class Divergence(Section):
    """Why a loss is no number any more; the rank is None if several lost theirs at once."""

    reason: str
    rank: int | None


class TrainingResult(Section):
    """What rank 0 hands over for all ranks.

    Attributes:
        diverged: set if the loss diverged; then there is no window.
        loss: mean training loss of each epoch.
        accuracy: test accuracy after each epoch.
        epochs_s: training time of each epoch.
        windows: of rank 0.
        throughput: of the slowest rank.
        ranks: one per rank, in order.
        inspected: None if the training diverged before.
        environment: of torch and the devices.
        phases_s: seconds of each phase on rank 0.
        left_at: when rank 0 wrote this, seconds since the epoch.
    """

    diverged: Divergence | None
    loss: list[float]
    accuracy: list[float]
    epochs_s: list[float]
    windows: Windows | None
    throughput: Throughput | None
    ranks: list[RankResult]
    inspected: Inspected | None
    environment: Environment
    phases_s: dict[str, float]
    left_at: float
