"""What the report page says, as plain data for its template."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shardmark.config import Config, Measure, labels_of
from shardmark.matrix.failures import failures
from shardmark.matrix.gaps import Gaps, find_gaps
from shardmark.matrix.matrix_results import read_matrix
from shardmark.matrix.outcomes import SIGNS, outcomes, status_signs
from shardmark.measurement.validity import rules_in_words, unchecked_rules
from shardmark.metrics import Metrics
from shardmark.quantities import replicas
from shardmark.report.captions import FIGURES, NOT_DRAWN, OUTCOMES, caption
from shardmark.report.certificate import certificates
from shardmark.report.decisions import decisions
from shardmark.report.export_names import KINDS, TABLES
from shardmark.report.page_tables import (
    Settings,
    comparison_tables,
    grid,
    parity_table,
    raw_table,
    scaling_table,
    settings_of,
)
from shardmark.report.summary import Table, summarise, tables_of
from shardmark.statistics.eligibility import as_compared, counted, rules_that_fired, why_left_out

# What a window must last for energy and drift to mean something.
LONG_ENOUGH_S = Measure.model_fields["steady_s"].default


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
    decisions: Table | None
    verdicts: list[tuple[str, list[str]]]
    tables: list[Table]
    comparisons: list[tuple[Table, Table]]
    scaling: Table
    figures: list[Shown]
    not_drawn: list[str]
    outcomes: str
    grid: Table
    parity: Table
    settings: list[Settings]


def page_context(config: Config, findings: Findings, figures: Path, root: Path) -> dict[str, Any]:
    """Everything the template reads.

    Args:
        config: the matrix.
        findings: what the rules before have found.
        figures: the folder with a folder of figures for each workload.
        root: the project's folder, where results/ stands.
    """
    gaps = find_gaps(config, root)
    metrics = read_matrix(config, root).metrics
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
        "cells": raw_table(findings.cells),
        "rules": rules_in_words(),
        "margin_pct": f"{100 * config.report.margin:g}",
        "strategies": labels_of(config),
        "exports": TABLES,
        "kinds": KINDS,
    }


def reservations(
    config: Config, gaps: Gaps, metrics: Sequence[Metrics], cells: pd.DataFrame
) -> Iterator[str]:
    """What a reader must know before the first figure."""
    if gaps.missing or gaps.refused:
        lacking = len(gaps.missing) + len(gaps.refused)
        yield f"{lacking} of {gaps.planned} cells without a result that counts."
    if gaps.stale:
        yield f"{_cells(len(gaps.stale))} of earlier code than the present one."
    if config.matrix.gpus == [1] and config.cluster.device == "cuda":
        yield "One GPU: nothing is sharded and nothing communicated; this says nothing of several."
    if len(config.matrix.seeds) == 1:
        yield "One run a cell: nothing here tells a difference from chance."
    bad = sum(m.status not in ("ok", "unsupported") for m in metrics)
    if bad:
        yield f"{_cells(bad)} that did not end well, listed under Failures."
    flagged = sum(len(one.flagged) for one in certificates(metrics, config.baseline))
    if flagged:
        yield (
            f"Settings or surroundings differ in {flagged} ways that nothing explains; see "
            "Settings."
        )
    if suspect := [m for m in metrics if m.validity == "suspect"]:
        rules = rules_that_fired(reason for m in suspect for reason in m.validity_reasons)
        fate = "compared all the same" if config.validity.compare_suspect else "left out"
        yield (
            f"{_cells(len(suspect))} suspect by a written rule ({', '.join(rules)}), {fate}; see "
            "Failures."
        )
    unchecked = Counter(rule for m in metrics for rule in unchecked_rules(m.unknown))
    # It needs control cells, which most matrices do not plan.
    del unchecked["input-bound"]
    if unchecked:
        told = ", ".join(f"{rule} ({_cells(count)})" for rule, count in unchecked.most_common())
        yield f"Could not be checked: {told}; the column unknown of cells.csv says why."
    unproven = sorted(set(cells[~cells.parity.isin(["passed", "unsupported"])].strategy))
    if unproven:
        labels = labels_of(config)
        names = ", ".join(labels[name] for name in unproven)
        yield f"Not shown to be the same training somewhere: {names}; see Parity."
    short = cells[(cells.status == "ok") & (cells.window_complete == False)]  # noqa: E712
    if len(short):
        yield f"{_cells(len(short))} timed over a shorter window than was asked for."
    if config.measure.steady_s < LONG_ENOUGH_S:
        yield (
            f"Timed over windows of {config.measure.steady_s:g} s; under {LONG_ENOUGH_S:g} s "
            "energy and drift say little."
        )
    if config.cluster.device == "cpu":
        yield "Measured on CPUs: this shows that the workflow works, and nothing about GPUs."


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


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
    mine = as_compared(mine, config.validity.compare_suspect)
    verdicts = [found for found in findings.verdicts if found["workload"] == name]
    own = [result for result in metrics if result.cell.workload == name]
    shown, not_drawn = _figures(config, mine, figures)
    device = config.cluster.device
    return WorkloadPart(
        name=name,
        definition=definition(config, name),
        decisions=decisions(config, verdicts) if verdicts else None,
        verdicts=[(replicas(device, found["gpus"]), found["sentences"]) for found in verdicts],
        comparisons=list(comparison_tables(config, compared)),
        scaling=scaling_table(config, scaling),
        tables=list(tables_of(summarise(mine, config.baseline), config.baseline, labels)),
        figures=shown,
        not_drawn=not_drawn,
        outcomes=_link(figures / f"{OUTCOMES}.svg"),
        grid=grid(config, name, status_signs(config, gaps, metrics)),
        parity=parity_table(config, name, root),
        settings=list(settings_of(own, labels, config.baseline)),
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


def facts(config: Config, cells: pd.DataFrame) -> str:
    """What every figure of a workload needs beside its caption: baseline, n and regime.

    Args:
        config: the matrix.
        cells: rows of cells.csv of the workload.
    """
    ok = cells[cells.status == "ok"]
    runs = counted(cells).groupby(["strategy", "gpus"]).size()
    spread = f"n = {runs.min()}" if runs.nunique() == 1 else f"n = {runs.min()} to {runs.max()}"
    regime = {"weak": "fixed batch a GPU", "strong": "fixed global batch"}
    scaling = ", ".join(f"{name} scaling ({regime[name]})" for name in cells.scaling.unique())
    out = int((why_left_out(ok) != "").sum())
    left_out = f" {out} of {len(ok)} runs not compared." if out else ""
    baseline = labels_of(config)[config.baseline]
    return f"Baseline: {baseline}; {spread} runs of each; {scaling}.{left_out}"


def _figures(config: Config, cells: pd.DataFrame, folder: Path) -> tuple[list[Shown], list[str]]:
    """The figures that could be drawn, and of the others the title with the reason."""
    not_drawn = json.loads((folder / NOT_DRAWN).read_text())
    said = facts(config, cells)
    shown = []
    for name, title in FIGURES.items():
        if name in not_drawn:
            continue
        path = folder / f"{name}.svg"
        image = base64.b64encode(path.read_bytes()).decode()
        text = f"{caption(name)} {said}"
        shown.append(Shown(title, text, f"data:image/svg+xml;base64,{image}", _link(path)))
    return shown, [f"{FIGURES[name]}: {reason}" for name, reason in not_drawn.items()]


def _link(path: Path) -> str:
    """Relative to the page, which stands beside the figures' folder."""
    return "/".join(path.with_suffix(".pdf").parts[-3:])
