"""The report page's tables beside the summary: comparisons, scaling, parity, settings, outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shardmark.cells import Cell, cells_of, parity_case
from shardmark.config import Config, labels_of
from shardmark.measurement.validity import unchecked_rules
from shardmark.metrics import Metrics, Parity
from shardmark.quantities import replicas, written
from shardmark.report.summary import Table
from shardmark.results.certificate import Certificate, Row, certificates
from shardmark.results.outcomes import SIGNS
from shardmark.results.result_tables import parity_verdict
from shardmark.statistics.eligibility import text_of


@dataclass(frozen=True)
class Settings:
    """A certificate as it is shown: its strategies by label and by name."""

    certificate: Certificate
    labels: list[str]
    names: list[str]

    @property
    def where(self) -> str:
        """Its GPU count in words."""
        count = self.certificate.gpus
        return f"{count} replica{'' if count == 1 else 's'}"

    @property
    def same(self) -> list[Row]:
        """The settings that all have alike."""
        return [row for row in self.certificate.rows if row.verdict == "same"]

    @property
    def different(self) -> list[Row]:
        """The other ones, those that nothing explains first."""
        rows = [row for row in self.certificate.rows if row.verdict != "same"]
        return sorted(rows, key=lambda row: row.verdict != "flagged")


def grid(config: Config, workload: str, signs: Mapping[Path, str]) -> Table:
    """Strategies down, GPU counts across, a sign a seed."""
    matrix, labels = config.matrix, labels_of(config)
    of: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells_of(config):
        if cell.workload == workload:
            of.setdefault((cell.strategy, cell.gpus), []).append(cell)
    counts = sorted(matrix.gpus)
    return Table(
        caption=f"{workload}: one sign a seed ({', '.join(map(str, matrix.seeds))})",
        headings=["Strategy", *[replicas(config.cluster.device, count) for count in counts]],
        rows=[
            [
                labels[name],
                *[
                    " ".join(SIGNS[signs[cell.folder]][0] for cell in of[name, count])
                    for count in counts
                ],
            ]
            for name in matrix.strategies
        ],
        notes=[],
    )


_COMPARED = {
    "images_per_s": "Throughput",
    "memory_used_peak_bytes": "Memory peak",
    "energy_per_image_j": "Energy an image",
    "epoch_s_mean": "Time an epoch",
    "total_s": "Time of the whole cell",
}
_SCALING_HEADINGS = [
    *("Strategy", "GPUs", "from", "Throughput (images/s)"),
    *("Speed-up", "95 % interval", "Efficiency", "95 % interval", "n"),
]


def comparison_tables(config: Config, comparisons: pd.DataFrame) -> Iterator[tuple[Table, Table]]:
    """Two tables a GPU count, of ratios to the baseline: throughput, and what is exploratory."""
    for _, group in comparisons.groupby(["scaling", "gpus"], sort=True):
        primary = group.family == "primary"
        yield (
            _comparison_table(config, group[primary], "p after Holm"),
            _comparison_table(config, group[~primary], "p, not corrected"),
        )


def _comparison_table(config: Config, group: pd.DataFrame, p: str) -> Table:
    labels, first = labels_of(config), group.iloc[0]
    corrected = first.family == "primary"
    rows = [
        [
            labels[row["strategy"]],
            _COMPARED.get(row["metric"], row["metric"]),
            _number(row["ratio"], 3),
            _interval(row["ci_low"], row["ci_high"], 3),
            _number(row["p_holm"] if corrected else row["p"], 4),
            str(row["n"]),
            row["verdict"],
            "" if _is_null(row["reason"]) else row["reason"],
        ]
        for row in group.to_dict("records")
    ]
    where = replicas(config.cluster.device, first.gpus)
    return Table(
        caption=f"{first.workload} on {where}, {first.scaling} scaling: ratio to "
        f"{labels[config.baseline]}, margin of equivalence {100 * config.report.margin:g} %",
        headings=["Strategy", "Metric", "Ratio", "95 % interval", p, "n", "Verdict", "Why"],
        rows=rows,
        notes=[],
    )


def scaling_table(config: Config, scaling: pd.DataFrame) -> Table:
    """Speed-up and efficiency of each strategy; no rows where one GPU count is all there is."""
    alone = scaling.empty or bool((scaling.gpus == scaling.reference_gpus).all())
    labels = labels_of(config)
    place = {name: index for index, name in enumerate(labels)}
    return Table(
        caption="Speed-up over the strategy's own smallest GPU count, with 95 % intervals; runs "
        "are groups here, not pairs",
        headings=_SCALING_HEADINGS,
        rows=[
            [
                labels[row["strategy"]],
                str(row["gpus"]),
                str(row["reference_gpus"]),
                written(row["images_per_s"]),
                _number(row["speedup"], 2),
                _interval(row["speedup_low"], row["speedup_high"], 2),
                _number(row["efficiency"], 3),
                _interval(row["efficiency_low"], row["efficiency_high"], 3),
                str(row["n"]),
            ]
            for row in sorted(scaling.to_dict("records"), key=lambda row: place[row["strategy"]])
            if not alone
        ],
        notes=["No strategy has results at two GPU counts."] if alone else [],
    )


def _interval(low: float, high: float, places: int) -> str:
    return "–" if _is_null(low) else f"{_number(low, places)} to {_number(high, places)}"


def _number(value: float, places: int) -> str:
    return "–" if _is_null(value) else f"{value:.{places}f}"


def parity_table(config: Config, workload: str, root: Path) -> Table:
    """The gate's verdict on each strategy, replica count and precision, with its figures."""
    rows: list[list[str]] = []
    notes = []
    labels = labels_of(config)
    for strategy in config.matrix.strategies:
        for ranks in sorted(config.matrix.gpus):
            parity = parity_verdict(parity_case(config, workload, strategy, ranks), root)
            rows += _parity_rows(labels[strategy], ranks, parity)
            if reason := parity.reason if parity else "no verdict of this definition":
                notes.append(f"{labels[strategy]}, ranks: {ranks}: {reason}.")
    return Table(
        caption=f"{workload}: largest deviation from the oracle / the oracle's own noise / "
        "tolerance; relative",
        headings=["Strategy", "Ranks", "Verdict", "Precision", "Loss", "First update", "Weights"],
        rows=rows,
        notes=notes,
    )


def _parity_rows(label: str, ranks: int, parity: Parity | None) -> Iterator[list[str]]:
    if parity is None or not parity.precisions:
        status = parity.status if parity else "missing"
        yield [label, str(ranks), status, "", "", "", ""]
        return
    for result in parity.precisions:
        figures = [
            " / ".join(
                f"{getattr(part, name):.1e}"
                for part in (result.deviation, result.noise_floor, result.tolerance)
            )
            for name in ("loss", "first_update", "final_weights")
        ]
        verdict = "passed" if result.passed else "failed"
        yield [label, str(ranks), verdict, result.precision, *figures]
    if parity.real_model is not None:
        real = parity.real_model
        verdict = "passed" if real.passed else "failed"
        figures = [f"{v:.1e}" for v in (real.deviation, real.noise_floor, real.tolerance)]
        words = f"{real.precision}, first steps of the model itself"
        yield [label, str(ranks), verdict, words, " / ".join(figures), "", ""]


def settings_of(
    metrics: Sequence[Metrics], labels: Mapping[str, str], baseline: str
) -> Iterator[Settings]:
    """What each strategy really ran with, one certificate a GPU count."""
    for certificate in certificates(metrics, baseline):
        names = [name for name in labels if name in certificate.strategies]
        if names:
            yield Settings(certificate, [labels[name] for name in names], names)


def _text(value: object) -> str:
    if isinstance(value, float):
        return written(value)
    return str(value)


_RAW = [
    "workload",
    "strategy",
    "gpus",
    "seed",
    "status",
    "validity",
    "unknown",
    "parity",
    "images_per_s",
    "step_ms_p50",
    "step_ms_p99",
    "final_loss",
    "final_accuracy",
    "training_s",
    "total_s",
    "memory_used_peak_bytes",
    "utilization_pct",
    "power_w",
    "energy_per_image_j",
    "hosts",
]


def raw_table(cells: pd.DataFrame) -> Table:
    """The cells as they are, in the columns that a reader looks for first.

    Of what is unknown the rules and labels by name; why is in cells.csv.
    """
    unknown = [", ".join(unchecked_rules(text_of(value).split("; "))) for value in cells["unknown"]]
    rows = [
        ["–" if _is_null(value) else _text(value) for value in row]
        for row in cells[_RAW].assign(unknown=unknown).itertuples(index=False)
    ]
    return Table("All cells", list(_RAW), rows, [])


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value == ""
