"""Two result sets of the same workloads: before and after an upgrade, two clusters, two commits."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from shardmark.cells import key_title
from shardmark.errors import UserError
from shardmark.results.csv_tables import to_frame
from shardmark.results.result_set import Result, ResultSet, cells_of_set, differences, flatten
from shardmark.results.same_code import SameCode
from shardmark.statistics.comparison_rows import SetComparisonRow
from shardmark.statistics.comparisons import (
    EXPLORATORY,
    MARGIN,
    PRIMARY,
    Contrast,
    Metric,
    Sample,
    family_of,
    judge,
    sample_of,
    why_never_met,
)
from shardmark.statistics.eligibility import (
    GROUP,
    Refusal,
    devices_of,
    identify,
    on_same_devices,
    why_mixed,
)
from shardmark.statistics.family import ALPHA, Family, Shift
from shardmark.statistics.seeds_needed import seeds_to_decide

SetOutcome = Literal["no regression", "regression", "inconclusive"]
EXIT_CODES: dict[SetOutcome, int] = {"no regression": 0, "regression": 1, "inconclusive": 2}
SIDE = [*GROUP, "strategy"]
# A cell that ended so, and did not before, is a regression.
FAILURES = ("oom", "timeout", "diverged", "failed")
# They change from job to job on the same machine.
PLACEMENT = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "CUDA_VISIBLE_DEVICES")
Group = tuple[str, str, int]


@dataclass(frozen=True)
class SetComparison:
    """What changed between two result sets.

    Attributes:
        changes: settings and environment: setting, before, after, where.
        table: columns as ``SetComparisonRow``.
        failures: strategies with cells that fail now and did not fail before: workload, scaling,
            gpus, strategy, status, seeds.
        only_before: names of the groups of cells that only the earlier set has.
        only_after: names of the groups of cells that only the later set has.
        outcome: the outcome by throughput and failures.
    """

    changes: pd.DataFrame
    table: pd.DataFrame
    failures: pd.DataFrame
    only_before: list[str]
    only_after: list[str]
    outcome: SetOutcome


def compare_sets(
    before: ResultSet, after: ResultSet, margin: float = MARGIN, *, other_devices: bool = False
) -> SetComparison:
    """Compare two result sets strategy by strategy.

    A family is one workload, scaling and GPU count, as everywhere.

    Args:
        before: the older set, or that of the first cluster.
        after: the other.
        margin: the margin of equivalence; being slower by more is a regression.
        other_devices: whether to compare strategies that ran on other devices than before, whose
            difference is then part of the result.

    Raises:
        UserError: if the sets define a workload differently, share no workload, or share no
            strategy at the same GPU count.
    """
    check_definitions(before, after)
    tables = [cells_of_set(result_set) for result_set in (before, after)]
    groups = [{tuple(key) for key in table[SIDE].to_numpy()} for table in tables]
    shared = groups[0] & groups[1]
    if not shared:
        raise UserError(
            f"{before.folder} and {after.folder} have no strategy at the same GPU count in common; "
            "nothing to compare"
        )
    rows: list[SetComparisonRow] = []
    failures: list[tuple[Any, ...]] = []
    unchanged: set[tuple[Any, ...]] = set()
    for _, keys in pd.DataFrame(sorted(shared), columns=SIDE).groupby(GROUP, sort=True):
        sides = {tuple(key): tuple(_of(table, key) for table in tables) for key in keys.to_numpy()}
        family = _FamilyOfSets(sides, margin, other_devices)
        rows += family.rows()
        failures += family.new_failures()
        unchanged |= family.failing_as_before()
    table = to_frame(SetComparisonRow, rows)
    lost = groups[0] - shared
    return SetComparison(
        changes=changes_between(before, after),
        table=table,
        failures=pd.DataFrame(failures, columns=[*SIDE, "status", "seeds"]),
        only_before=_titles(lost),
        only_after=_titles(groups[1] - shared),
        outcome=_outcome(rows, bool(failures), bool(lost), unchanged),
    )


def _outcome(
    rows: Iterable[SetComparisonRow],
    failures: bool,
    lost: bool,
    unchanged: set[tuple[Any, ...]],
) -> SetOutcome:
    """Return the outcome by throughput and failures.

    Args:
        rows: all comparisons.
        failures: whether something fails that did not before.
        lost: whether something measured before was not measured after.
        unchanged: strategies that failed before and fail now, which decide nothing.
    """
    answers = {
        row.regression
        for row in rows
        if row.metric == PRIMARY.column
        and (row.workload, row.scaling, row.gpus, row.strategy) not in unchanged
    }
    if failures or "yes" in answers:
        return "regression"
    # Without an answer nothing was compared: no strategy succeeded in both sets.
    return "no regression" if answers == {"no"} and not lost else "inconclusive"


class _FamilyOfSets:
    """The strategies of one workload, scaling and GPU count in both sets.

    Args:
        sides: by strategy, its cells before and after.
        margin: being slower by more is a regression.
        other_devices: whether other devices than before are compared.
    """

    def __init__(
        self,
        sides: dict[tuple[Any, ...], tuple[pd.DataFrame, ...]],
        margin: float,
        other_devices: bool,
    ) -> None:
        self.sides = sides
        self.margin = margin
        self.other_devices = other_devices
        self.usable = {
            key: tuple(side[side["excluded"] == ""] for side in both) for key, both in sides.items()
        }
        blocks = []
        for both in self.usable.values():
            first, second = (
                dict(zip(side["seed"], devices_of(side), strict=True)) for side in both
            )
            blocks += [(devices, second[seed]) for seed, devices in first.items() if seed in second]
        self.paired = on_same_devices(blocks)

    def rows(self) -> Iterator[SetComparisonRow]:
        """The comparisons."""
        for metric in (PRIMARY, *EXPLORATORY):
            contrasts = [self._contrast(key, metric) for key in self.sides]
            rows = judge(contrasts, metric, self.paired, self.margin)
            answers: Iterator[dict[str, Any]] = iter(())
            if metric is PRIMARY:
                family = family_of(contrasts, paired=self.paired, corrected=True)
                answers = _regressions(family, self.margin) if family else iter(())
            for row in rows:
                known = next(answers, {}) if row.ratio is not None else {}
                empty = dict.fromkeys(SetComparisonRow.model_fields)
                yield SetComparisonRow.model_validate(empty | row.model_dump() | known)

    def _contrast(self, key: tuple[Any, ...], metric: Metric) -> Contrast:
        names = dict(zip(SIDE, key, strict=True)) | {"baseline": "before"}
        before, after = self.usable[key]
        sides = (sample_of(after, metric), sample_of(before, metric))
        for name, side, sample in zip(("after", "before"), (after, before), sides, strict=True):
            if not sample.values:
                reason = "not_measured" if len(side) else "no_usable_cell"
                return Contrast(names, sides, Refusal(reason, name))
        for side in (after, before):
            if mixed := why_mixed(identify(side, SameCode(side))):
                return Contrast(names, sides, mixed)
        if other := why_never_met(sides, self.paired):
            if not self.other_devices or self.paired:
                return Contrast(names, sides, other)
            anywhere = [Sample(side.values, dict.fromkeys(side.values, "any")) for side in sides]
            return Contrast(names, (anywhere[0], anywhere[1]), None)
        return Contrast(names, sides, None)

    def new_failures(self) -> Iterator[tuple[Any, ...]]:
        """Return the strategies with cells that fail now and did not fail before."""
        for key, (before, after) in self.sides.items():
            ended_before = dict(zip(before["seed"], before["status"], strict=True))
            known = set(ended_before.values())
            for status in FAILURES:
                seeds = [
                    int(seed)
                    for seed in sorted(after[after["status"] == status]["seed"])
                    if ended_before.get(seed, status if status in known else "ok") not in FAILURES
                ]
                if seeds:
                    yield (*key, status, " ".join(map(str, seeds)))

    def failing_as_before(self) -> set[tuple[Any, ...]]:
        """Strategies that had no good result before and have none now."""
        return {
            key
            for key, both in self.sides.items()
            if not any((side["status"] == "ok").any() for side in both)
        }


def _regressions(family: Family, margin: float) -> Iterator[dict[str, Any]]:
    """Yield, as columns, whether each strategy is slower by more than the margin."""
    bound = -math.log1p(margin)
    size = len(family.estimates)
    below = Shift(np.full(size, -1.0), np.full(size, bound))
    above = Shift(np.full(size, 1.0), np.full(size, bound))
    slower = family.one_sided_p(below, corrected=True)
    fast_enough = family.one_sided_p(above, corrected=False)
    for place, estimate in enumerate(family.estimates):
        p, p_none = float(slower[place]), float(fast_enough[place])
        answer = "yes" if p <= ALPHA else "no" if p_none <= ALPHA else "open"
        least = int(min(family.n[place], family.n_baseline[place]))
        wanted = None
        if answer == "open":
            spread = float(family.spreads[place])
            wanted = seeds_to_decide(float(estimate) - bound, spread, least, size)
        yield {
            "regression": answer,
            "p_regression": None if math.isnan(p) else p,
            "p_no_regression": None if math.isnan(p_none) else p_none,
            "seeds_to_decide": wanted,
        }


def _of(table: pd.DataFrame, key: Iterable[Any]) -> pd.DataFrame:
    return table[(table[SIDE] == list(key)).all(axis=1)]


def _titles(groups: Iterable[tuple[Any, ...]]) -> list[str]:
    return [key_title(workload, strategy, gpus) for workload, _, gpus, strategy in sorted(groups)]


def check_definitions(before: ResultSet, after: ResultSet) -> None:
    """Check that the sets share a workload, and define their workloads in the same way.

    Raises:
        UserError: naming every difference.
    """
    first, second = before.workloads(), after.workloads()
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(
            f"{before.folder} and {after.folder} have no workload in common: "
            f"{', '.join(first)} and {', '.join(second)}; nothing to compare"
        )
    lines = [
        f"  {name}: {change}"
        for name in shared
        for change in differences(first[name], second[name])
    ]
    if lines:
        raise UserError(
            f"{before.folder} and {after.folder} define the same workload differently, so their "
            "results do not compare; run one of them again, or give the workload another name:\n"
            + "\n".join(lines)
        )


def changes_between(before: ResultSet, after: ResultSet) -> pd.DataFrame:
    """Return the differences in settings, versions and machines of groups that both sets have.

    Returns:
        setting, before, after (all values that were seen), where (the strategies, or everywhere).
    """
    sides = [_facts(result_set) for result_set in (before, after)]
    shared = [group for group in sides[0] if group in sides[1]]
    where: dict[tuple[str, str, str], list[Group]] = defaultdict(list)
    for group in shared:
        first, second = sides[0][group], sides[1][group]
        for setting in sorted({*first, *second}):
            values = [_join_values(side.get(setting, {"absent"})) for side in (first, second)]
            if values[0] != values[1]:
                where[(setting, values[0], values[1])].append(group)
    rows = [
        (*change, "everywhere" if len(groups) == len(shared) else _strategies(groups))
        for change, groups in where.items()
    ]
    return pd.DataFrame(sorted(rows), columns=["setting", "before", "after", "where"])


def _strategies(groups: Iterable[Group]) -> str:
    return ", ".join(sorted({strategy for _, strategy, _ in groups}))


def _join_values(values: set[str]) -> str:
    return " and ".join(sorted(values))


def _facts(result_set: ResultSet) -> dict[Group, dict[str, set[str]]]:
    """Return the values of each setting, by workload, strategy and GPU count."""
    facts: dict[Group, dict[str, set[str]]] = {}
    for result in result_set.results:
        cell = result.cell
        of_group = facts.setdefault((cell.workload, cell.strategy, cell.gpus), defaultdict(set))
        for setting, value in flatten(_settings(result)):
            of_group[setting].add(value if isinstance(value, str) else json.dumps(value))
    return facts


def _settings(result: Result) -> dict[str, Any]:
    metrics, cell = result.metrics, result.cell
    plain = metrics.model_dump(mode="json", include={"effective_config", "environment"})
    environment = plain["environment"]
    variables = environment.pop("variables", None) or {}
    return {
        "cell": {
            "options": cell.options,
            "measure": cell.measure.model_dump(mode="json"),
            **{name: getattr(cell, name) for name in ("device", "nodes", "gpus_per_node")},
        },
        "effective": plain["effective_config"] or {},
        "environment": environment,
        "variables": {name: value for name, value in variables.items() if name not in PLACEMENT},
        "devices": {
            "name": sorted({device.name for device in metrics.devices}),
            "power_limit_w": sorted(
                {device.power_limit_w or 0 for device in metrics.devices} - {0}
            ),
        },
        "code": {
            "git_commit": metrics.provenance.get("git_commit"),
            "sha256": metrics.code_sha256[:12],
        },
    }
