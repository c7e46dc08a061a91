"""Reads and writes the parity gate's trajectories: files of tensors, numbers and text only.

A file with pickled objects could run code when it is read, and people share results.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shardmark.errors import UserError
from shardmark.files import replacing
from shardmark.parity.oracle import Trajectory
from shardmark.parity_result import Deviation


def write_plain(contents: Mapping[str, Any], path: Path) -> None:
    """Write trajectories and noise floors by name, completely or not at all.

    torch.save reports a full disk as an OSError only if it gets an open file.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(_plain(contents), file)


def read_trajectories(path: Path) -> dict[str, Any]:
    """Read what ``run_case`` wrote: one trajectory per precision, ``real`` and ``backend``.

    Raises:
        UserError: with the file's name, if the file is damaged or holds something else.
    """
    return {
        name: _trajectory(value, path) if name not in ("real", "backend") else value
        for name, value in _load(path).items()
    }


def read_oracles(path: Path) -> dict[str, Any]:
    """Read what make_oracle.py wrote: the result of ``make_oracles``.

    Raises:
        UserError: with the file's name, if the file is damaged or holds something else.
    """
    oracles = _load(path)
    try:
        for name in oracles.keys() - {"real", "left_out"}:
            oracles[name] |= {
                "trajectory": _trajectory(oracles[name]["trajectory"], path),
                "floor": Deviation.model_validate(oracles[name]["floor"]),
                "rounding": Deviation.model_validate(oracles[name]["rounding"]),
            }
    except (KeyError, TypeError, ValueError):
        raise _other(path) from None
    return oracles


def left_out_by(path: Path) -> str | None:
    """Why an oracle says nothing about the real model; None if it does. Reads nothing else."""
    reason: str | None = torch.load(path, weights_only=True, mmap=True)["left_out"]
    return reason


def _plain(value: Any) -> Any:
    if isinstance(value, Trajectory):
        return vars(value)
    if isinstance(value, Deviation):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return value


def _load(path: Path) -> dict[str, Any]:
    try:
        contents = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise _other(path) from None
    if not isinstance(contents, dict):
        raise _other(path)
    return contents


def _trajectory(fields: Any, path: Path) -> Trajectory:
    try:
        return Trajectory(**fields)
    except TypeError:
        raise _other(path) from None


def _other(path: Path) -> UserError:
    return UserError(
        f"{path}: is damaged, or holds more than tensors and numbers; delete it to make it anew"
    )
