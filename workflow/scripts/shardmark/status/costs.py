"""Estimate the worst and the likely cost of the rest of a matrix: jobs, node-hours, GPU-hours."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from shardmark.cells import BatchSearch, Cell, ParityCase, parity_case, sizes_of
from shardmark.config.schema import Cluster, Config
from shardmark.errors import UserError
from shardmark.metrics import Metrics, read_metrics
from shardmark.results.matrix import read_matrix
from shardmark.results.searches import read_searches
from shardmark.slurm.job_request import PIN_MINUTES, SPARE_MINUTES
from shardmark.status.gate_status import current_verdict
from shardmark.time_limits import (
    GATE_MINUTES,
    GATE_S,
    START_S,
    expected_s,
    limit_minutes,
    search_s,
)

# Time that a Slurm job takes before the cell starts, because Snakemake starts twice in it.
SNAKEMAKE_S = 10.0

# Workload, GPU count, strategy; an empty strategy stands for all strategies together.
Kind = tuple[str, int, str]


@dataclass(frozen=True)
class Job:
    """One job of the matrix.

    Attributes:
        gpus: GPUs that it uses.
        charged: GPUs that a cluster charges for; all GPUs of its nodes if they are exclusive.
        worst_s: seconds until its time limit.
        likely_s: seconds that it probably takes; None if its workload's speed is unknown.
        cell: the cell, if the job is one.
        search: the search for the largest batch, if the job is one.
        measured: whether the likely time comes from existing results.
    """

    gpus: int
    charged: int
    worst_s: float
    likely_s: float | None
    cell: Cell | None = None
    search: BatchSearch | None = None
    measured: bool = False

    @property
    def trained(self) -> Cell | None:
        """Return the cell, or the search's cell with the smallest batch; None for other jobs."""
        return self.search.cell if self.search else self.cell

    @property
    def limit_minutes(self) -> int:
        """Return the minutes after which it ends itself; Slurm's limit comes later."""
        return round(self.worst_s / 60) - SPARE_MINUTES


@dataclass(frozen=True)
class Pace:
    """How fast similar cells were.

    Attributes:
        items_per_s: images or tokens per second per GPU.
        start_s: seconds in which they neither trained nor measured.
    """

    items_per_s: float
    start_s: float


@dataclass(frozen=True)
class Costs:
    """What is left to run of a matrix.

    Attributes:
        planned: number of cells of the matrix that can run.
        jobs: the jobs left: cells without a result, the parity gate, pinned blocks, searches.
        cluster: the machines.
    """

    planned: int
    jobs: list[Job]
    cluster: Cluster

    @property
    def cells(self) -> list[Job]:
        """Return the jobs that are cells."""
        return [job for job in self.jobs if job.cell is not None]

    @property
    def searches(self) -> list[Job]:
        """Return the jobs that search for a largest batch."""
        return [job for job in self.jobs if job.search is not None]

    @property
    def one_by_one_s(self) -> float:
        """Return the seconds that all jobs of known length take one after another without Slurm."""
        return sum(max(0.0, job.likely_s - SNAKEMAKE_S) for job in self.jobs if job.likely_s)


def estimate_costs(config: Config, root: Path = Path()) -> Costs:
    """Estimate the costs of the cells, parity cases and searches that have no current result."""
    matrix = [one for one in read_matrix(config, root) if not one.cell.unsupported]
    planned = [one.cell for one in matrix]
    to_run = [one.cell for one in matrix if not one.metrics or one.stale]
    paces = _median_paces(to_run, root)
    jobs = [_cell_job(config.cluster, cell, paces) for cell in to_run]
    jobs += _gate_jobs(config, root)
    if config.cluster.block == "pinned":
        blocks = {(cell.workload, cell.gpus, cell.seed): cell.gpus for cell in to_run}
        jobs += [
            Job(gpus, _charged_gpus(config.cluster, gpus), PIN_MINUTES * 60, SNAKEMAKE_S)
            for gpus in blocks.values()
        ]
    jobs += _search_jobs(config, root)
    return Costs(len(planned), jobs, config.cluster)


def _cell_job(cluster: Cluster, cell: Cell, paces: Mapping[Kind, Pace]) -> Job:
    expected = cluster.expected_items_per_s.get(cell.workload)
    pace = paces.get(_kind_of_cell(cell)) or paces.get(_kind_without_strategy(cell))
    measured = pace is not None
    if pace is None and expected is not None:
        pace = Pace(expected, START_S)
    likely = SNAKEMAKE_S + expected_s(cell, pace.items_per_s, pace.start_s) if pace else None
    worst = (limit_minutes(cluster, cell) + SPARE_MINUTES) * 60
    return Job(cell.gpus, _charged_gpus(cluster, cell.gpus), worst, likely, cell, measured=measured)


def _charged_gpus(cluster: Cluster, gpus: int) -> int:
    nodes = -(-gpus // cluster.gpus_per_node)
    is_exclusive = nodes > 1 or any(
        option.split("=")[0] == "--exclusive" for option in shlex.split(cluster.slurm_extra)
    )
    return nodes * cluster.gpus_per_node if is_exclusive else gpus


def _gate_jobs(config: Config, root: Path) -> Iterator[Job]:
    """Yield the parity cases without a current verdict, and one oracle per workload and size."""
    sizes: set[tuple[str, int]] = set()
    for workload, strategy, gpus in sizes_of(config):
        case = parity_case(config, workload, strategy, gpus)
        if case.cell.unsupported or _is_judged(case, root):
            continue
        sizes.add((workload, gpus))
        yield _gate_job(config.cluster, gpus)
    for _ in sizes:
        yield _gate_job(config.cluster, 1)


def _gate_job(cluster: Cluster, gpus: int) -> Job:
    # As in resources.smk: if Slurm does not assign GPUs, these jobs have their nodes to themselves.
    charged = _charged_gpus(cluster, gpus) if cluster.gpus_unassigned else gpus
    return Job(gpus, charged, (GATE_MINUTES + SPARE_MINUTES) * 60, SNAKEMAKE_S + GATE_S)


def _search_jobs(config: Config, root: Path) -> Iterator[Job]:
    """Yield the searches for a largest batch that have no current result."""
    worst = (config.cluster.time_limit_minutes + SPARE_MINUTES) * 60
    for one in read_searches(config, root):
        search = one.search
        if not search.cell.unsupported and (one.largest is None or one.stale):
            charged = _charged_gpus(config.cluster, search.cell.gpus)
            likely = SNAKEMAKE_S + search_s(search)
            yield Job(search.cell.gpus, charged, worst, likely, search=search)


def _is_judged(case: ParityCase, root: Path) -> bool:
    try:
        return current_verdict(case, root) is not None
    except UserError:
        return False


def _kind_of_cell(cell: Cell) -> Kind:
    return cell.workload, cell.gpus, cell.strategy


def _kind_without_strategy(cell: Cell) -> Kind:
    return cell.workload, cell.gpus, ""


def _median_paces(cells: Iterable[Cell], root: Path) -> dict[Kind, Pace]:
    """Return the median pace in results of any run, by kind of cell.

    A result counts if its workload is the same apart from the number of samples and epochs.
    """
    results: dict[Kind, list[Pace]] = {}
    for cell in {_kind_without_strategy(cell): cell for cell in cells}.values():
        pattern = f"results/*/{cell.workload}/*/gpus{cell.gpus}/seed*/metrics.json"
        for path in root.glob(pattern):
            try:
                metrics = read_metrics(path)
            except UserError:
                continue
            if metrics.throughput is not None and _same_speed(metrics.cell, cell):
                pace = Pace(metrics.throughput.items_per_s_per_gpu, _start_s(metrics))
                for kind in (_kind_of_cell(metrics.cell), _kind_without_strategy(cell)):
                    results.setdefault(kind, []).append(pace)
    return {
        kind: Pace(median(one.items_per_s for one in paces), median(one.start_s for one in paces))
        for kind, paces in results.items()
    }


def _same_speed(one: Cell, other: Cell) -> bool:
    """Whether a strategy trains both cells at the same speed on the same machine."""

    def speed_settings(cell: Cell) -> tuple[object, ...]:
        workload = cell.definition
        training = workload.model_dump(include={"model", "precision"})
        data = workload.input_shape, bool(workload.loader_workers)
        return training, data, cell.per_gpu_batch_size, cell.device

    return speed_settings(one) == speed_settings(other)


def _start_s(metrics: Metrics) -> float:
    times = metrics.time_s
    if times is None or times.total_s is None:
        return START_S
    parts = (times.training_s, times.evaluation_s, times.warmup_s, times.steady_s)
    spent = sum(part or 0.0 for part in parts) + metrics.cell.measure.idle_s
    return max(0.0, times.total_s - spent)
