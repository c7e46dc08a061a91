"""The contents of the report page, as plain data for its template."""

from __future__ import annotations

import base64
import itertools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from shardmark.measurement.validity import labels_in_words, rules_in_words
from shardmark.quantities import describe_gpus, describe_scaling
from shardmark.report.answer import BADGES, Answer, make_answer
from shardmark.report.captions import HeadlineData, headline
from shardmark.report.caveats import caveats
from shardmark.report.contents import (
    CSV_TABLES,
    FIGURES,
    GROUPS,
    NOT_DRAWN,
    SECTIONS,
    caption,
    figure_title,
)
from shardmark.report.failures import group_by_cause
from shardmark.report.largest_batch_table import largest_batch_table
from shardmark.report.memory_bars import MemoryBars, memory_bars
from shardmark.report.overview import (
    MILLION_ITEMS,
    PRICE_PER_HOUR,
    overview_tables,
)
from shardmark.report.page_tables import (
    comparison_tables,
    describe_replicas,
    differing_settings,
    memory_table,
    outcome_table,
    parity_table,
    raw_table,
    same_settings,
    scaling_table,
    step_table,
    strategies_by_value,
)
from shardmark.report.sentences import join_names
from shardmark.report.table import Table
from shardmark.results.cell_rows import QUANTITIES
from shardmark.results.certificate import Certificate
from shardmark.results.collected import Tables
from shardmark.results.outcome import Outcome
from shardmark.statistics.eligibility import counted, include_excluded_runs
from shardmark.statistics.findings import Findings
from shardmark.strategies import label_of

# The first screen has room for so many; the section Failures has all.
FIRST_CAVEATS = 3
# The overlays that come with shardmark, and the files that they name.
SHIPPED = (
    *("config/checks.yaml", "config/config.yaml", "config/demo.yaml", "config/eight_gpus.yaml"),
    *("config/four_gpus.yaml", "config/incumbent.yaml", "config/one_gpu.yaml"),
    *("config/pilot.yaml", "config/two_gpus.yaml"),
    *("docs/examples/hugging_face.py", "docs/examples/hugging_face.yaml"),
    *("docs/examples/one_all_reduce.py", "docs/examples/one_all_reduce.yaml"),
)


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        name: the name of its file and of its anchor.
        headline: its main result in one sentence.
        caption: how to read it.
        image: the picture itself, as a data URI.
        size: width and height, so that the browser reserves the space before it decodes the image.
        file: the path of its PDF, relative to the page.
    """

    name: str
    title: str
    headline: str
    caption: str
    image: str
    size: tuple[int, int]
    file: str


@dataclass(frozen=True)
class WorkloadPart:
    """The contents of the page about one workload."""

    name: str
    definition: str
    unit: str
    answer: Answer
    tables: list[tuple[str, Table]]
    tables_with_excluded: list[tuple[str, Table]]
    picture: Picture | None
    figures: Mapping[str, list[Picture]]
    not_drawn: list[str]
    comparisons: list[tuple[Table, Table]]
    scaling: Table
    memory_bars: MemoryBars | None
    memory: Table
    largest_batch: Table
    steps: Table
    grid: Table
    parity: Table
    same_model: str
    certificates: list[Certificate]


def page_context(
    tables: Tables,
    findings: Findings,
    with_excluded: Findings,
    figures: Path,
    margin: float,
    command: str,
) -> dict[str, Any]:
    """Return everything that the template reads.

    Args:
        tables: results of ``collect``.
        findings: results of ``compare``.
        with_excluded: the same where excluded runs count, too.
        figures: the folder with a folder of figures for each workload.
        margin: the margin of equivalence, as a share.
        command: the command that runs this matrix.
    """
    record, cells = tables.record, tables.cells
    notes = list(caveats(tables))
    workloads = [
        _workload(name, tables, findings, with_excluded, figures / name)
        for name in record.workloads
    ]
    badges = {workload.answer.badge for workload in workloads}
    return {
        "run": record.run,
        "identity": identity(tables),
        "command": command,
        "commits": sorted({commit for commit in cells.git_commit if commit}),
        "own_files": own_files(command, record.config),
        "on_gpus": record.device == "cuda",
        "million_items": MILLION_ITEMS,
        "price": f"{PRICE_PER_HOUR:.2f}",
        "workloads": workloads,
        "badges": {badge: meaning for badge, meaning in BADGES.items() if badge in badges},
        "caveats": notes,
        "first_caveats": notes[:FIRST_CAVEATS],
        "causes": group_by_cause(cells, tables.failures),
        "outcomes": [outcome for outcome in Outcome if (cells.outcome == outcome).any()],
        "environment": record.environment,
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        "cells": raw_table(cells),
        "rules": rules_in_words(),
        "label_rules": labels_in_words(),
        "margin_pct": f"{100 * margin:g}",
        "labels": {name: label_of(name) for name in tables.strategies},
        "exports": CSV_TABLES,
        "same_settings": same_settings,
        "differing_settings": differing_settings,
        "strategies_by_value": strategies_by_value,
        "describe_replicas": describe_replicas,
    }


def own_files(command: str, config: Mapping[str, Any]) -> list[str]:
    """Return the overlays and files that a matrix needs and a clone of shardmark does not have."""
    rest = itertools.dropwhile(lambda word: word != "--configfile", shlex.split(command))
    overlays = list(itertools.takewhile(lambda word: not word.startswith("-"), [*rest][1:]))
    definitions = [
        definition
        for section in ("workloads", "strategies")
        for definition in (config.get(section) or {}).values()
    ]
    files = [*overlays, *(one["file"] for one in definitions if one.get("file"))]
    return [file for file in files if file not in SHIPPED]


def identity(tables: Tables) -> list[str]:
    """Return what was measured, where and when, in a few words each."""
    cells, record = tables.cells, tables.record
    parts = []
    for name, subject in record.subjects.items():
        precision = cells[cells.workload == name].precision.iloc[0]
        parts.append(f"{subject}, {precision}")
    parts = list(dict.fromkeys(parts))
    *others, most = sorted(int(count) for count in cells.gpus.unique())
    counts = join_names([*map(str, others), describe_gpus(record.device, most)])
    names = {name for text in cells.device_names for name in text.split(";") if name}
    devices = "CPU" if record.device == "cpu" else " / ".join(sorted(names))
    parts.append(f"{counts} ({devices})" if devices else counts)
    seeds = cells.seed.nunique()
    parts.append(f"{seeds} seed{'' if seeds == 1 else 's'}")
    dates = sorted({text[:10] for text in cells.started_at if text})
    parts += [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []
    commits = sorted({commit[:9] for commit in cells.git_commit if commit})
    parts += [f"commit {', '.join(commits)}"] if commits else []
    verdicts = _verdicts(tables.parity, ["workload", "strategy"])
    passed = _passed(verdicts)
    counts = "" if passed == len(verdicts) else f" by {passed} of {len(verdicts)}"
    parts += [f"parity gate passed{counts}"] if len(verdicts) else []
    return parts


def _verdicts(parity: pd.DataFrame, by: str | list[str]) -> pd.Series:
    """The gate's verdicts on each strategy, over all GPU counts where it can run."""
    possible = parity[parity.verdict != "unsupported"]
    return possible.groupby(by, sort=False).verdict.agg(set)


def _passed(verdicts: pd.Series) -> int:
    """How many strategies passed at every GPU count."""
    return int((verdicts == {"passed"}).sum())


def _workload(
    name: str,
    tables: Tables,
    findings: Findings,
    with_excluded: Findings,
    figures: Path,
) -> WorkloadPart:
    record = tables.record
    cells, parity, largest, comparisons, scaling = (
        table[table.workload == name]
        for table in (
            *(tables.cells, tables.parity, tables.largest_batches),
            *(findings.comparisons, findings.scaling),
        )
    )
    verdicts = [verdict for verdict in findings.verdicts if verdict.workload == name]
    answer = make_answer(name, cells, record, verdicts, scaling, largest)
    pictures, not_drawn = _figures(cells, findings, answer, record.baseline, figures)
    placed = {"answer", *(figure for names in SECTIONS.values() for figure in names)}
    sections = {
        section: [pictures[figure] for figure in names if figure in pictures]
        for section, names in SECTIONS.items()
    }
    sections["details"] = [picture for figure, picture in pictures.items() if figure not in placed]
    all_cells = include_excluded_runs(cells)
    differ = (all_cells.excluded != cells.excluded).any()
    return WorkloadPart(
        name=name,
        definition=record.workloads[name],
        unit=cells.unit.iloc[0],
        answer=answer,
        tables=overview_tables(cells, findings, record.baseline),
        tables_with_excluded=overview_tables(all_cells, with_excluded, record.baseline)
        if differ
        else [],
        picture=pictures.get("answer"),
        figures=sections,
        not_drawn=not_drawn,
        comparisons=list(comparison_tables(comparisons, record.device)),
        scaling=scaling_table(scaling, tables.strategies, record.device),
        memory_bars=memory_bars(cells),
        memory=memory_table(cells),
        largest_batch=largest_batch_table(largest, record.device),
        steps=step_table(cells),
        grid=outcome_table(cells),
        parity=parity_table(parity),
        same_model=same_model(parity),
        certificates=[
            certificate
            for certificate in record.certificates
            if certificate.workload == name and certificate.strategies
        ],
    )


def same_model(parity: pd.DataFrame) -> str:
    """Return how many strategies train the same model at every GPU count."""
    verdicts = _verdicts(parity, "strategy")
    names: dict[str, list[str]] = {"not proven for": [], "not yet checked:": []}
    for name, each in verdicts.items():
        if each != {"passed"}:
            words = "not yet checked:" if each <= {"passed", "missing"} else "not proven for"
            names[words].append(label_of(str(name)))
    text = f"{_passed(verdicts)} of {len(verdicts)} train the same model"
    if ((parity.verdict == "passed") & (parity.reason != "")).any():
        text += " (a small version of it)"
    others = [f"{words} {', '.join(labels)}" for words, labels in names.items() if labels]
    return "; ".join([text, *others])


def describe_comparison(cells: pd.DataFrame, baseline: str) -> str:
    """Return what the captions of a workload add to every figure: baseline, n and scaling.

    Args:
        cells: rows of cells.csv of the workload.
        baseline: the strategy that the others are compared with.
    """
    ok = cells[cells.status == "ok"]
    runs = counted(cells).groupby(["strategy", "gpus"]).size()
    spread = f"n = {runs.min()}" if runs.nunique() == 1 else f"n = {runs.min()} to {runs.max()}"
    scaling = ", ".join(map(describe_scaling, cells.scaling.unique()))
    out = int((ok.excluded != "").sum())
    left_out = f" {out} of {len(ok)} runs are not compared." if out else ""
    return f"Baseline: {label_of(baseline)}; {spread} runs of each; {scaling}.{left_out}"


def _figures(
    cells: pd.DataFrame, findings: Findings, answer: Answer, baseline: str, folder: Path
) -> tuple[dict[str, Picture], list[str]]:
    """Return the drawn figures, and for each of the others its title with the reason.

    The figure of a score that the workload does not have is left out without a word.
    """
    not_drawn: dict[str, str] = {}
    place = {name: folder / group for group, names in GROUPS.items() for name in names}
    for group in GROUPS:
        not_drawn |= json.loads((folder / group / f"{NOT_DRAWN}.json").read_text())
    comparison = describe_comparison(cells, baseline)
    data = HeadlineData.of(cells, findings)
    pictures = {}
    titles = {name: figure_title(name, cells.device.iloc[0]) for name in FIGURES}
    for name, title in titles.items():
        if name in not_drawn:
            continue
        path = place[name] / f"{name}.svg"
        svg = path.read_text(encoding="utf-8")
        image = base64.b64encode(svg.encode()).decode()
        pictures[name] = Picture(
            name=name,
            title=title,
            headline=answer.lead if name == "answer" else headline(name, data),
            caption=f"{caption(name)} {comparison}",
            image=f"data:image/svg+xml;base64,{image}",
            size=_size(svg),
            file="/".join(path.with_suffix(".pdf").parts[-4:]),
        )
    optional = {quantity.figure for quantity in QUANTITIES.values() if quantity.optional}
    missing = {name: reason for name, reason in not_drawn.items() if name not in optional}
    return pictures, [f"{titles[name]}: {reason}" for name, reason in missing.items()]


def _size(svg: str) -> tuple[int, int]:
    """Return width and height of an SVG picture, in its units."""
    _, _, width, height = svg.partition('viewBox="')[2].partition('"')[0].split()
    return round(float(width)), round(float(height))
