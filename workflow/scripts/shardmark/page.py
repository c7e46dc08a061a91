"""What the report page says, as plain data for its template."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shardmark.captions import FIGURES, caption
from shardmark.cells import Cell, cells_of, parity_case
from shardmark.config import Config, labels_of
from shardmark.gaps import Gaps, find_gaps, results_of
from shardmark.metrics import Metrics, Parity
from shardmark.quantities import OF_FIGURE, written
from shardmark.result_tables import parity_verdict
from shardmark.summary import Table, summarise, tables_of

# One sign for each outcome of a cell in the grid: told apart without colour.
SIGNS = {
    "ok": ("●", "ran to its end"),
    "suspect": ("◐", "ran, but a validity rule marks it"),
    "stale": ("○", "ran, with earlier code"),
    "oom": ("M", "out of memory"),
    "timeout": ("T", "over its time limit"),
    "diverged": ("D", "the loss diverged"),
    "failed": ("F", "failed"),
    "refused": ("R", "its file does not count: unreadable or of another definition"),
    "unsupported": ("–", "cannot run there, by plan"),
    "missing": ("·", "no result yet"),
}


@dataclass(frozen=True)
class Findings:
    """What the rules before the page have found.

    Attributes:
        cells: cells.csv.
        comparisons: comparisons.csv.
        scaling: scaling.csv.
        verdicts: verdict.json, one mapping a workload, regime and GPU count.
    """

    cells: pd.DataFrame
    comparisons: pd.DataFrame
    scaling: pd.DataFrame
    verdicts: list[dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A figure on the page."""

    title: str
    caption: str
    image: str
    link: str


@dataclass(frozen=True)
class WorkloadPart:
    """All that the page shows of one workload."""

    name: str
    definition: str
    verdicts: list[tuple[str, list[str]]]
    tables: list[Table]
    comparisons: list[Table]
    scaling: Table | None
    figures: list[Shown]
    grid: Table
    parity: Table
    settings: list[Table]


def page_context(config: Config, findings: Findings, figures: Path, root: Path) -> dict[str, Any]:
    """Everything the template reads.

    Args:
        config: the matrix.
        findings: what the rules before have found.
        figures: the folder with a folder of figures for each workload.
        root: the project's folder, where results/ stands.
    """
    gaps = find_gaps(config, root)
    results = {cell.folder: result for cell, result in results_of(config, root)}
    metrics = [result for result in results.values() if isinstance(result, Metrics)]
    return {
        "run": config.run,
        "baseline": labels_of(config)[config.baseline],
        "workloads": [
            _workload(config, name, findings, gaps, metrics, figures / name, root)
            for name in config.matrix.workloads
        ],
        "planned": gaps.planned,
        "outcomes": outcomes(config, gaps, metrics),
        "reservations": list(reservations(config, gaps, metrics, findings.cells)),
        "failures": failures(metrics, gaps),
        "signs": SIGNS,
        "environment": environment(metrics),
        "cells": _raw(findings.cells),
        "margin_pct": f"{100 * config.report.margin:g}",
        "strategies": labels_of(config),
    }


def outcomes(config: Config, gaps: Gaps, metrics: Sequence[Metrics]) -> dict[str, int]:
    """How many cells ended how, in the order of ``SIGNS``."""
    count = Counter(status_signs(config, gaps, metrics).values())
    return {status: count[status] for status in SIGNS if count[status]}


def status_signs(config: Config, gaps: Gaps, metrics: Sequence[Metrics]) -> dict[Path, str]:
    """The outcome of each planned cell by its folder, one of ``SIGNS``."""
    signs = {cell.folder: "missing" for cell in cells_of(config)}
    for result in metrics:
        suspect = result.status == "ok" and result.validity == "suspect"
        signs[result.cell.folder] = "suspect" if suspect else result.status
    for cell, _ in gaps.stale:
        if signs[cell.folder] == "ok":
            signs[cell.folder] = "stale"
    for cell, _ in gaps.refused:
        signs[cell.folder] = "refused"
    return signs


def reservations(
    config: Config, gaps: Gaps, metrics: Sequence[Metrics], cells: pd.DataFrame
) -> Iterator[str]:
    """What a reader must know before the first figure."""
    if gaps.missing or gaps.refused:
        lacking = len(gaps.missing) + len(gaps.refused)
        yield f"{lacking} of {gaps.planned} cells without a result that counts."
    if gaps.stale:
        yield f"{_cells(len(gaps.stale))} of earlier code than the present one."
    if len(config.matrix.seeds) == 1:
        yield "One run a cell: nothing here tells a difference from chance."
    bad = sum(m.status not in ("ok", "unsupported") for m in metrics)
    if bad:
        yield f"{_cells(bad)} that did not end well, listed under Failures."
    suspect = sum(m.validity == "suspect" for m in metrics)
    if suspect:
        yield f"{_cells(suspect)} suspect by a written rule."
    unproven = sorted(set(cells[~cells.parity.isin(["passed", "unsupported"])].strategy))
    if unproven:
        labels = labels_of(config)
        names = ", ".join(labels[name] for name in unproven)
        yield f"Not shown to be the same training somewhere: {names}; see Parity."
    short = cells[(cells.status == "ok") & (cells.window_complete == False)]  # noqa: E712
    if len(short):
        yield f"{_cells(len(short))} timed over a shorter window than was asked for."
    if config.cluster.device == "cpu":
        yield "Measured on CPUs: this shows that the workflow works, and nothing about GPUs."


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def failures(metrics: Sequence[Metrics], gaps: Gaps) -> list[dict[str, str]]:
    """Every cell without a good result, and why; a planned impossibility once for all seeds."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in metrics:
        if result.failure is None:
            continue
        cell = result.cell
        where = f"{result.failure.phase or '–'}"
        if result.failure.rank is not None:
            where += f", rank {result.failure.rank}"
        name = f"{cell.workload} {cell.strategy} gpus{cell.gpus}"
        if result.status != "unsupported":
            name += f" seed{cell.seed}"
        rows[name, result.status, result.failure.exception] = {
            "cell": name,
            "status": result.status,
            "where": where,
            "reason": result.failure.exception,
            "log": "\n".join(result.failure.log_tail),
        }
    for cell, reason in gaps.refused:
        rows[cell.title, "refused", reason] = {
            "cell": cell.title,
            "status": "refused",
            "where": "–",
            "reason": reason,
            "log": "",
        }
    return list(rows.values())


def environment(metrics: Sequence[Metrics]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each fact of the machines and versions with its values and in how many cells each was."""
    seen: dict[str, Counter[str]] = {}
    for result in metrics:
        if result.status == "unsupported":
            continue
        facts = {k: v for k, v in result.environment.items() if not isinstance(v, (dict, list))}
        facts |= result.environment.get("versions", {})
        facts |= {key: result.provenance.get(key) for key in ("git_commit", "git_dirty")}
        facts["devices"] = ", ".join(sorted({device.name for device in result.devices})) or None
        for key, value in facts.items():
            if value is not None:
                seen.setdefault(key, Counter())[str(value)] += 1
    return [(key, values.most_common()) for key, values in seen.items()]


def _workload(
    config: Config,
    name: str,
    findings: Findings,
    gaps: Gaps,
    metrics: Sequence[Metrics],
    figures: Path,
    root: Path,
) -> WorkloadPart:
    labels = labels_of(config)
    mine, compared, scaling = (
        table[table.workload == name]
        for table in (findings.cells, findings.comparisons, findings.scaling)
    )
    own = [result for result in metrics if result.cell.workload == name]
    return WorkloadPart(
        name=name,
        definition=definition(config, name),
        verdicts=[
            (replicas(config, found["gpus"]), found["sentences"])
            for found in findings.verdicts
            if found["workload"] == name
        ],
        comparisons=list(comparison_tables(config, compared)),
        scaling=scaling_table(config, scaling),
        tables=list(tables_of(summarise(mine, config.baseline), config.baseline, labels)),
        figures=list(_figures(mine, figures)),
        grid=grid(config, name, status_signs(config, gaps, metrics)),
        parity=parity_table(config, name, root),
        settings=list(settings_tables(own, labels)),
    )


def definition(config: Config, name: str) -> str:
    """A workload in one sentence."""
    workload = config.workloads[name]
    data, batch, optimizer = workload.dataset, workload.batch, workload.optimizer
    images = f"{workload.train_images:,} images of {data.image_size} px"
    size = f"{batch.per_gpu} images a GPU" if batch.per_gpu else f"{batch.global_} images in all"
    micro = f" in {batch.accumulate} micro-batches" if batch.accumulate > 1 else ""
    return (
        f"{workload.model.name} on {data.name} ({images}, {workload.classes} classes), "
        f"{size} a step{micro}, {optimizer.name} at {optimizer.learning_rate:g}, "
        f"{workload.precision}, {workload.batchnorm} batch-norm statistics, "
        f"{workload.epochs} epoch{'s' if workload.epochs > 1 else ''}"
    )


def _figures(cells: pd.DataFrame, folder: Path) -> Iterator[Shown]:
    ok = cells[cells.status == "ok"]
    for name, title in FIGURES.items():
        quantity = OF_FIGURE.get(name)
        if quantity is not None and ok[quantity.column].isna().all():
            continue
        if name == "loss" and cells.final_loss.isna().all():
            continue
        if name == "scaling" and ok.gpus.nunique() < 2:
            continue
        path = folder / f"{name}.svg"
        image = base64.b64encode(path.read_bytes()).decode()
        yield Shown(title, caption(name), f"data:image/svg+xml;base64,{image}", _link(path))


def _link(path: Path) -> str:
    """Relative to the page, which stands beside the figures' folder."""
    return "/".join(path.with_suffix(".pdf").parts[-3:])


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
        headings=["Strategy", *[replicas(config, count) for count in counts]],
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


def replicas(config: Config, count: int) -> str:
    """A GPU count in words."""
    if config.cluster.device == "cpu":
        return f"{count} process{'' if count == 1 else 'es'}"
    return f"{count} GPU{'' if count == 1 else 's'}"


_COMPARED = {
    "images_per_s": "Throughput",
    "memory_used_peak_bytes": "Memory peak",
    "energy_per_image_j": "Energy an image",
    "epoch_s_mean": "Time an epoch",
    "total_s": "Time of the whole cell",
}
_COMPARISON_HEADINGS = [
    *("Strategy", "Metric", "Family", "Ratio", "95 % interval"),
    *("p", "n", "Verdict", "Why"),
]
_SCALING_HEADINGS = [
    *("Strategy", "GPUs", "from", "Throughput (images/s)"),
    *("Speed-up", "95 % interval", "Efficiency", "95 % interval", "n"),
]


def comparison_tables(config: Config, comparisons: pd.DataFrame) -> Iterator[Table]:
    """One table a GPU count: each strategy's ratio to the baseline by each metric."""
    labels = labels_of(config)
    for _, group in comparisons.groupby(["scaling", "gpus"], sort=True):
        first = group.iloc[0]
        rows = [
            [
                labels[row["strategy"]],
                _COMPARED.get(row["metric"], row["metric"]),
                "primary" if row["family"] == "primary" else "exploratory",
                _number(row["ratio"], 3),
                f"{_number(row['ci_low'], 3)} to {_number(row['ci_high'], 3)}",
                _number(row["p_holm"] if row["family"] == "primary" else row["p"], 4),
                str(row["n"]),
                row["verdict"],
                "" if _is_null(row["reason"]) else row["reason"],
            ]
            for row in group.to_dict("records")
        ]
        yield Table(
            caption=f"{replicas(config, first.gpus)}, {first.scaling} scaling: ratio to "
            f"{labels[config.baseline]}, margin of equivalence {100 * config.report.margin:g} %",
            headings=_COMPARISON_HEADINGS,
            rows=rows,
            notes=[],
        )


def scaling_table(config: Config, scaling: pd.DataFrame) -> Table | None:
    """Speed-up and efficiency of each strategy; None where one GPU count is all there is."""
    if scaling.empty:
        return None
    labels = labels_of(config)
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
                f"{_number(row['speedup_low'], 2)} to {_number(row['speedup_high'], 2)}",
                _number(row["efficiency"], 3),
                f"{_number(row['efficiency_low'], 3)} to {_number(row['efficiency_high'], 3)}",
                str(row["n"]),
            ]
            for row in scaling.to_dict("records")
        ],
        notes=[],
    )


def _number(value: float, places: int) -> str:
    return "–" if _is_null(value) else f"{value:.{places}f}"


def parity_table(config: Config, workload: str, root: Path) -> Table:
    """The gate's verdict on each strategy, replica count and precision, with its figures."""
    rows = []
    labels = labels_of(config)
    for strategy in config.matrix.strategies:
        for ranks in sorted(config.matrix.gpus):
            parity = parity_verdict(parity_case(config, workload, strategy, ranks), root)
            rows += list(_parity_rows(labels[strategy], ranks, parity))
    return Table(
        caption=f"{workload}: largest deviation from the oracle / the oracle's own noise / "
        "tolerance; relative",
        headings=["Strategy", "Ranks", "Verdict", "Precision", "Loss", "First update", "Weights"],
        rows=rows,
        notes=[],
    )


def _parity_rows(label: str, ranks: int, parity: Parity | None) -> Iterator[list[str]]:
    if parity is None or not parity.precisions:
        status = parity.status if parity else "missing"
        reason = (parity.reason if parity else None) or "no verdict of this definition"
        yield [label, str(ranks), status, reason, "", "", ""]
        return
    for result in parity.precisions:
        figures = [
            " / ".join(
                f"{getattr(part, name):.1e}"
                for part in (result.deviation, result.noise_floor, result.tolerance)
            )
            for name in ("loss", "first_update", "final_weights")
        ]
        verdict = "passed" if result.passed else f"failed: {result.reason}"
        yield [label, str(ranks), verdict, result.precision, *figures]
    if parity.real_model is not None:
        real = parity.real_model
        verdict = "passed" if real.passed else "failed"
        figures = [f"{v:.1e}" for v in (real.deviation, real.noise_floor, real.tolerance)]
        words = f"{real.precision}, first steps of the model itself"
        yield [label, str(ranks), verdict, words, " / ".join(figures), "", ""]


def settings_tables(metrics: Sequence[Metrics], labels: Mapping[str, str]) -> Iterator[Table]:
    """What each strategy really ran with, a table a GPU count; what is the same is folded."""
    for gpus in sorted({result.cell.gpus for result in metrics}):
        found = {
            result.cell.strategy: result.effective_config
            for result in metrics
            if result.cell.gpus == gpus and result.effective_config
        }
        names = [name for name in labels if name in found]
        if not names:
            continue
        keys = list(dict.fromkeys(key for name in names for key in found[name]))
        rows, same = [], []
        for key in keys:
            values = [_setting(found[name].get(key, "")) for name in names]
            if len(set(values)) == 1 and len(names) > 1:
                same.append(f"{key} = {values[0]}")
            else:
                rows.append([key, *values])
        yield Table(
            caption=f"Settings read back from the live objects, {gpus} replicas",
            headings=["Setting", *[labels[name] for name in names]],
            rows=rows,
            notes=[f"The same for all: {'; '.join(same)}."] if same else [],
        )


def _setting(value: object) -> str:
    if isinstance(value, float):
        return written(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(part)}" for key, part in value.items())
    return "none" if value is None else str(value)


_RAW = [
    "workload",
    "strategy",
    "gpus",
    "seed",
    "status",
    "validity",
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


def _raw(cells: pd.DataFrame) -> Table:
    """The cells as they are, in the columns that a reader looks for first."""
    rows = [
        [_setting(value) if not _is_null(value) else "–" for value in row]
        for row in cells[_RAW].itertuples(index=False)
    ]
    return Table("All cells", list(_RAW), rows, [])


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value == ""
