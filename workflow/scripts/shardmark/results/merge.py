"""Merge several result sets into one: choose a result for each cell, and report conflicts."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from shardmark.cells import search_title
from shardmark.codebase import STAMP
from shardmark.errors import UserError
from shardmark.files import write_text
from shardmark.metrics import SIDE_FILES, Metrics
from shardmark.results.result_set import (
    Key,
    LargestBatchResult,
    Result,
    ResultSet,
    Verification,
    differences,
)
from shardmark.results.same_code import SameCode
from shardmark.strategies import PACKAGES

Prefer = Literal["none", "first", "last"]
# If sets disagree on parity, the worst verdict counts: one machine on which a strategy does not
# train the same model is enough to doubt it.
WORST_FIRST = ("failed", "error", "unsupported", "passed")

# job.log is Snakemake's log of the cell's job.
COPIED = (*SIDE_FILES, STAMP, "job.log")


@dataclass
class Merged:
    """The merged set.

    Attributes:
        results: one result per cell.
        verifications: one result of the parity gate per workload, strategy and GPU count.
        batches: one largest batch per workload, strategy and GPU count.
        duplicates: cells with identical results in several sets, counted once.
        conflicts: cells, parity results or largest batches that differ between sets, and which one
            was chosen.
        notes: versions that differ; comparisons will refuse to mix them.
    """

    results: list[Result] = field(default_factory=list)
    verifications: list[Verification] = field(default_factory=list)
    batches: list[LargestBatchResult] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merge(sets: Sequence[ResultSet], prefer: Prefer = "none") -> Merged:
    """Choose one result for each cell.

    Args:
        sets: the result sets, in the order in which they were named.
        prefer: which of two different results of a cell to take; ``none`` refuses to choose.

    Raises:
        UserError: naming every cell that is defined differently, or that has different results
            and ``prefer`` is ``none``.
    """
    check_same_definitions([result for result_set in sets for result in result_set.results])
    merged = Merged(notes=version_notes(sets))
    by_key: dict[Key, list[Result]] = {}
    for result_set in sets:
        for result in result_set.results:
            by_key.setdefault(result.key, []).append(result)
    for results in by_key.values():
        distinct = _distinct(results)
        chosen = distinct[-1 if prefer == "last" else 0]
        merged.results.append(chosen)
        title = chosen.cell.title
        if len(distinct) > 1:
            kept = "" if prefer == "none" else f"; kept {chosen.path}"
            merged.conflicts.append(f"{title}: {_results_in_words(distinct)}{kept}")
        elif len(results) > 1:
            merged.duplicates.append(f"{title}: {' and '.join(str(one.path) for one in results)}")
    if merged.conflicts and prefer == "none":
        raise UserError(
            "the sets hold different results of the same cell. The run of a seed counts once: "
            "repeat with other seeds (matrix.seeds) to have more runs, leave one set out, or "
            "choose with --prefer first or --prefer last:\n" + _lines(merged.conflicts)
        )
    _choose_verifications(sets, merged)
    _choose_batches(sets, merged)
    return merged


def _choose_verifications(sets: Sequence[ResultSet], merged: Merged) -> None:
    by_case: dict[tuple[str, str, int], list[Verification]] = {}
    for result_set in sets:
        for item in result_set.verifications:
            by_case.setdefault(item.key, []).append(item)
    for (workload, strategy, ranks), items in by_case.items():
        worst = min(items, key=lambda item: WORST_FIRST.index(item.parity.status))
        merged.verifications.append(worst)
        if len({item.parity.case_sha256 for item in items}) > 1:
            paths = ", ".join(str(item.path) for item in items)
            merged.conflicts.append(
                f"parity of {workload} {strategy} ranks{ranks}: the gate is defined in several "
                f"ways in {paths}; kept {worst.path}. It counts only in a configuration that "
                "defines the gate the same way."
            )
        elif len({item.parity.status for item in items}) > 1:
            statuses = ", ".join(f"{item.parity.status} in {item.path}" for item in items)
            merged.conflicts.append(
                f"parity of {workload} {strategy} ranks{ranks}: {statuses}; kept {worst.path}"
            )


def _choose_batches(sets: Sequence[ResultSet], merged: Merged) -> None:
    """Choose the smallest of several largest batches, because it fits on all the machines."""
    by_search: dict[tuple[str, str, int], list[LargestBatchResult]] = {}
    for result_set in sets:
        for item in result_set.batches:
            by_search.setdefault(item.key, []).append(item)
    for key, items in by_search.items():
        smallest = min(items, key=lambda item: item.largest.micro_batch or 0)
        merged.batches.append(smallest)
        if len({(item.largest.search_sha256, item.largest.micro_batch) for item in items}) > 1:
            batches = ", ".join(
                f"{item.largest.micro_batch or item.largest.status} in {item.path}"
                for item in items
            )
            merged.conflicts.append(
                f"{search_title(*key)}: {batches}; kept {smallest.path}. It counts only in a "
                "configuration that defines the search the same way."
            )


def check_same_definitions(results: Iterable[Result]) -> None:
    """Check that a name means the same in all sets.

    A workload must be trained and measured in the same way, a strategy must have the same options,
    and a GPU count must span the same number of nodes.

    Raises:
        UserError: naming every difference.
    """
    parts: list[tuple[str, Callable[[Result], Any], Callable[[Result], dict[str, Any]]]] = [
        ("workload", lambda one: one.cell.workload, _training),
        ("strategy", lambda one: one.cell.strategy, _options),
        ("GPU count", lambda one: (one.cell.workload, one.cell.gpus), _nodes),
    ]
    lines: dict[str, None] = {}
    for title, read_name, read_definition in parts:
        first: dict[Any, tuple[Result, dict[str, Any]]] = {}
        for result in results:
            name, definition = read_name(result), read_definition(result)
            before, first_definition = first.setdefault(name, (result, definition))
            for change in differences(first_definition, definition):
                title_of_name = name if isinstance(name, str) else " gpus".join(map(str, name))
                where = f"{before.folder} -> {result.folder}"
                lines[f"{title} {title_of_name}: {change} ({where})"] = None
    if lines:
        raise UserError(
            "the sets do not mean the same by the same name; rename in the configuration of one "
            "and run it again, or leave it out:\n" + _lines(lines)
        )


def _training(result: Result) -> dict[str, Any]:
    cell = result.cell
    return {
        "definition": cell.definition.model_dump(mode="json", by_alias=True),
        "measure": cell.measure.model_dump(mode="json"),
        "device": cell.device,
    }


def _options(result: Result) -> dict[str, Any]:
    return {"base": result.cell.base, "options": result.cell.options}


def _nodes(result: Result) -> dict[str, Any]:
    return {"nodes": result.cell.nodes, "gpus_per_node": result.cell.gpus_per_node}


def version_notes(sets: Sequence[ResultSet]) -> list[str]:
    """Return a note for each version that differs between the sets."""
    all_metrics = [result.metrics for one in sets for result in one.results]
    versions = [_versions(metrics) for metrics in all_metrics]
    rows = [(one.provenance.get("git_commit"), one.code_sha256) for one in all_metrics]
    same_code = SameCode(pd.DataFrame(rows, columns=["git_commit", "code_sha256"]))
    for known in versions:
        if commit := known["git_commit"]:
            known["git_commit"] = same_code.of(commit)
    notes = []
    for name in ("torch", "driver", *PACKAGES, "git_commit"):
        values = {version for known in versions if (version := known[name])}
        if len(values) > 1:
            notes.append(f"{name.replace('_', ' ')}: {', '.join(sorted(values))}")
    return [*notes, *_code_notes([result for one in sets for result in one.results])]


def _code_notes(results: Iterable[Result]) -> Iterator[str]:
    """Yield a note for each workload with strategies whose code differs between results.

    The commit does not say this: a user's own file may be in no repository.
    """
    codes: dict[str, dict[str, set[str]]] = {}
    for result in results:
        of_workload = codes.setdefault(result.cell.workload, {})
        of_workload.setdefault(result.cell.strategy, set()).add(result.metrics.code_sha256)
    for workload, by_strategy in codes.items():
        names = [name for name, known in by_strategy.items() if len(known) > 1]
        if names:
            yield f"code that trained {workload} with {', '.join(names)}"


def _versions(metrics: Metrics) -> dict[str, str | None]:
    versions = metrics.environment.get("versions", {})
    used = ("torch", *metrics.cell.packages)
    return {
        **dict.fromkeys(PACKAGES),
        **{name: versions.get(name) for name in used},
        "driver": metrics.environment.get("driver"),
        "git_commit": metrics.provenance.get("git_commit"),
    }


def write_merged(merged: Merged, folder: Path, sources: Sequence[Path]) -> None:
    """Write the merged set atomically.

    Only the files that a run leaves beside a metrics.json are copied. The metrics.json gets the
    name of the new run, and its provenance says where it came from.

    Args:
        merged: what to write.
        folder: the target, usually results/<run>; its name becomes the name of the run.
        sources: folders of the sets, for the record in merged.json.

    Raises:
        UserError: if the folder exists and is not empty.
    """
    not_empty = UserError(f"{folder}: is not empty; delete it, or name another folder")
    if folder.exists() and any(folder.iterdir()):
        raise not_empty
    # Another merge into the same folder may run at the same time.
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        for result in merged.results:
            _write_result(result, partial, folder.name)
        for item in merged.verifications:
            case = partial / "parity" / item.parity.workload / item.parity.strategy
            case.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(item.path, case / f"ranks{item.parity.ranks}.json")
        for one in merged.batches:
            strategy = partial / "largest_batch" / one.largest.workload / one.largest.strategy
            strategy.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.path, strategy / f"gpus{one.largest.gpus}.json")
        write_text(partial / "merged.json", merge_record(merged, sources))
        # Replaces an empty folder, and no other.
        partial.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise not_empty from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_result(result: Result, partial: Path, run: str) -> None:
    cell = result.cell.model_copy(update={"run": run})
    target = partial / cell.folder.relative_to(Path("results", run))
    target.mkdir(parents=True)
    for pattern in COPIED:
        for path in filter(Path.is_file, result.path.parent.glob(pattern)):
            shutil.copyfile(path, target / path.name)
    origin = {
        "run": result.cell.run,
        "path": str(result.path),
        "cell_sha256": result.metrics.cell_sha256,
    }
    metrics = result.metrics.model_copy(
        update={
            "cell": cell,
            "cell_sha256": cell.fingerprint(),
            "provenance": result.metrics.provenance | {"merged_from": origin},
        }
    )
    write_text(target / "metrics.json", metrics.model_dump_json(indent=1, by_alias=True))


def merge_record(merged: Merged, sources: Sequence[Path]) -> str:
    """Return what was merged, as JSON."""
    return json.dumps(
        {
            "sources": [str(source) for source in sources],
            "cells": len(merged.results),
            "duplicates": merged.duplicates,
            "conflicts": merged.conflicts,
            "versions_that_differ": merged.notes,
        },
        indent=1,
    )


def _distinct(results: Sequence[Result]) -> list[Result]:
    distinct: list[Result] = []
    for result in results:
        if all(_content(result.metrics) != _content(one.metrics) for one in distinct):
            distinct.append(result)
    return distinct


def _content(metrics: Metrics) -> dict[str, Any]:
    """Return a result without the name of its run, which merging changes."""
    content = metrics.model_dump(mode="json", by_alias=True, exclude={"cell_sha256"})
    content["cell"].pop("run")
    content["cell"].pop("data_dir")
    content["provenance"].pop("merged_from", None)
    return content


def _results_in_words(results: Sequence[Result]) -> str:
    return ", ".join(f"{_figure(result.metrics)} in {result.path}" for result in results)


def _figure(metrics: Metrics) -> str:
    if metrics.throughput is None:
        return metrics.status
    return f"{metrics.throughput.items_per_s:,.0f} {metrics.throughput.unit}/s"


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(f"  {text}" for text in texts)
