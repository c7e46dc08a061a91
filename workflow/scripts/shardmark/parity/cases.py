"""What a case of the parity gate trains, and which oracle it is compared with."""

from __future__ import annotations

import functools

from shardmark.cells import Cell, ParityCase, Rounding
from shardmark.config.schema import BatchSize, Workload
from shardmark.optimizers import OPTIMIZERS
from shardmark.strategies import spec_of
from shardmark.workload.built_in import make_workload
from shardmark.workload.parameter_uses import ParameterUses, parameter_uses
from shardmark.workload.precision import AUTOCAST_DTYPES

STEPS_PER_EPOCH = 4
REAL_MODEL_STEPS = 2
REAL_MODEL_BATCH = 4
UNCLIPPED = "fp32 unclipped"
# Adam divides a gradient by its own size. Where the true gradient is zero (a bias before a
# batch-norm, a key bias before a softmax), the update would be full-size and its sign rounding
# noise, so two correct programs would disagree. A larger eps suppresses these updates.
SMALLEST_ADAM_EPS = 1e-4


def precisions_of(case: ParityCase) -> list[str]:
    """The precisions to check: float32, then the timed precision if it differs.

    Where the training clips, float32 is also checked without clipping. A gradient that is twice as
    large as it should be, because ranks add theirs instead of averaging, is the same after
    clipping; and the surrogate's gradient is clipped in every step.
    """
    definition = case.cell.definition
    unclipped = [] if definition.optimizer.clip_norm is None else [UNCLIPPED]
    timed = [] if definition.precision == "fp32" else [definition.precision]
    return ["fp32", *unclipped, *timed]


def surrogate_cell(case: ParityCase, precision: str) -> Cell:
    """The cell that trains the surrogate in place of the case's model."""
    unclipped = precision == UNCLIPPED
    name = "fp32" if unclipped else precision
    cell = _gate_cell(case.cell, name, case.gate.per_gpu_batch, surrogate=True)
    assert cell is not None
    if not unclipped:
        return cell
    optimizer = cell.definition.optimizer.model_copy(update={"clip_norm": None})
    definition = cell.definition.model_copy(update={"optimizer": optimizer})
    return cell.model_copy(update={"definition": definition})


def surrogate_name_of(case: ParityCase) -> str:
    """A description of the case's surrogate, in words."""
    name = make_workload(case.cell.definition).surrogate_name
    counts = ", ".join(
        f"{len(names)} {kind}{' and not compared' if kind == 'unused' else ''}"
        for kind, names in _surrogate_uses(case).kinds.items()
    )
    return f"{name}; parameters: {counts}" if counts else name


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
    accumulate = definition.batch.accumulate
    # A training of the user's own may have fewer samples than one such step takes.
    batch = max(1, min(batch, definition.train_samples // (cell.gpus * accumulate)))
    per_gpu = batch * accumulate
    workload: Workload = definition.model_copy(
        update={
            "precision": precision,
            "batch": BatchSize(per_gpu=per_gpu, accumulate=accumulate),
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


def rounding_of(case: ParityCase, precision: str) -> Rounding:
    """Return where the case's strategy rounds weights, which its oracle must copy.

    Under autocast, the parameters of an embedding or a norm stay in float32. A low ``param_dtype``
    rounds them all, so that a whole forward pass differs.
    """
    if precision not in AUTOCAST_DTYPES:
        return "autocast"
    if case.rounding != "each use":
        return case.rounding
    freezes = bool(_surrogate_uses(case).frozen)
    copies = spec_of(case.cell.base).copies_weights(case.cell.place, lambda: freezes)
    return "each use" if copies and uses_weights_twice(case) else "autocast"


def oracle_of(case: ParityCase, precision: str) -> str:
    """The name of the oracle that rounds where the case's strategy does in this precision."""
    return name_of_oracle(precision, rounding_of(case, precision))


def uses_weights_twice(case: ParityCase) -> bool:
    """Whether a parameter of the model is used more than once in a forward pass."""
    uses = _surrogate_uses(case)
    return bool(uses.tied or uses.reused)


def _surrogate_uses(case: ParityCase) -> ParameterUses:
    return _uses_in(surrogate_cell(case, "fp32").model_dump_json(by_alias=True))


@functools.cache
def _uses_in(cell: str) -> ParameterUses:
    """Cached, because the user's own training loads its samples for it."""
    workload = make_workload(Cell.model_validate_json(cell).definition)
    return parameter_uses(workload, surrogate=True)


def name_of_oracle(precision: str, rounding: Rounding) -> str:
    """The name of an oracle, by the precision and by where it rounds weights."""
    return precision if rounding == "autocast" else f"{precision} {rounding}"
