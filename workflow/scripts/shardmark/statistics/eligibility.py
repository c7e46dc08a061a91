"""Which cells may be compared, and with which."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import pandas as pd

from shardmark.cells import key_title
from shardmark.errors import UserError
from shardmark.results.same_code import SameCode

GROUP = ["workload", "scaling", "gpus"]
CELL = [*GROUP, "strategy", "seed"]
# What must be one and the same in all cells of a comparison, beside the code.
VERSIONS = ("torch", "driver")
MACHINE = ("device", "device_names", "nodes")
TRAINING = ("precision", "batchnorm", "global_batch_size", "per_gpu_batch_size")
SETTINGS = (*TRAINING, *MACHINE, *VERSIONS)


def check_table(cells: pd.DataFrame) -> None:
    """Check that no cell is in the table twice.

    Raises:
        UserError: naming a cell that is in the table more than once.
    """
    twice = cells[cells.duplicated(CELL, keep=False)]
    if len(twice):
        first = twice.iloc[0]
        paths = twice[(twice[CELL] == first[CELL]).all(axis=1)]["path"]
        raise UserError(
            f"{key_title(*first[['workload', 'strategy', 'gpus', 'seed']])}: "
            f"is in the table more than once ({', '.join(map(str, paths))}); "
            "delete all its rows but one"
        )


def usable_cells(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the cells that take part in comparisons and have a value in the column."""
    return cells[(cells["excluded"] == "") & (cells[column] > 0)]


def include_excluded_runs(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells, where those that ended well are not excluded.

    What is not the same training stays out: a strategy that did not pass the parity gate, and a run
    that did not change the weights.
    """
    trained = (cells.parity == "passed") & (cells.excluded != "not training")
    ended_well = (cells.status == "ok") & trained
    return cells.assign(excluded=cells.excluded.mask(ended_well, ""))


def counted(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the runs whose medians represent a strategy: those that take part in comparisons.

    If a strategy has none at a GPU count, its ok runs without a device fault represent it. If it
    has none of those either, all its ok runs do.
    """
    if cells.empty:
        return cells
    ok = cells["status"] == "ok"
    keys = [cells[name] for name in (*GROUP, "strategy")]
    left = pd.Series(True, index=cells.index)
    chosen = ~left
    for better in (cells["excluded"] == "", ok & (cells["device_faults"] == ""), ok):
        chosen |= left & better
        left &= ~chosen.groupby(keys).transform("any")
    return cells[chosen]


Identity: TypeAlias = Mapping[str, frozenset[str]]


class Refusal(NamedTuple):
    """Why two sides are not compared.

    Attributes:
        reason: a short code, such as mixed_torch.
        values: what differs, such as "2.15.0 / 2.16.0"; empty if the code says it all.
    """

    reason: str
    values: str = ""


def identify(side: pd.DataFrame, same_code: SameCode) -> Identity:
    """Return what must be equal in all cells of a comparison, with its values in these cells.

    Args:
        side: usable cells of one strategy.
        same_code: which commits hold the same code, from the whole table.
    """
    identity = {name: _distinct(side[name]) for name in (*SETTINGS, "code_sha256", "packages")}
    commits = {same_code.of(str(commit)) for commit in set(side["git_commit"])}
    return identity | {"git_commit": frozenset(commit[:12] or "unknown" for commit in commits)}


def why_mixed(one: Identity, columns: Iterable[str] = SETTINGS) -> Refusal | None:
    """Return what differs among the cells of one strategy; None if nothing does."""
    return _difference(one, (*columns, "code_sha256", "packages"))


def why_not_comparable(sides: Sequence[Identity]) -> Refusal | None:
    """Return why two strategies cannot be compared; None if they can."""
    both = {name: frozenset().union(*(side[name] for side in sides)) for name in sides[0]}
    for refusal in (_difference(both, SETTINGS), *map(why_mixed, sides)):
        if refusal:
            return refusal
    return _difference(both, ["git_commit"])


def _difference(identity: Identity, columns: Iterable[str]) -> Refusal | None:
    for column in columns:
        if len(identity[column]) > 1:
            values = sorted(value[:12] if "sha" in column else value for value in identity[column])
            return Refusal(f"mixed_{column}", " / ".join(values))
    return None


def _distinct(values: pd.Series) -> frozenset[str]:
    # Eight times the same GPU is that GPU.
    return frozenset(
        ";".join(sorted(set(text.split(";")))) or "unknown" for text in set(values.astype(str))
    )


def devices_of(cells: pd.DataFrame) -> pd.Series:
    """Return each cell's devices: UUIDs, or hosts for a cell on CPUs; empty if neither is known."""
    return cells["device_uuids"].where(cells["device_uuids"] != "", cells["hosts"])


def on_same_devices(blocks: Iterable[Sequence[str]]) -> bool:
    """Whether to compare runs in pairs, because most runs of a block used the same devices.

    This depends only on where the cells ran, so no result can change how it is tested.

    Args:
        blocks: the devices of all runs of each block; empty where they are not known.
    """
    counts = Counter(
        one == other != ""
        for devices in blocks
        for one, other in itertools.combinations(devices, 2)
    )
    return counts[True] > counts[False]
