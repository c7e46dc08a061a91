"""How far one trajectory is from another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from shardmark.metrics import Deviation
from shardmark.parity.oracle import (
    Trajectory,
)


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
