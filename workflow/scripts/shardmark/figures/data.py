"""The data for the figures of one workload, and how each strategy looks in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from shardmark.figures.side_files import DamagedFiles, Timeline, read_steps, read_timelines
from shardmark.quantities import describe_gpus, describe_scaling, replicas_noun
from shardmark.results.collected import Tables
from shardmark.results.exclusion import describe_absence
from shardmark.statistics.eligibility import counted
from shardmark.statistics.findings import Findings
from shardmark.strategies import STRATEGIES, label_of, spec_of

# A figure narrower than this has few ticks on its x axes.
NARROW_MM = 130.0
_VARIANT_MARKERS = ("<", ">", "p", "*", "d", "8", "^", "v", "s", "h", "P", "X", "D", "o")


class NothingToDraw(Exception):
    """Why a figure cannot be drawn: its data were not measured."""


@dataclass(frozen=True)
class Look:
    """A strategy's colour (hex) and matplotlib marker; variants have open markers."""

    colour: str
    marker: str
    open_face: bool = False


def looks(bases: Mapping[str, str], colours: Mapping[str, str]) -> dict[str, Look]:
    """Return the look of each strategy of a matrix.

    Args:
        bases: the base of each strategy. A variant has the colour of its base.
        colours: the colours that the configuration chooses instead.
    """
    result = {}
    variants = 0
    for name, base in bases.items():
        record = spec_of(base)
        if name in STRATEGIES:
            result[name] = Look(record.colour, record.marker)
        else:
            marker = _VARIANT_MARKERS[variants % len(_VARIANT_MARKERS)]
            result[name] = Look(colours.get(name, record.colour), marker, open_face=True)
            variants += 1
    return result


@dataclass(frozen=True)
class Data:
    """The data for the figures of one workload.

    Attributes:
        cells: rows of cells.csv of this workload.
        epochs: rows of epochs.csv of this workload.
        baseline: the strategy that losses are compared with.
        width_mm: width of a figure.
        findings: the statistics; None for figures that do not show them.
        root: the project's folder, to which the paths in cells.csv are relative.
        colours: the colours that the configuration chooses, by strategy.
    """

    cells: pd.DataFrame
    epochs: pd.DataFrame
    baseline: str
    width_mm: float
    findings: Findings | None = None
    root: Path = Path()
    colours: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        workload: str,
        tables: Tables,
        width_mm: float,
        findings: Findings | None = None,
        root: Path = Path(),
    ) -> Data:
        """Return the data of one workload of a matrix."""
        cells, epochs = (
            table[table.workload == workload] for table in (tables.cells, tables.epochs)
        )
        record = tables.record
        return cls(cells, epochs, record.baseline, width_mm, findings, root, record.colours)

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """The label of each strategy as matplotlib takes it, in the order of the matrix."""
        names = self.cells.strategy.unique()
        return {name: label_of(name).replace("$", r"\$") for name in names}

    @cached_property
    def looks(self) -> Mapping[str, Look]:
        """Colour and marker of each strategy."""
        bases = self.cells.drop_duplicates("strategy").set_index("strategy").base
        return looks({str(name): str(base) for name, base in bases.items()}, self.colours)

    @property
    def ok(self) -> pd.DataFrame:
        """Cells that ran to the end."""
        return self.cells[self.cells.status == "ok"]

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The runs that enter medians."""
        return counted(self.cells)

    @cached_property
    def compared(self) -> pd.DataFrame:
        """The runs that take part in comparisons; figures draw the others pale."""
        return self.cells[self.cells.excluded == ""]

    def compared_at(self, count: int) -> set[str]:
        """Return the strategies that have a compared run at a GPU count."""
        return set(self.compared[self.compared.gpus == count].strategy)

    def why_no_efficiency(self, name: str) -> str:
        """Return in words why a strategy that has no scaling efficiency has none."""
        counts = self.compared[self.compared.strategy == name].gpus.nunique()
        alone = f"one {replicas_noun(self.device)} count only"
        return {0: "no result that counts", 1: alone}.get(counts, "not comparable")

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per step of a steady window, from ``side_files.read_steps``.

        Raises:
            NothingToDraw: naming the files that are damaged.
        """
        try:
            return read_steps(self.counted, self.root)
        except DamagedFiles as error:
            raise NothingToDraw(str(error)) from None

    @cached_property
    def timelines(self) -> Mapping[str, Timeline]:
        """The devices over time in one run of each strategy.

        Raises:
            NothingToDraw: naming a file that is damaged.
        """
        try:
            return read_timelines(self.counted, self.epochs, self.root)
        except DamagedFiles as error:
            raise NothingToDraw(str(error)) from None

    @property
    def scaling(self) -> pd.DataFrame:
        """Rows of scaling.csv of this workload."""
        assert self.findings
        scaling = self.findings.scaling
        return scaling[scaling.workload == self.workload]

    def pareto(self, count: int) -> set[str]:
        """Return the strategies that no other one beats at a GPU count (verdict.json)."""
        assert self.findings
        return {
            name
            for verdict in self.findings.verdicts
            if (verdict.workload, verdict.gpus) == (self.workload, count)
            for name in verdict.pareto
        }

    @property
    def workload(self) -> str:
        """Name of the workload."""
        return str(self.cells.workload.iloc[0])

    @property
    def gpus(self) -> list[int]:
        """GPU counts, ascending."""
        return sorted({int(count) for count in self.cells.gpus})

    @property
    def device(self) -> str:
        """The device, ``cuda`` or ``cpu``."""
        return str(self.cells.device.iloc[0])

    @property
    def unit(self) -> str:
        """What throughput counts, ``images`` or ``tokens``."""
        return str(self.cells.unit.iloc[0])

    @property
    def narrow(self) -> bool:
        """Whether a panel has room for only a few ticks."""
        return self.width_mm < NARROW_MM

    @property
    def scaling_in_words(self) -> str:
        """How the batch grows with the GPU count."""
        return describe_scaling("weak" if "weak" in set(self.cells.scaling) else "strong")

    def describe_gpus(self, count: int) -> str:
        """Return a GPU count in words."""
        return describe_gpus(self.device, count)

    def describe_absence(self, name: str, count: int | None = None) -> str:
        """Return in words why a strategy has no measurement, at one GPU count or at all."""
        runs = self.cells[self.cells.strategy == name]
        if count is not None:
            runs = runs[runs.gpus == count]
        without = runs[runs.status != "ok"]
        return describe_absence(without) if len(without) else "not measured"
