"""The parity gate: does a strategy train the model that the oracle trains?

The gate runs the same training scripts, variants, optimizer, augmentation and wrapping as the
cells, on the same device: first in float32, then in the precision that is timed. It trains a
surrogate, a small network of the workload model's own blocks. It then checks the first steps of the
real model by their losses and by the norm of the first update.
"""

from __future__ import annotations

import functools
import gc
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shardmark.cells import Cell, ParityCase
from shardmark.config.schema import BatchSize, Workload
from shardmark.lanes import lane_of
from shardmark.measurement.clocks import Phases
from shardmark.measurement.model_cost import parameters_of
from shardmark.metrics import Deviation, PrecisionParity, RealModelParity
from shardmark.optimizers import OPTIMIZERS
from shardmark.parity.gpu_turn import room_for
from shardmark.parity.oracle import SummationOrder, Trajectory, run_oracle, taken_until_it_updates
from shardmark.parity.trajectory_files import write_plain
from shardmark.training.loop import StrategyClass, make_task, take_step
from shardmark.training.runtime import Runtime, start_runtime
from shardmark.workload.built_in import make_workload
from shardmark.workload.contract import Contract
from shardmark.workload.data import training_data
from shardmark.workload.optimizers import learning_rate_at
from shardmark.workload.precision import set_math_mode

STEPS_PER_EPOCH = 4
REAL_MODEL_STEPS = 2
REAL_MODEL_BATCH = 4
# Adam divides a gradient by its own size. Where the true gradient is zero (a bias before a
# batch-norm, a key bias before a softmax), the update would be full-size and its sign rounding
# noise, so two correct programs would disagree. A larger eps suppresses these updates.
SMALLEST_ADAM_EPS = 1e-4
# Relative root mean square error of rounding to 8 (bf16) or 11 (fp16, tf32) significant bits. The
# error is uniform, at most half a unit in the last place; mantissas lie between 1 and 2.
ROUNDING_RMS = {"bf16": 2**-8 / 24**0.5, "fp16": 2**-11 / 24**0.5, "tf32": 2**-11 / 24**0.5}
# Other orders of the same sums; the largest difference that they cause is the noise floor.
OTHER_ORDERS: tuple[SummationOrder, ...] = ("replicas_reversed", "samples_reversed")


def compute_alike() -> None:
    """Make two processes compute the same bits from the same micro-batch.

    Then a strategy's first update can differ from the oracle's only by the sum over replicas, and
    a reduction in bf16 becomes visible. If the two programs picked different kernels, the error of
    bf16 compute would hide the error of the reduction.
    """
    # Also on a GPU, where many cases share the machine's cores.
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling would write to every buffer that a framework allocates: gigabytes for DeepSpeed.
    cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")


def precisions_of(case: ParityCase) -> list[str]:
    """The precisions to check: float32, then the timed precision if it differs."""
    timed = case.cell.definition.precision
    return ["fp32"] if timed == "fp32" else ["fp32", timed]


def surrogate_cell(case: ParityCase, precision: str) -> Cell:
    """The cell that trains the surrogate in place of the case's model."""
    cell = _gate_cell(case.cell, precision, case.gate.per_gpu_batch, surrogate=True)
    assert cell is not None
    return cell


def surrogate_name_of(case: ParityCase) -> str:
    """A description of the case's surrogate, in words."""
    return make_workload(case.cell.definition).surrogate_name


def real_model_cell(case: ParityCase) -> Cell | None:
    """The cell of the real model's first steps; None if the surrogate is the real model."""
    precision = case.cell.definition.precision
    return _gate_cell(case.cell, precision, REAL_MODEL_BATCH, surrogate=False)


def _gate_cell(cell: Cell, precision: str, batch: int, *, surrogate: bool) -> Cell | None:
    per_gpu = batch * cell.definition.batch.accumulate
    samples = STEPS_PER_EPOCH * per_gpu * cell.gpus
    definition = make_workload(cell.definition).for_gate(samples, surrogate=surrogate)
    if definition is None:
        return None
    workload: Workload = definition.model_copy(
        update={
            "precision": precision,
            "batch": BatchSize(per_gpu=per_gpu, accumulate=definition.batch.accumulate),
            "optimizer": definition.optimizer.model_copy(
                update={
                    "eps": max(definition.optimizer.eps, SMALLEST_ADAM_EPS),
                    "learning_rate": min(
                        definition.optimizer.learning_rate,
                        OPTIMIZERS[definition.optimizer.name].largest_gate_rate,
                    ),
                }
            ),
            "learning_rate_rule": "none",
            # With a long warm-up the learning rate of the gate's few steps would be almost zero.
            "schedule": definition.schedule.model_copy(
                update={"warmup_epochs": min(definition.schedule.warmup_epochs, 0.5)}
            ),
            "epochs": 2,
        }
    )
    return cell.model_copy(
        update={
            "definition": workload,
            "per_gpu_batch_size": per_gpu,
            "global_batch_size": per_gpu * cell.gpus,
        }
    )


def make_oracles(case: ParityCase, device: torch.device) -> dict[str, Any]:
    """Train the oracle of a case in each precision and measure the noise floors.

    Returns:
        for each precision ``{"trajectory": Trajectory, "floor": Deviation, "first_update_floor":
        float, "summary", "summary_floor"}``; under ``real``, the real model's ``{"summary",
        "floor"}``, or None.
    """
    compute_alike()
    oracles: dict[str, Any] = {}
    for precision in precisions_of(case):
        cell = surrogate_cell(case, precision)
        workload = make_workload(cell.definition)
        oracles[precision] = _oracle_and_floor(
            cell, workload, workload.surrogate, case.gate.steps, device
        )
    cell_or_none = real_model_cell(case)
    oracles["real"] = None
    if cell_or_none is not None:
        workload = make_workload(cell_or_none.definition)
        real = _oracle_and_floor(
            cell_or_none, workload, workload.build_model, REAL_MODEL_STEPS, device
        )
        oracles["real"] = {"summary": real["summary"], "floor": real["summary_floor"]}
    return oracles


def _oracle_and_floor(
    cell: Cell,
    workload: Contract[Any],
    build: Callable[[int], nn.Module],
    steps: int,
    device: torch.device,
) -> dict[str, Any]:
    rows = workload.rows(Path(cell.data_dir), train=True)

    def run(order: SummationOrder) -> Trajectory:
        return run_oracle(cell, workload, rows, lambda: build(cell.seed), steps, device, order)

    natural = run("natural")
    others = [run(order) for order in OTHER_ORDERS]
    floors = [deviation(other, natural) for other in others]
    repeated = deviation(run("natural"), natural)
    summary = summary_of(natural)
    return {
        "trajectory": natural,
        "floor": Deviation(
            loss=worst(floor.loss for floor in floors),
            first_update=worst(floor.first_update for floor in floors),
            final_weights=worst(floor.final_weights for floor in floors),
        ),
        # The noise of the sum over replicas alone: the micro-batches are unchanged.
        "first_update_floor": worst([repeated.first_update, floors[0].first_update]),
        "summary": summary,
        "summary_floor": worst(summary_difference(summary_of(other), summary) for other in others),
    }


def run_case(strategy: StrategyClass, case: ParityCase, scratch: Path, phases: Phases) -> None:
    """Train one rank of a case; rank 0 writes the strategy's trajectories to ``scratch``."""
    with phases("process_group"):
        runtime = start_runtime(case.cell)
    compute_alike()
    found: dict[str, Any] = {"backend": runtime.backend}
    for precision in precisions_of(case):
        with phases(f"parity in {precision}"):
            cell = surrogate_cell(case, precision)
            workload = make_workload(cell.definition)
            found[precision] = _train(
                strategy, cell, runtime, workload, workload.surrogate, case.gate.steps, phases
            )
            gc.collect()  # the frameworks' modules are in reference cycles
    real = real_model_cell(case)
    if real is not None:
        workload = make_workload(real.definition)
        with (
            phases("waiting for room on the GPUs"),
            room_for(runtime, parameters_of(workload), phases.heart.alive) as room_is_taken,
            phases("first steps of the real model"),
        ):
            trajectory = _train(
                strategy,
                real,
                runtime,
                workload,
                workload.build_model,
                REAL_MODEL_STEPS,
                phases,
                room_is_taken,
            )
            found["real"] = summary_of(trajectory) if runtime.rank == 0 else None
    if runtime.rank == 0:
        write_plain(found, scratch / "trajectories.pt")


def _train(
    strategy: StrategyClass,
    cell: Cell,
    runtime: Runtime,
    workload: Contract[Any],
    build: Callable[[int], nn.Module],
    steps: int,
    phases: Phases,
    after_first_update: Callable[[], object] = lambda: None,
) -> Trajectory:
    definition = cell.definition
    set_math_mode(definition.precision)
    data = training_data(
        workload,
        workload.rows(Path(cell.data_dir), train=True),
        cell.seed,
        replicas=runtime.replicas,
        replica_count=cell.gpus,
        per_replica=cell.per_gpu_batch_size,
        device=runtime.device,
    )
    driven = strategy(make_task(cell, runtime, workload, build))
    driven.train()
    losses: list[float] = []
    with torch.device("meta"):
        names = {name for name, _ in build(cell.seed).named_parameters()}

    def weights() -> dict[str, Tensor]:
        """The parameters on rank 0, which alone needs them; a collective."""
        state = driven.full_state_dict()
        return {} if runtime.rank else {name: state[name] for name in names & state.keys()}

    initial = updated = weights()
    for step in range(steps):
        epoch, step_in_epoch = divmod(step, data.steps_per_epoch)
        if step_in_epoch == 0:
            batches = data.epoch(epoch)
        micro_batches = next(batches)
        driven.set_learning_rate(
            learning_rate_at(definition, cell.gpus, step, data.steps_per_epoch)
        )
        loss = taken_until_it_updates(
            functools.partial(take_step, driven, micro_batches, phases.heart)
        )
        losses.append(float(runtime.sum_over_ranks(loss)) / runtime.world_size)
        if step == 0:
            updated = weights()
            after_first_update()
    return Trajectory(losses, initial, updated, final=weights())


def deviation(found: Trajectory, oracle: Trajectory) -> Deviation:
    """How far a trajectory deviates from the oracle's.

    For the loss, this is the largest relative difference of any step. For the first update and the
    final weights, it is the L2 norm of the difference divided by the L2 norm of the oracle's
    values, over all parameters together.

    Raises:
        ValueError: if the trajectories do not have the same parameters.
    """
    pairs = zip(found.losses, oracle.losses, strict=True)
    return Deviation(
        loss=worst(abs(mine - its) / abs(its) for mine, its in pairs),
        first_update=_distance(
            _difference(found.after_first_update, found.initial),
            _difference(oracle.after_first_update, oracle.initial),
        ),
        final_weights=_distance(found.final, oracle.final),
    )


def judge(
    precision: str, found: Trajectory, oracles: Mapping[str, Any], case: ParityCase
) -> PrecisionParity:
    """The gate's verdict in one precision.

    In float32, loss and weights must agree within the configured tolerance. The oracle's own noise
    must be at least ten times smaller, or the gate could not tell a correct strategy from a wrong
    one.

    In another precision, the tolerance of loss and weights is a multiple of the oracle's noise in
    that precision. The tolerance of the first update is a quarter of the error that rounding the
    gradients once to that precision would cause. It can be this tight because the micro-batches
    are computed as in the oracle: only the sum over replicas may differ, and it must be taken in
    float32. If the variant rounds elsewhere by design (rounds_elsewhere), the first update also has
    a multiple of the oracle's noise as its tolerance.
    """
    measured = deviation(found, oracles[precision]["trajectory"])
    floor, tolerance = floor_and_tolerance(precision, oracles, case)
    reason = None
    if not all(map(math.isfinite, tolerance.model_dump().values())):
        reason = f"{precision}: the oracle does not agree with itself, so the gate cannot judge"
    noisy = max(floor.loss, floor.final_weights) * 10 > case.gate.tolerance
    if reason is None and precision == "fp32" and noisy:
        reason = (
            f"the oracle's own noise ({floor.loss:.1e} in the loss, {floor.final_weights:.1e} in "
            f"the weights) is not ten times below the tolerance {case.gate.tolerance:.0e}, so this "
            "setting cannot tell right from wrong; lower the learning rate or raise "
            "parity.per_gpu_batch"
        )
    for name, limit in tolerance.model_dump().items():
        value = getattr(measured, name)
        # `not <=` instead of `>`, so that NaN fails.
        if reason is None and not value <= limit:
            words = name.replace("_", " ")
            reason = f"{precision}: {words} deviates by {value:.1e}, tolerance {limit:.1e}"
    return PrecisionParity(
        precision=precision,
        deviation=measured,
        noise_floor=floor,
        tolerance=tolerance,
        passed=reason is None,
        reason=reason,
    )


def floor_and_tolerance(
    precision: str, oracles: Mapping[str, Any], case: ParityCase
) -> tuple[Deviation, Deviation]:
    """The oracle's own noise in one precision, and how far a strategy may deviate in it."""
    gate = case.gate
    floor: Deviation = oracles[precision]["floor"]
    fp32: Deviation = oracles["fp32"]["floor"]
    first_update = max(gate.tolerance, gate.floor_multiple * fp32.first_update)
    if precision == "fp32":
        return floor, Deviation(
            loss=gate.tolerance, first_update=first_update, final_weights=gate.tolerance
        )
    if case.cell.definition.batchnorm_statistics != "sync" and not rounds_elsewhere(case):
        # Synchronised batch-norm already sums over replicas in the forward pass, in another order
        # than the oracle, so it keeps the wider floor.
        narrow = oracles[precision]["first_update_floor"]
        floor = floor.model_copy(update={"first_update": narrow})
    first_update = max(
        first_update, gate.floor_multiple * floor.first_update, ROUNDING_RMS[precision] / 4
    )
    return floor, Deviation(
        loss=max(gate.tolerance, gate.floor_multiple * floor.loss),
        first_update=first_update,
        final_weights=max(gate.tolerance, gate.floor_multiple * floor.final_weights),
    )


def rounds_elsewhere(case: ParityCase) -> bool:
    """Whether a correct training rounds to the timed precision elsewhere than the oracle.

    A framework's own mixed precision stores or reduces other tensors in it than autocast does, and
    a compiler leaves out the rounding between the operations that it fuses.
    """
    recommended = lane_of(case.cell.options) == "as_recommended"
    return recommended or case.cell.compilation != "none"


def judge_real_model(
    found: dict[str, float], oracle: Mapping[str, Any], case: ParityCase
) -> RealModelParity:
    """The verdict on the real model's first steps, by each loss and the first update's norm."""
    measured = summary_difference(found, oracle["summary"])
    tolerance = max(case.gate.tolerance, case.gate.floor_multiple * oracle["floor"])
    return RealModelParity(
        precision=case.cell.definition.precision,
        deviation=measured,
        noise_floor=oracle["floor"],
        tolerance=tolerance,
        passed=measured <= tolerance < math.inf,
    )


def summary_of(trajectory: Trajectory) -> dict[str, float]:
    """A trajectory in a few numbers: each loss, and the norm of the first update."""
    losses = {f"loss_{step}": loss for step, loss in enumerate(trajectory.losses)}
    return losses | {
        "first_update_norm": _norm(_difference(trajectory.after_first_update, trajectory.initial))
    }


def summary_difference(found: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """The largest relative difference between two summaries; infinite if they can't be compared."""
    if found.keys() != oracle.keys() or not all(oracle.values()):
        return math.inf
    return worst(abs(found[name] - its) / abs(its) for name, its in oracle.items())


def worst(values: Iterable[float]) -> float:
    """The largest value; infinite if any is NaN or infinite, since ``max`` could drop a NaN."""
    known = list(values)
    return max(known) if all(map(math.isfinite, known)) else math.inf


def _difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: new[name].double() - old[name].double() for name in new}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors.values())
    return math.sqrt(squares)


def _distance(found: Mapping[str, Tensor], oracle: Mapping[str, Tensor]) -> float:
    """The relative L2 distance over all parameters; both must have the same ones."""
    if found.keys() != oracle.keys():
        missing = sorted(oracle.keys() - found.keys())[:3]
        raise ValueError(f"the strategy's weights lack {missing}")
    norm = _norm(oracle)
    return _norm(_difference(found, oracle)) / norm if norm else math.inf
