"""How far one trajectory is from another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardmark.parity.oracle import Trajectory
from shardmark.parity_result import Deviation

# Numbers that are subtracted at once. Small parts stay in a CPU's caches and need no new memory:
# 200 million numbers took 1.5 s on one core, and 31 s all at once.
CHUNK = 2**20
Summary = Mapping[str, Mapping[Any, float]]


class Incomparable(Exception):
    """A strategy's weights lack some of the oracle's, or have other shapes."""


def deviation(trained: Trajectory, oracle: Trajectory) -> Deviation:
    """How far a trajectory deviates from the oracle's.

    For the loss, this is the largest relative difference of any step. For the first update and the
    final weights, it is the L2 norm of the difference divided by the L2 norm of the oracle's
    values, over all parameters together.

    Raises:
        Incomparable: if the trajectories do not have the same parameters in the same shapes.
    """
    return Deviation(
        loss=_worst_loss(trained.losses, oracle.losses),
        first_update=_distance(
            trained.after_first_update,
            oracle.after_first_update,
            since=(trained.initial, oracle.initial),
        ),
        final_weights=_distance(trained.final, oracle.final),
    )


def summary_of(trajectory: Trajectory, device: torch.device) -> Summary:
    """A trajectory in a few numbers: each loss, and the norm of each parameter's first update.

    The norms are computed on ``device``, in float64.
    """

    def update_norm(name: str) -> float:
        parts = _parts(trajectory.after_first_update[name], trajectory.initial[name], device=device)
        return math.sqrt(sum(float((new - old).square().sum()) for new, old in parts))

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
    steps = oracle["losses"]
    return {
        "losses": _worst_loss([trained["losses"][step] for step in steps], list(steps.values())),
        "update norms": relative_l2(
            (trained["update norms"][name] for name in oracle["update norms"]),
            oracle["update norms"].values(),
        ),
    }


def _worst_loss(trained: Sequence[float], oracle: Sequence[float]) -> float:
    """The largest relative difference of a loss; infinite if the oracle's is zero."""
    pairs = zip(trained, oracle, strict=True)
    return worst(abs(mine - its) / abs(its) if its else math.inf for mine, its in pairs)


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


def _distance(
    trained: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    since: Sequence[Mapping[str, Tensor]] = (),
) -> float:
    """The relative L2 distance of weights, or of their changes ``since`` earlier weights of both.

    Raises:
        Incomparable: if they do not have the same parameters in the same shapes.
    """
    if trained.keys() != oracle.keys():
        missing = sorted(oracle.keys() - trained.keys())[:3]
        raise Incomparable(f"the strategy's weights lack {missing}")
    for name in oracle:
        if trained[name].shape != oracle[name].shape:
            shapes = f"{tuple(trained[name].shape)}, not {tuple(oracle[name].shape)}"
            raise Incomparable(f"the strategy's weight {name} has the shape {shapes}")
    distance = size = 0.0
    for name in oracle:
        earlier = [weights[name] for weights in since]
        for mine, its, *before in _parts(trained[name], oracle[name], *earlier):
            if before:
                mine, its = mine - before[0], its - before[1]
            distance += float((mine - its).square().sum())
            size += float(its.square().sum())
    return math.sqrt(distance / size) if size else math.inf


def _parts(*tensors: Tensor, device: torch.device | None = None) -> Iterator[list[Tensor]]:
    """Yield parts of tensors of one shape, in float64, on a device or where they are."""
    for parts in zip(*(torch.split(each.flatten(), CHUNK) for each in tensors), strict=True):
        # Not in one call, which would convert before it copies to the device.
        yield [(part.to(device) if device else part).double() for part in parts]
