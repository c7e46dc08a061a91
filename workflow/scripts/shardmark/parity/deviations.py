"""How far one trajectory is from another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from shardmark.parity.oracle import Trajectory
from shardmark.parity_result import Deviation

# Numbers that are subtracted at once, so that little of a GPU's memory is needed.
CHUNK = 2**24
Summary = Mapping[str, Mapping[Any, float]]


def deviation(trained: Trajectory, oracle: Trajectory) -> Deviation:
    """How far a trajectory deviates from the oracle's.

    For the loss, this is the largest relative difference of any step. For the first update and the
    final weights, it is the L2 norm of the difference divided by the L2 norm of the oracle's
    values, over all parameters together.

    Raises:
        ValueError: if the trajectories do not have the same parameters.
    """
    pairs = zip(trained.losses, oracle.losses, strict=True)
    return Deviation(
        loss=worst(abs(mine - its) / abs(its) for mine, its in pairs),
        first_update=_distance(
            _difference(trained.after_first_update, trained.initial),
            _difference(oracle.after_first_update, oracle.initial),
        ),
        final_weights=_distance(trained.final, oracle.final),
    )


def summary_of(trajectory: Trajectory, device: torch.device) -> Summary:
    """A trajectory in a few numbers: each loss, and the norm of each parameter's first update.

    The norms are computed on ``device``: on one thread of a CPU, float64 takes a minute per billion
    parameters.
    """

    def update_norm(name: str) -> float:
        new = torch.split(trajectory.after_first_update[name].flatten(), CHUNK)
        old = torch.split(trajectory.initial[name].flatten(), CHUNK)
        squares = 0.0
        for one, other in zip(new, old, strict=True):
            squares += float((one.to(device).double() - other.to(device).double()).square().sum())
        return math.sqrt(squares)

    return {
        "losses": dict(enumerate(trajectory.losses)),
        "update norms": {name: update_norm(name) for name in trajectory.after_first_update},
    }


def summary_difference(trained: Summary, oracle: Summary) -> dict[str, float]:
    """How far two summaries are apart; infinite if they can't be compared.

    For ``losses``, this is the largest relative difference. ``update norms`` are one vector with a
    number for each parameter: the L2 norm of the difference, relative. The norm of the whole update
    would be a single number, in which the errors of the parameters may cancel.
    """
    if any(trained[part].keys() != oracle[part].keys() for part in oracle):
        return dict.fromkeys(oracle, math.inf)
    pairs = [(trained["losses"][step], loss) for step, loss in oracle["losses"].items()]
    return {
        "losses": worst(abs(mine - its) / abs(its) if its else math.inf for mine, its in pairs),
        "update norms": relative_l2(
            (trained["update norms"][name] for name in oracle["update norms"]),
            oracle["update norms"].values(),
        ),
    }


def relative_l2(trained: Iterable[float], oracle: Iterable[float]) -> float:
    """The L2 norm of the difference of two vectors, relative to the second one's."""
    wanted = list(oracle)
    size = math.hypot(*wanted)
    distance = math.hypot(*(mine - its for mine, its in zip(trained, wanted, strict=True)))
    return worst([distance / size]) if size else math.inf


def worst(values: Iterable[float]) -> float:
    """The largest value; infinite if any is NaN or infinite, since ``max`` could drop a NaN."""
    known = list(values)
    return max(known) if all(map(math.isfinite, known)) else math.inf


def _difference(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: new[name].double() - old[name].double() for name in new}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors.values())
    return math.sqrt(squares)


def _distance(trained: Mapping[str, Tensor], oracle: Mapping[str, Tensor]) -> float:
    """The relative L2 distance over all parameters; both must have the same ones."""
    if trained.keys() != oracle.keys():
        missing = sorted(oracle.keys() - trained.keys())[:3]
        raise ValueError(f"the strategy's weights lack {missing}")
    norm = _norm(oracle)
    return _norm(_difference(trained, oracle)) / norm if norm else math.inf
