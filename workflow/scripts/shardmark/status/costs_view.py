"""Show the costs of a matrix as text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from shardmark.config.schema import Config
from shardmark.controller.progress import duration
from shardmark.status.costs import Costs, Job


def cost_lines(config: Config, costs: Costs, width: int) -> Iterator[str]:
    """Yield lines with what is left to run, by workload and GPU count, and the total cost.

    Args:
        config: the matrix.
        costs: its costs.
        width: number of columns.
    """
    cells, searches = costs.cells, costs.searches
    others = len(costs.jobs) - len(cells) - len(searches)
    yield (
        f"results/{config.run}: {len(cells)} of {costs.planned} cells are left to run, and "
        f"{others} jobs of the parity gate"
        + (" and for pinned blocks" if config.cluster.block == "pinned" else "")
        + (f", and {len(searches)} searches for a largest batch" if searches else "")
    )
    if not costs.jobs:
        return
    for title, kind, jobs in (
        ("workload", "cells", cells),
        ("largest batch", "searches", searches),
    ):
        if jobs:
            heads = (title, "GPUs", kind, "nodes", "time limit", "likely")
            yield ""
            yield from _table(heads, *_size_rows(config, jobs))
    yield ""
    unit = "GPU-hours" if costs.cluster.device == "cuda" else "process-hours"
    yield from _table(
        ("", "jobs", "node-hours", unit),
        ("at worst, each job until its limit", *_sum_columns(costs, lambda job: job.worst_s)),
        ("likely", *_sum_columns(costs, lambda job: job.likely_s or 0.0)),
    )
    yield ""
    for remark in _remarks(costs, unit):
        yield from textwrap.wrap(remark, width, break_long_words=False, break_on_hyphens=False)


def _size_rows(config: Config, jobs: Sequence[Job]) -> Iterator[tuple[str, ...]]:
    """Yield a row per workload and GPU count of these cells or searches."""
    for workload in config.matrix.workloads:
        for gpus in config.matrix.gpus:
            same_size = [
                (job, cell)
                for job in jobs
                if (cell := job.trained) and (cell.workload, cell.gpus) == (workload, gpus)
            ]
            if same_size:
                job, cell = same_size[0]
                likely = [job.likely_s for job, _ in same_size if job.likely_s is not None]
                yield (
                    workload,
                    str(gpus),
                    str(len(same_size)),
                    str(cell.nodes),
                    f"{job.limit_minutes} min",
                    duration(median(likely)) if likely else "?",
                )


def _sum_columns(costs: Costs, seconds: Callable[[Job], float]) -> tuple[str, ...]:
    hours = sum(job.charged * seconds(job) for job in costs.jobs) / 3600
    return (
        str(len(costs.jobs)),
        _format_hours(hours / costs.cluster.gpus_per_node),
        _format_hours(hours),
    )


def _remarks(costs: Costs, unit: str) -> Iterator[str]:
    likely = [(job, job.likely_s) for job in costs.jobs if job.likely_s is not None]
    charged = sum(job.charged * seconds for job, seconds in likely) / 3600
    idle = sum((job.charged - job.gpus) * seconds for job, seconds in likely) / 3600
    if idle:
        count = sum(job.charged > job.gpus for job in costs.jobs)
        yield (
            f"{count} jobs use a part of a node and are charged for all of it "
            f"(cluster.slurm_extra: --exclusive): in {_format_hours(idle)} of the likely "
            f"{_format_hours(charged)} {unit} the GPU is idle"
        )
    unknown = sorted(
        {job.cell.workload for job in costs.cells if job.cell and job.likely_s is None}
    )
    more_than = "more than " if unknown else ""
    one_by_one = f"{more_than}{duration(costs.one_by_one_s)}"
    yield f"One after another on one machine (profiles/local): {one_by_one}"
    measured = sum(job.measured for job in costs.cells)
    expected = sum(not job.measured and job.likely_s is not None for job in costs.cells)
    yield (
        f"The likely time of {measured} cells is estimated from results of the same workload and "
        f"GPU count, that of {expected} from cluster.expected_items_per_s"
    )
    if costs.cells:
        yield "Each cell is counted as one job, also if groups in the profile let cells share jobs"
    if costs.searches:
        worst = sum(job.charged * job.worst_s for job in costs.searches) / 3600
        yield (
            f"A search may take cluster.time_limit_minutes. All searches until their limit are "
            f"{_format_hours(worst)} {unit} of those at worst"
        )
    if unknown:
        yield (
            f"The likely sums leave out {', '.join(unknown)}, of whose speed nothing is known: run "
            "one cell of each GPU count, or name them in cluster.expected_items_per_s"
        )


def _format_hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def _table(*rows: tuple[str, ...]) -> Iterator[str]:
    """Yield table rows: the first column left-aligned, numbers right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *numbers in rows:
        aligned = [one.rjust(width) for one, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([label.ljust(widths[0]), *aligned])
