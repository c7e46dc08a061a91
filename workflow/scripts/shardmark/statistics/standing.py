"""How the strategies of one workload and GPU count rank: verdict.json, one item each."""

from __future__ import annotations

from pydantic import TypeAdapter

from shardmark.config.values import Section
from shardmark.statistics.comparison_rows import Tier


class Standing(Section):
    """The best strategy by one metric, and how the others compare with it.

    Attributes:
        metric: the column.
        best: the strategy with the best ratio to the baseline, or one that is shown to be ahead of
            it; None without a usable cell.
        value: its median, in the unit of the column.
        tier: how sure it is that every other strategy is worse or equivalent: established, likely
            (with a model only), or open (for at least one neither is shown, or it could not be
            compared).
        ratios: ratios of the other strategies to the best one.
        equivalent: those within the margin of it.
        open: those that are shown neither to be worse nor to be equivalent.
        behind_baseline: those of the open that are shown to be worse than the baseline, where the
            baseline itself is open or equivalent. So none of them is the best.
        worse: those shown to be worse.
        not_compared: those that may not be compared with it.
        too_few: those that are open because too few runs can be compared.
        more_runs: further runs of each strategy that would settle the open comparisons; None if
            there are none, or if the number is unknown.
    """

    metric: str
    best: str | None = None
    value: float | None = None
    tier: Tier = "open"
    ratios: dict[str, float] = {}
    equivalent: list[str] = []
    open: list[str] = []
    behind_baseline: list[str] = []
    worse: list[str] = []
    not_compared: list[str] = []
    too_few: list[str] = []
    more_runs: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether every other strategy is significantly worse."""
        return self.tier != "open" and not self.equivalent


class Verdict(Section):
    """What the statistics say about one workload, scaling and GPU count.

    Attributes:
        workload: name of the workload.
        scaling: strong or weak.
        gpus: GPU count.
        baseline: the strategy that the others are compared with.
        margin: the margin of equivalence, as a share of the ratio.
        runs: usable cells of each strategy.
        excluded: by strategy, why its excluded cells are excluded, with the number of cells.
        fastest: ranking by steady throughput.
        memory: ranking by the peak memory of the fullest device; None if it was not measured.
        energy: ranking by the energy per image or token; None if it was not measured.
        objectives: the metrics that the Pareto set weighs.
        medians: of each usable strategy, the median of each objective that was measured.
        pareto: usable strategies that no other beats; see ``verdict.pareto_set``.
    """

    workload: str
    scaling: str
    gpus: int
    baseline: str
    margin: float
    runs: dict[str, int]
    excluded: dict[str, dict[str, int]]
    fastest: Standing
    memory: Standing | None
    energy: Standing | None
    objectives: list[str]
    medians: dict[str, dict[str, float]]
    pareto: list[str]


VERDICTS = TypeAdapter(list[Verdict])
