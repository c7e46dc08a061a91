"""Two result sets of the same workloads: before and after an upgrade, two clusters, two commits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from shardmark.errors import UserError
from shardmark.results.result_set import Result, ResultSet, cells_of_set, differences, flatten
from shardmark.statistics.comparisons import EXPLORATORY, MARGIN, PRIMARY, contrast, judge
from shardmark.statistics.eligibility import GROUP

Outcome = Literal["no regression", "regression", "inconclusive"]
EXIT_CODES: dict[Outcome, int] = {"no regression": 0, "regression": 1, "inconclusive": 2}
SIDE = [*GROUP, "strategy"]
# They change from job to job on the same machine.
PLACEMENT = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "CUDA_VISIBLE_DEVICES")
Group = tuple[str, str, int]


@dataclass(frozen=True)
class SetComparison:
    """What changed between two result sets.

    Attributes:
        changes: settings and environment: setting, before, after, where.
        table: the rows of ``comparisons.compare``, of each strategy after against itself before.
        only_before: cells' groups that are missing after, by name.
        only_after: groups that are new, by name.
        outcome: of the primary metric.
    """

    changes: pd.DataFrame
    table: pd.DataFrame
    only_before: list[str]
    only_after: list[str]
    outcome: Outcome


def compare_sets(before: ResultSet, after: ResultSet, margin: float = MARGIN) -> SetComparison:
    """Compare two result sets strategy by strategy.

    A family for Holm is one workload, regime and GPU count, as everywhere.

    Args:
        before: the older set, or that of the first cluster.
        after: the other.
        margin: of equivalence, and beyond which being slower is a regression.

    Raises:
        UserError: if a workload is defined differently in the two, or they have no workload, or
            no strategy at the same GPU count, in common.
    """
    check_definitions(before, after)
    tables = [cells_of_set(found) for found in (before, after)]
    groups = [{tuple(key) for key in table[SIDE].to_numpy()} for table in tables]
    shared = groups[0] & groups[1]
    if not shared:
        raise UserError(
            f"{before.folder} and {after.folder} have no strategy at the same GPU count in common; "
            "nothing to compare"
        )
    judged = []
    for _, family in pd.DataFrame(sorted(shared), columns=SIDE).groupby(GROUP, sort=True):
        pairs = [(_of(tables[1], key), _of(tables[0], key)) for key in family.to_numpy()]
        for metric in (PRIMARY, *EXPLORATORY):
            contrasts = [contrast(pair, ("after", "before"), metric, None) for pair in pairs]
            judged.append(judge(contrasts, metric is PRIMARY, margin))
    table = pd.concat(judged, ignore_index=True)
    return SetComparison(
        changes=changes_between(before, after),
        table=table,
        only_before=_titles(groups[0] - shared),
        only_after=_titles(groups[1] - shared),
        outcome=outcome_of(table, bool(groups[0] - shared), margin),
    )


def _of(table: pd.DataFrame, key: Iterable[Any]) -> pd.DataFrame:
    return table[(table[SIDE] == list(key)).all(axis=1)]


def _titles(groups: Iterable[tuple[Any, ...]]) -> list[str]:
    return [f"{workload} {strategy} gpus{gpus}" for workload, _, gpus, strategy in sorted(groups)]


def check_definitions(before: ResultSet, after: ResultSet) -> None:
    """See that the sets have a workload in common, and that it means the same in both.

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


def regressions_of(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """The rows that are shown to be slower, and by an estimate beyond the margin.

    Args:
        table: the rows of ``comparisons.compare``.
        margin: beyond which being slower is a regression, as a share of the ratio.
    """
    slower = (table["metric"] == PRIMARY.column) & (table["verdict"] == PRIMARY.below)
    return table[slower & (table["ratio"] < 1 / (1 + margin))]


def outcome_of(table: pd.DataFrame, lost: bool, margin: float) -> Outcome:
    """The outcome of the primary metric.

    Args:
        table: the rows of ``comparisons.compare``.
        lost: whether something measured before was not measured after.
        margin: beyond which being slower is a regression, as a share of the ratio.

    Returns:
        ``regression`` where there is one; ``no regression`` where every strategy is shown to be
        faster or equivalent; else ``inconclusive``.
    """
    if len(regressions_of(table, margin)):
        return "regression"
    primary = table[table["metric"] == PRIMARY.column]
    settled = primary["verdict"].isin([PRIMARY.above, "equivalent"]).all()
    return "no regression" if settled and not lost else "inconclusive"


def changes_between(before: ResultSet, after: ResultSet) -> pd.DataFrame:
    """What differs in settings, versions and machines of the groups that both sets have.

    Returns:
        setting, before, after (all values that were seen), where (the strategies, or everywhere).
    """
    sides = [_facts(found) for found in (before, after)]
    shared = [group for group in sides[0] if group in sides[1]]
    where: dict[tuple[str, str, str], list[Group]] = defaultdict(list)
    for group in shared:
        first, second = sides[0][group], sides[1][group]
        for setting in sorted({*first, *second}):
            values = [_told(side.get(setting, {"absent"})) for side in (first, second)]
            if values[0] != values[1]:
                where[(setting, values[0], values[1])].append(group)
    rows = [
        (*change, "everywhere" if len(groups) == len(shared) else _strategies(groups))
        for change, groups in where.items()
    ]
    return pd.DataFrame(sorted(rows), columns=["setting", "before", "after", "where"])


def _strategies(groups: Iterable[Group]) -> str:
    return ", ".join(sorted({strategy for _, strategy, _ in groups}))


def _told(values: set[str]) -> str:
    return " and ".join(sorted(values))


def _facts(found: ResultSet) -> dict[Group, dict[str, set[str]]]:
    """The values of each setting, by workload, strategy and GPU count."""
    facts: dict[Group, dict[str, set[str]]] = {}
    for result in found.results:
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
