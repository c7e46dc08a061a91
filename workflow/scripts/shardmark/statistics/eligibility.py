"""Which cells may be compared, and in which way: as pairs, as groups, or not at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from shardmark.errors import UserError
from shardmark.statistics.family import pairs_for_significance
from shardmark.statistics.rank_sum import RankSum
from shardmark.statistics.shift import ShiftTest
from shardmark.statistics.signed_rank import SignedRank

GROUP = ["workload", "scaling", "gpus"]
CELL = [*GROUP, "strategy", "seed"]
# What must be one and the same in all cells of a comparison, beside the code.
VERSIONS = ("torch", "driver")
MACHINE = ("device", "device_names", "nodes")
TRAINING = ("precision", "batchnorm", "global_batch_size", "per_gpu_batch_size")
SETTINGS = (*TRAINING, *MACHINE, *VERSIONS)


def check_table(cells: pd.DataFrame) -> None:
    """See that no cell is counted twice.

    Raises:
        UserError: naming a cell that stands in the table more than once.
    """
    twice = cells[cells.duplicated(CELL, keep=False)]
    if len(twice):
        first = twice.iloc[0]
        paths = twice[(twice[CELL] == first[CELL]).all(axis=1)]["path"]
        raise UserError(
            f"{first['workload']} {first['strategy']} gpus{first['gpus']} seed{first['seed']}: "
            f"stands in the table more than once ({', '.join(map(str, paths))}); leave one in"
        )


def usable_cells(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """The cells that take part in comparisons and have a value in the column."""
    return cells[(cells["excluded"] == "") & (cells[column] > 0)]


def counted(cells: pd.DataFrame) -> pd.DataFrame:
    """The runs that a strategy's medians are of: those that take part in comparisons.

    A strategy that has none at a GPU count is compared to nothing, and shown by those of its runs
    that are ok and not suspect; by all that are ok if there are none.
    """
    if cells.empty:
        return cells
    ok = cells["status"] == "ok"
    keys = [cells[name] for name in (*GROUP, "strategy")]
    left = pd.Series(True, index=cells.index)
    chosen = ~left
    for better in (cells["excluded"] == "", ok & (cells["validity"] != "suspect"), ok):
        chosen |= left & better
        left &= ~chosen.groupby(keys).transform("any")
    return cells[chosen]


def count_reasons(reasons: Iterable[str]) -> str:
    """Reasons with how often each was given, the most frequent first."""
    counts = Counter(reason for reason in reasons if reason)
    return ", ".join(f"{number} {reason}" for reason, number in counts.most_common())


class SameCode:
    """Which commits hold the same code, as far as the cells can tell.

    A commit that changed a page of documentation is no reason to refuse a comparison: two commits
    are the same code where a cell of either has the same checksum over the files it depends on.

    Args:
        cells: all cells that there are; their git_commit and code_sha256 are read.
    """

    def __init__(self, cells: pd.DataFrame) -> None:
        self._first: dict[str, str] = {}
        for _, same in cells.groupby("code_sha256"):
            commits = [str(commit) for commit in same["git_commit"]]
            for commit in commits[1:]:
                self._first[self.of(commit)] = self.of(commits[0])
        self._first = {commit: first for commit, first in self._first.items() if commit != first}

    def of(self, commit: str) -> str:
        """One commit that stands for all those of the same code."""
        while (before := self._first.get(commit, commit)) != commit:
            commit = before
        return commit


def why_not_comparable(sides: Sequence[pd.DataFrame], same_code: SameCode) -> str:
    """What forbids to compare usable cells of two strategies; an empty text if nothing does.

    Args:
        sides: the cells of either strategy in one workload, regime and GPU count.
        same_code: of the whole table.
    """
    both = pd.concat(list(sides))
    mixed = _why_different(both, SETTINGS) or "; ".join(filter(None, map(why_mixed, sides)))
    if mixed:
        return mixed
    if len({same_code.of(str(commit)) for commit in both["git_commit"]}) > 1:
        commits = [commit[:12] or "unknown" for commit in _distinct(both["git_commit"])]
        return f"mixed code: commits {' and '.join(commits)}"
    return ""


def why_mixed(side: pd.DataFrame, columns: Iterable[str] = SETTINGS) -> str:
    """What is not the same in all cells of one strategy; an empty text if all is.

    Args:
        side: cells of one strategy.
        columns: what must be the same, beside the code and the strategy's own framework.
    """
    mixed = _why_different(side, columns)
    if mixed:
        return mixed
    if len(_distinct(side["code_sha256"])) > 1:
        return f"mixed code within {side['strategy'].iloc[0]}"
    return _why_different(side, ["packages"])


def _why_different(cells: pd.DataFrame, columns: Iterable[str]) -> str:
    for column in columns:
        found = _distinct(cells[column])
        if len(found) > 1:
            return f"mixed {column.replace('_', ' ')}: {' and '.join(found)}"
    return ""


def _distinct(values: pd.Series[Any]) -> list[str]:
    # Eight times the same GPU is that GPU.
    texts = {";".join(sorted(set(str(value).split(";")))) for value in values}
    return sorted(text or "unknown" for text in texts)


def devices_of(cell: pd.Series[Any]) -> str:
    """The devices of a cell: by UUID, a CPU's cell by its hosts; empty where neither is known."""
    return str(cell["device_uuids"] or cell["hosts"])


def test_of(
    treated: pd.DataFrame, reference: pd.DataFrame, metric: str
) -> tuple[ShiftTest | None, bool]:
    """The test of log(treated / reference): of pairs where the blocks allow it, else of groups.

    Runs of one seed are a pair where both ran on the same devices. The comparison is paired if
    every run has its pair, or if at least six pairs have, since six can be significant; otherwise
    it is of two groups, with all runs.

    Args:
        treated: usable cells of one strategy.
        reference: usable cells of what it is compared to.
        metric: the column.

    Returns:
        The test, None where a side has no value; and whether it is paired.
    """
    sides = [
        {
            int(cell["seed"]): (math.log(cell[metric]), devices_of(cell))
            for _, cell in side.iterrows()
            if cell[metric] > 0
        }
        for side in (treated, reference)
    ]
    if not all(sides):
        return None, False
    first, second = sides
    pairs = [
        (value, second[seed][0])
        for seed, (value, place) in first.items()
        if place and seed in second and second[seed][1] == place
    ]
    if len(pairs) >= min(pairs_for_significance(1), len(first), len(second)):
        return SignedRank(one - other for one, other in pairs), True
    return RankSum(*([value for value, _ in side.values()] for side in sides)), False


def why_confounded(treated: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Why a difference of two groups may be that of their devices; an empty text if it may not.

    Where chance deals the devices out, both groups meet the same ones. Two groups that have none in
    common, while each of them came back to some, were not dealt out so.
    """
    sides = [[devices_of(cell) for _, cell in side.iterrows()] for side in (treated, reference)]
    apart = not set(sides[0]) & set(sides[1])
    if apart and any(len(set(side)) < len(side) for side in sides):
        return "the two never ran on the same devices, whose difference this could be"
    return ""
