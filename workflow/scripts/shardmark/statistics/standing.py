"""Where the strategies of one workload and GPU count stand, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Standing:
    """The best strategy by one metric, and how the others stand to it.

    Attributes:
        metric: the column.
        best: the strategy with the best median; None without a usable cell.
        value: that median, in the unit of the column.
        shown: whether every other strategy compared is shown to be worse.
        equivalent: those within the margin of it.
        open: those neither shown to be worse nor equivalent.
        worse: those shown to be worse.
        not_compared: those that may not be compared to it.
    """

    metric: str
    best: str | None
    value: float | None
    shown: bool
    equivalent: list[str]
    open: list[str]
    worse: list[str]
    not_compared: list[str]


@dataclass(frozen=True)
class Verdict:
    """One workload, regime and GPU count.

    Attributes:
        workload: name of the workload.
        scaling: strong or weak.
        gpus: GPU count.
        baseline: the strategy that comparisons are made to.
        margin: of equivalence, as a share of the ratio.
        runs: usable cells of each strategy.
        left_out: of each strategy the reasons of its other cells, with their counts.
        cannot: whether n is too small for any of the primary comparisons to be significant.
        fastest: standing by steady throughput.
        memory: by the peak memory of the fullest device; None where it was not measured.
        energy: by the energy per image; None where it was not measured.
        objectives: the metrics that the Pareto set weighs.
        medians: of each usable strategy, the median of each objective that was measured.
        pareto: usable strategies that none is shown to beat; see ``verdict.pareto_set``.
        sentences: the verdict in words, reservations first.
        with_suspects: the same with the suspect cells counted too, which shows what leaving them
            out decides; None where no cell would come to count.
    """

    workload: str
    scaling: str
    gpus: int
    baseline: str
    margin: float
    runs: dict[str, int]
    left_out: dict[str, dict[str, int]]
    cannot: bool
    fastest: Standing
    memory: Standing | None
    energy: Standing | None
    objectives: list[str]
    medians: dict[str, dict[str, float]]
    pareto: list[str]
    sentences: list[str]
    with_suspects: Verdict | None

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(self.sentences)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain types, for JSON."""
        return asdict(self)
