"""The state of a matrix as a grid of cells, and a line for each cell that one may want to look at.

In a terminal with symbols and colours that no one needs to tell apart by colour alone; plain ASCII
everywhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardmark.config import Config
from shardmark.matrix.progress import duration
from shardmark.matrix.status import FAILED, CellStatus, MatrixStatus, State

RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, DIM = 31, 32, 33, 34, 35, 36, 2


@dataclass(frozen=True)
class Look:
    """How a state is shown: a letter in plain text, a symbol and a colour in a terminal."""

    plain: str
    symbol: str
    colour: int


LOOKS: dict[State, Look] = {
    "ok": Look("+", "●", GREEN),
    "suspect": Look("?", "?", YELLOW),
    "running": Look(">", "▶", CYAN),
    "queued": Look("q", "◔", BLUE),
    "oom": Look("M", "M", RED),
    "timeout": Look("T", "T", RED),
    "diverged": Look("D", "D", RED),
    "failed": Look("F", "F", RED),
    "interrupted": Look("!", "!", MAGENTA),
    "refused": Look("x", "✗", MAGENTA),
    "stale": Look("o", "○", YELLOW),
    "unsupported": Look("-", "–", DIM),
    "missing": Look(".", "·", DIM),
}
# What gets a line of its own, in this order.
TOLD: tuple[State, ...] = (
    "running",
    "queued",
    *FAILED,  # type: ignore[assignment]
    "interrupted",
    "refused",
    "suspect",
)
GAP = "  "


class View:
    """The state of a matrix as text.

    Args:
        terminal: whether to use symbols and colours.
        width: columns there are.
    """

    def __init__(self, *, terminal: bool, width: int) -> None:
        self.terminal, self.width = terminal, width

    def lines(self, config: Config, status: MatrixStatus) -> Iterator[str]:
        """The whole view."""
        counts = Counter(one.state for one in status.cells)
        shown = ", ".join(f"{counts[state]} {state}" for state in LOOKS if counts[state])
        yield f"results/{config.run}: {len(status.cells)} cells: {shown}"
        yield f"controller: {status.controller}"
        for workload in config.matrix.workloads:
            yield ""
            yield from self._grid(config, workload, status.cells)
        yield ""
        yield GAP.join(f"{self._mark(state)} {state}" for state in LOOKS if counts[state])
        told = sorted(
            (one for one in status.cells if one.state in TOLD), key=lambda o: TOLD.index(o.state)
        )
        if told:
            yield ""
            yield from self._table([_row(one) for one in told], [one.state for one in told])
        yield from self._remarks(status)

    def _remarks(self, status: MatrixStatus) -> Iterator[str]:
        lines = [
            f"job {job.job_id} {job.state.lower()}: {' '.join(job.comments)}"
            + (f" ({job.reason})" if job.state == "PENDING" else "")
            for job in status.others
        ]
        lines += [f"parity: {line}" for line in status.parity]
        if status.orphans:
            numbers = ", ".join(job.job_id for job in status.orphans)
            lines.append(
                f"orphaned: {numbers}. Their controller is gone; give the command of the matrix "
                "again: what they work on is waited for and not started a second time"
            )
        lines += status.remarks
        if lines:
            yield ""
            yield from lines

    def _grid(self, config: Config, workload: str, statuses: Sequence[CellStatus]) -> Iterator[str]:
        """Strategies down, GPU counts and seeds across; broken where the width ends."""
        matrix = config.matrix
        marks = {
            (one.cell.strategy, one.cell.gpus, one.cell.seed): self._mark(one.state)
            for one in statuses
            if one.cell.workload == workload
        }
        names = max(map(len, matrix.strategies))
        digits = max(len(str(seed)) for seed in matrix.seeds)
        heads = {gpus: f"{gpus} GPU{'s' if gpus > 1 else ''}" for gpus in matrix.gpus}
        wide = {gpus: max(len(heads[gpus]), len(matrix.seeds)) for gpus in matrix.gpus}
        yield workload
        for part in _parts(matrix.gpus, wide, self.width - names - len(GAP)):
            yield _line("", names, (heads[gpus].ljust(wide[gpus]) for gpus in part))
            for digit in range(digits):
                row = "".join(str(seed).rjust(digits)[digit] for seed in matrix.seeds)
                label = "seed" if digit == 0 else ""
                yield _line(label, names, (row.ljust(wide[gpus]) for gpus in part))
            for strategy in matrix.strategies:
                cells = (
                    "".join(marks[strategy, gpus, seed] for seed in matrix.seeds)
                    + " " * (wide[gpus] - len(matrix.seeds))
                    for gpus in part
                )
                yield _line(strategy, names, cells)

    def _mark(self, state: State) -> str:
        look = LOOKS[state]
        return self._coloured(look.symbol, state) if self.terminal else look.plain

    def _coloured(self, text: str, state: State) -> str:
        return f"\x1b[{LOOKS[state].colour}m{text}\x1b[0m" if self.terminal else text

    def _table(self, rows: Sequence[Sequence[str]], states: Sequence[State]) -> Iterator[str]:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, state in zip(rows, states, strict=True):
            first, *rest = (
                cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width
            )
            yield GAP.join([self._coloured(first, state), *rest]).rstrip()


def _row(status: CellStatus) -> tuple[str, ...]:
    """State, cell, job, log, and what there is to say."""
    said = [status.detail]
    if status.left_s is not None:
        said.append(f"about {duration(status.left_s)} left")
    if status.limit_s is not None:
        said.append(f"limit in {duration(status.limit_s)}")
    return (
        status.state,
        status.cell.title,
        f"job {status.job}" if status.job else "",
        str(status.log or ""),
        "; ".join(filter(None, said)),
    )


def _line(label: str, width: int, parts: Iterator[str]) -> str:
    return GAP.join([label.ljust(width), *parts]).rstrip()


def _parts(gpus: Sequence[int], wide: dict[int, int], room: int) -> Iterator[list[int]]:
    """The GPU counts that fit beside each other, and at least one."""
    part: list[int] = []
    for count in gpus:
        if part and sum(wide[one] + len(GAP) for one in (*part, count)) > room:
            yield part
            part = []
        part.append(count)
    yield part
