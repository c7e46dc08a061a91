"""Show the state of a matrix as text: grids of its cells and searches, then what failed or runs.

Queued and stale ones and those with a device fault are only counted, since there may be hundreds.
No line is wider than the terminal, except a path, which stays in one piece so that it can be
copied. In a terminal the grid has symbols and colours, and no two states differ only in colour.
Elsewhere it is plain ASCII.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from shardmark.config.schema import Config
from shardmark.controller.progress import duration
from shardmark.results.outcome import Outcome
from shardmark.status.cell_status import CellStatus
from shardmark.status.job_status import FAILED, JobStatus, State
from shardmark.status.matrix_status import MatrixStatus
from shardmark.status.search_status import SearchStatus

RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, DIM = 31, 32, 33, 34, 35, 36, 2


@dataclass(frozen=True)
class Look:
    """How a state is shown: a letter in plain text, a symbol and a colour in a terminal."""

    plain: str
    symbol: str
    colour: int


LOOKS: dict[State, Look] = {
    Outcome.OK: Look("+", Outcome.OK.sign, GREEN),
    Outcome.DEVICE_FAULT: Look("?", Outcome.DEVICE_FAULT.sign, YELLOW),
    "running": Look(">", "▶", CYAN),
    "queued": Look("q", "◔", BLUE),
    **{outcome: Look(outcome.sign, outcome.sign, RED) for outcome in FAILED},
    "interrupted": Look("!", "!", MAGENTA),
    Outcome.REFUSED: Look(Outcome.REFUSED.sign, Outcome.REFUSED.sign, MAGENTA),
    Outcome.STALE: Look("o", Outcome.STALE.sign, YELLOW),
    Outcome.UNSUPPORTED: Look("-", Outcome.UNSUPPORTED.sign, DIM),
    Outcome.MISSING: Look(".", Outcome.MISSING.sign, DIM),
}
# Cells and searches in these states are listed one by one, in this order.
LISTED: tuple[State, ...] = (*FAILED, "interrupted", Outcome.REFUSED, "running")
GAP = "  "
INDENT = "    "

T = TypeVar("T")


class View:
    """The state of a matrix as text.

    Args:
        terminal: whether to use symbols and colours.
        width: number of columns.
    """

    def __init__(self, *, terminal: bool, width: int) -> None:
        self.terminal, self.width = terminal, width

    def lines(self, config: Config, status: MatrixStatus) -> Iterator[str]:
        """Yield the lines of the whole view."""
        number = f"{len(status.cells)} cells"
        yield from self._wrapped(f"results/{config.run}: {number}: {_count_states(status.cells)}")
        if status.searches:
            number = f"{len(status.searches)} searches for the largest batch"
            yield from self._wrapped(f"{number}: {_count_states(status.searches)}")
        yield from self._wrapped(f"controller: {status.controller}")
        for workload in config.matrix.workloads:
            yield ""
            yield from self._grid(config, workload, status.cells)
        for workload in dict.fromkeys(one.search.cell.workload for one in status.searches):
            yield ""
            yield from self._search_grid(workload, status.searches)
        everything: list[CellStatus | SearchStatus] = [*status.cells, *status.searches]
        states = [state for state in LOOKS if any(one.state == state for one in everything)]
        yield ""
        for part in _parts(states, lambda state: len(state) + 2, self.width):
            yield GAP.join(f"{self._mark(state)} {state}" for state in part)
        if any(one.items_per_s for one in status.cells):
            units = {config.workloads[name].unit for name in config.matrix.workloads}
            speeds = " and ".join(f"{unit}/s" for unit in sorted(units))
            yield from self._wrapped(f"{speeds}: the median of the cells that have finished")
        remarks = [*_count_by_reason(everything), *_remarks(status)]
        if remarks:
            yield ""
        for remark in remarks:
            yield from self._wrapped(remark)
        for state in LISTED:
            entries = [one for one in everything if one.state == state]
            if entries:
                yield ""
            for one in entries:
                yield from self._entry(one)

    def _grid(self, config: Config, workload: str, statuses: Sequence[CellStatus]) -> Iterator[str]:
        """Yield the grid: strategies down, GPU counts and seeds across, in parts that fit."""
        matrix = config.matrix
        statuses_of_workload = [one for one in statuses if one.cell.workload == workload]
        marks = {
            (one.cell.strategy, one.cell.gpus, one.cell.seed): self._mark(one.state)
            for one in statuses_of_workload
        }
        speeds = _median_speeds(statuses_of_workload)
        names = max(map(len, matrix.strategies))
        digits = max(len(str(seed)) for seed in matrix.seeds)
        heads = {gpus: _heading(gpus) for gpus in matrix.gpus}
        seeds = {gpus: max(len(heads[gpus]), len(matrix.seeds)) for gpus in matrix.gpus}
        measured = {gpus for _, gpus in speeds}
        speed = f"{config.workloads[workload].unit}/s"
        widths = {
            gpus: seeds[gpus] + (1 + len(speed) if gpus in measured else 0) for gpus in matrix.gpus
        }
        room = self.width - names - len(GAP)
        yield workload
        for part in _parts(matrix.gpus, lambda gpus: widths[gpus], room):
            yield _line("", names, (heads[gpus].ljust(widths[gpus]) for gpus in part))
            for digit in range(digits):
                row = "".join(str(seed).rjust(digits)[digit] for seed in matrix.seeds)
                unit = f" {speed}" if digit == digits - 1 else ""
                columns = (
                    (row.ljust(seeds[gpus]) + unit)[: widths[gpus]].ljust(widths[gpus])
                    for gpus in part
                )
                yield _line("" if digit else "seed", names, columns)
            for strategy in matrix.strategies:
                columns = (
                    "".join(marks.get((strategy, gpus, seed), " ") for seed in matrix.seeds)
                    + " " * (seeds[gpus] - len(matrix.seeds))
                    + speeds.get((strategy, gpus), "").rjust(widths[gpus] - seeds[gpus])
                    for gpus in part
                )
                yield _line(strategy, names, columns)

    def _search_grid(self, workload: str, statuses: Sequence[SearchStatus]) -> Iterator[str]:
        """Yield the searches of a workload: strategies down, GPU counts across."""
        searches = {
            (one.search.cell.strategy, one.search.cell.gpus): one
            for one in statuses
            if one.search.cell.workload == workload
        }
        strategies = list(dict.fromkeys(strategy for strategy, _ in searches))
        counts = list(dict.fromkeys(gpus for _, gpus in searches))
        names = max(map(len, strategies))
        heads = {gpus: _heading(gpus) for gpus in counts}
        batches = {
            gpus: max(len(one.batch) for (_, n), one in searches.items() if n == gpus)
            for gpus in counts
        }
        widths = {gpus: max(len(heads[gpus]), 2 + batches[gpus]) for gpus in counts}
        yield f"{workload}: largest batch per GPU"
        for part in _parts(counts, lambda gpus: widths[gpus], self.width - names - len(GAP)):
            yield _line("", names, (heads[gpus].ljust(widths[gpus]) for gpus in part))
            for strategy in strategies:
                columns = (
                    f"{self._mark(one.state)} {one.batch.ljust(widths[gpus] - 2)}"
                    if (one := searches.get((strategy, gpus)))
                    else " " * widths[gpus]
                    for gpus in part
                )
                yield _line(strategy, names, columns)

    def _entry(self, one: CellStatus | SearchStatus) -> Iterator[str]:
        """Yield the lines of a cell or search: its state, name, job and details, and its log."""
        job = f"job {one.job}" if one.job else ""
        details = [one.detail]
        if one.left_s is not None:
            details.append(f"about {duration(one.left_s)} left")
        if one.limit_s is not None:
            details.append(f"limit in {duration(one.limit_s)}")
        head = GAP.join(filter(None, [one.state, one.title, job]))
        detail = "; ".join(filter(None, details))
        is_too_long = len(head) + len(GAP) + len(detail) > self.width
        line = head if is_too_long else f"{head}{GAP}{detail}".rstrip()
        yield line.replace(one.state, self._coloured(one.state, one.state), 1)
        if is_too_long:
            yield from self._wrapped(detail, INDENT)
        if one.log and one.state != "running":
            yield f"{INDENT}{one.log}"

    def _wrapped(self, text: str, indent: str = "") -> list[str]:
        return textwrap.wrap(
            text,
            self.width,
            initial_indent=indent,
            subsequent_indent=indent or INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _mark(self, state: State) -> str:
        look = LOOKS[state]
        return self._coloured(look.symbol, state) if self.terminal else look.plain

    def _coloured(self, text: str, state: State) -> str:
        return f"\x1b[{LOOKS[state].colour}m{text}\x1b[0m" if self.terminal else text


def _count_states(jobs: Sequence[JobStatus]) -> str:
    counts = Counter(one.state for one in jobs)
    return ", ".join(f"{counts[state]} {state}" for state in LOOKS if counts[state])


def _count_by_reason(jobs: Sequence[JobStatus]) -> Iterator[str]:
    """Count, by reason, the cells and searches that are not listed one by one."""
    for state, why in (
        ("queued", "Slurm's reasons"),
        ("device fault", "the first of each cell"),
        ("stale", "why"),
    ):
        reasons = Counter(one.detail.partition(":")[0] for one in jobs if one.state == state)
        if reasons:
            listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
            yield f"{state} ({why}): {listed}"


def _remarks(status: MatrixStatus) -> Iterator[str]:
    others = Counter(
        (comment.split("_wildcards_")[0], job.state)
        for job in status.others
        for comment in job.comments
    )
    for (rule, state), number in others.items():
        yield f"{rule.removeprefix('rule_')}: {number} {state.lower()}"
    for line in status.parity:
        yield f"parity: {line}"
    if status.orphans:
        numbers = ", ".join(job.job_id for job in status.orphans)
        yield (
            f"orphaned: {numbers}. Their controller is gone; give the command of the matrix "
            "again: what they work on is waited for and not started a second time"
        )
    yield from status.remarks


def _median_speeds(statuses: Iterable[CellStatus]) -> dict[tuple[str, int], str]:
    """Return the median throughput by strategy and GPU count, as the grid prints it."""
    speeds: dict[tuple[str, int], list[float]] = {}
    for one in statuses:
        if one.items_per_s is not None:
            speeds.setdefault((one.cell.strategy, one.cell.gpus), []).append(one.items_per_s)
    return {place: f"{median(each):,.0f}" for place, each in speeds.items()}


def _heading(gpus: int) -> str:
    return f"{gpus} GPU{'s' if gpus > 1 else ''}"


def _line(label: str, width: int, columns: Iterable[str]) -> str:
    return GAP.join([label.ljust(width), *columns]).rstrip()


def _parts(items: Iterable[T], width_of: Callable[[T], int], room: int) -> Iterator[list[T]]:
    """Split items into parts that fit beside each other; each part has at least one item."""
    part: list[T] = []
    for item in items:
        if part and sum(width_of(one) + len(GAP) for one in (*part, item)) > room + len(GAP):
            yield part
            part = []
        part.append(item)
    yield part
