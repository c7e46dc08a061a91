"""What the report page says, as plain data for its template."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shardmark.config.schema import Measure
from shardmark.measurement.validity import (
    labels_in_words,
    names_of_rules,
    rules_in_words,
    unchecked_rules,
)
from shardmark.quantities import describe_gpus
from shardmark.report.contents import FIGURES, KINDS, NOT_DRAWN, OUTCOMES, TABLES, caption
from shardmark.report.decisions import decision_table
from shardmark.report.page_tables import (
    comparison_tables,
    describe_replicas,
    differing,
    locate_failure,
    name_failure,
    outcome_table,
    parity_table,
    raw_table,
    same,
    scaling_table,
)
from shardmark.report.sentences import sentences
from shardmark.report.summary_table import SCALING, summarise, summary_tables
from shardmark.report.table import Table
from shardmark.results.certificate import Certificate
from shardmark.results.collected import Tables
from shardmark.results.outcome import Outcome
from shardmark.statistics.eligibility import counted
from shardmark.statistics.findings import Findings
from shardmark.strategies import label_of

# What a window must last for energy and drift to mean something.
LONG_ENOUGH_S = Measure.model_fields["steady_min_s"].default


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
    decisions: Table
    verdicts: list[tuple[str, list[str]]]
    tables: list[Table]
    comparisons: list[tuple[Table, Table]]
    scaling: Table
    figures: list[Shown]
    not_drawn: list[str]
    outcomes: str
    grid: Table
    parity: Table
    certificates: list[Certificate]


def page_context(
    tables: Tables, findings: Findings, figures: Path, margin: float
) -> dict[str, Any]:
    """Everything that the template reads.

    Args:
        tables: what ``collect`` wrote.
        findings: what ``compare`` wrote.
        figures: the folder with a folder of figures for each workload.
        margin: of equivalence, as a share of the ratio.
    """
    record, cells = tables.record, tables.cells
    counts = cells.outcome.value_counts()
    return {
        "run": record.run,
        "baseline": label_of(record.baseline),
        "workloads": [
            _workload(name, tables, findings, figures / name) for name in record.workloads
        ],
        "planned": len(cells),
        "outcomes": {one: int(counts[one]) for one in Outcome if one in counts},
        "reservations": list(reservations(tables)),
        "failures": [
            row | {"cell": name_failure(row), "where": locate_failure(row)}
            for row in tables.failures.to_dict("records")
        ],
        "environment": record.environment,
        "cells": raw_table(cells),
        "rules": rules_in_words(),
        "labels": labels_in_words(),
        "margin_pct": f"{100 * margin:g}",
        "strategies": {name: label_of(name) for name in tables.strategies},
        "exports": TABLES,
        "kinds": KINDS,
        "same": same,
        "differing": differing,
        "describe_replicas": describe_replicas,
    }


def reservations(tables: Tables) -> Iterator[str]:
    """What a reader must know before the first figure."""
    cells, record = tables.cells, tables.record
    cuda = record.device == "cuda"
    lacking = cells.outcome.isin([Outcome.MISSING, Outcome.REFUSED]).sum()
    if lacking:
        yield f"{lacking} of {len(cells)} cells without a result that counts."
    if stale := (cells.stale == True).sum():  # noqa: E712
        yield f"{_cells(stale)} of earlier code than the present one."
    if cuda and set(cells.gpus) == {1}:
        yield "One GPU: nothing is sharded and nothing communicated; this says nothing of several."
    if cells.seed.nunique() == 1:
        yield "One run per cell: nothing here tells a difference from chance."
    if bad := (~cells.status.isin(["ok", "unsupported", ""])).sum():
        yield f"{_cells(bad)} that did not end well, listed under Failures."
    flagged = sum(len(certificate.flagged) for certificate in record.certificates)
    if flagged:
        yield (
            f"Settings or surroundings differ in {flagged} ways that nothing explains; see "
            "Settings."
        )
    faulty = cells[cells.device_faults != ""]
    if len(faulty):
        rules = names_of_rules(
            reason for reasons in faulty.device_faults for reason in reasons.split("; ")
        )
        yield (
            f"{_cells(len(faulty))} excluded for a device fault ({', '.join(rules)}); see Failures."
        )
    unchecked = Counter(
        rule for unknown in cells.unknown for rule in unchecked_rules(unknown.split("; "))
    )
    # It needs control cells, which most matrices do not plan.
    del unchecked["input-bound"]
    if unchecked:
        names = ", ".join(f"{rule} ({_cells(count)})" for rule, count in unchecked.most_common())
        yield f"Could not be checked: {names}; the column unknown of cells.csv says why."
    reported = cells[cells.status != ""]
    unproven = reported[~reported.parity.isin(["passed", "unsupported"])].strategy.unique()
    if len(unproven):
        names = ", ".join(map(label_of, sorted(unproven)))
        yield f"Not shown to be the same training somewhere: {names}; see Parity."
    if imprecise := int(cells.labels.str.contains(r"(?:^|; )imprecise:").sum()):
        yield f"{_cells(imprecise)} whose window ended at its cap before the figure was precise."
    if record.steady_min_s < LONG_ENOUGH_S:
        yield (
            f"Timed over windows of {record.steady_min_s:g} s or more; under {LONG_ENOUGH_S:g} s "
            "energy and drift say little."
        )
    if not cuda:
        yield "Measured on CPUs: this shows that the workflow works, and nothing about GPUs."


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def _workload(name: str, tables: Tables, findings: Findings, figures: Path) -> WorkloadPart:
    record = tables.record
    cells, parity, comparisons, scaling = (
        table[table.workload == name]
        for table in (tables.cells, tables.parity, findings.comparisons, findings.scaling)
    )
    verdicts = [verdict for verdict in findings.verdicts if verdict.workload == name]
    shown, not_drawn = _figures(cells, record.baseline, figures)
    return WorkloadPart(
        name=name,
        definition=record.workloads[name],
        decisions=decision_table(verdicts, record.device),
        verdicts=[
            (describe_gpus(record.device, one.gpus), sentences(one, comparisons))
            for one in verdicts
        ],
        comparisons=list(comparison_tables(comparisons, record.device)),
        scaling=scaling_table(scaling, tables.strategies),
        tables=list(
            summary_tables(summarise(cells, comparisons, record.baseline), record.baseline)
        ),
        figures=shown,
        not_drawn=not_drawn,
        outcomes=_link(figures / f"{OUTCOMES}.svg"),
        grid=outcome_table(cells),
        parity=parity_table(parity),
        certificates=[
            one for one in record.certificates if one.workload == name and one.strategies
        ],
    )


def describe_comparison(cells: pd.DataFrame, baseline: str) -> str:
    """What every figure of a workload needs beside its caption: baseline, n and scaling.

    Args:
        cells: rows of cells.csv of the workload.
        baseline: the strategy that the others are compared with.
    """
    ok = cells[cells.status == "ok"]
    runs = counted(cells).groupby(["strategy", "gpus"]).size()
    spread = f"n = {runs.min()}" if runs.nunique() == 1 else f"n = {runs.min()} to {runs.max()}"
    scaling = ", ".join(f"{name} scaling ({SCALING[name]})" for name in cells.scaling.unique())
    out = int((ok.excluded != "").sum())
    left_out = f" {out} of {len(ok)} runs not compared." if out else ""
    return f"Baseline: {label_of(baseline)}; {spread} runs of each; {scaling}.{left_out}"


def _figures(cells: pd.DataFrame, baseline: str, folder: Path) -> tuple[list[Shown], list[str]]:
    """The figures that could be drawn, and of the others the title with the reason."""
    not_drawn: dict[str, str] = {}
    for file in sorted(folder.glob(f"{NOT_DRAWN}*.json")):
        not_drawn |= json.loads(file.read_text())
    comparison = describe_comparison(cells, baseline)
    shown = []
    for name, title in FIGURES.items():
        if name in not_drawn:
            continue
        path = folder / f"{name}.svg"
        image = base64.b64encode(path.read_bytes()).decode()
        text = f"{caption(name)} {comparison}"
        shown.append(Shown(title, text, f"data:image/svg+xml;base64,{image}", _link(path)))
    return shown, [f"{FIGURES[name]}: {reason}" for name, reason in not_drawn.items()]


def _link(path: Path) -> str:
    """Relative to the page, which stands beside the figures' folder."""
    return "/".join(path.with_suffix(".pdf").parts[-3:])
